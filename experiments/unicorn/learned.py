"""The learned methods' views of a conversation, and their training.

Every method becomes a `scoring.Rule` of its parameters. UNICORN and the SCPR-like
baseline are methods of this project; the EAR-like baseline is trained here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs.conversation import unicorn as unicorn_env
from experiments.unicorn import benchmark, rules
from experiments.unicorn.benchmark import ACTIONS, LIST, TURNS, MakeEnv
from experiments.unicorn.scoring import Act
from rlx import train
from rlx.data.prioritised import prioritised
from rlx.data.replay import replay
from rlx.methods import dqn, unicorn
from rlx.ops import conversation
from rlx.ops.catalogue import Catalogue
from rlx.ops.conversation import Observation
from rlx.types import (
    Array,
    Box,
    DataSource,
    Discrete,
    Env,
    Key,
    LearnerState,
    Method,
    Params,
    PyTree,
    Step,
)

QUESTIONS, NUM_ENVS = 10, 64


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train UNICORN."""

    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `unicorn.Config` that differ from the paper's."""
    preference: bool = False
    """Candidate attributes by preference, as released, not by weighted entropy."""
    every_attribute: bool = False
    """No pruning of attributes."""
    alpha: float = 0.6
    """How much priorities count; 0: uniform replay."""
    sharpness: float = 0.0
    """Of the features' numbers, see `unicorn.graph`."""
    nodes: int = 64
    """Candidates that are nodes of the graph."""
    actions: int = ACTIONS
    """In a conversation; as released one fewer than the turns."""
    few: int = 0
    """With so many candidates or fewer the agent recommends by score when it is
    scored; 10 as released."""


ARMS = {
    "unicorn": Arm(),
    "features": Arm({"state_features": True, "action_features": True}),
    "state_features": Arm({"state_features": True}),
    "sharp": Arm({"state_features": True, "action_features": True}, sharpness=5.0),
    "as_coded": Arm(unicorn.AS_CODED, preference=True, few=LIST),
    "no_graph": Arm({"convolve": False}),
    "no_pruning": Arm(every_attribute=True),
    "preference": Arm(preference=True),
    "uniform_replay": Arm(alpha=0.0),
    "no_dueling": Arm({"dueling": False}),
    "random_vectors": Arm({"pretrained": False}),
    "plain_convolution": Arm({"plain_convolution": True, "num_convolutions": 1}),
    "across_batch": Arm({"across_batch": True}),
    "constant_epsilon": Arm({"epsilon_start": 0.1, "epsilon_end": 0.1}),
    "uncentred": Arm({"centred": False}),
    "online_encoder": Arm({"target_encoder": False}),
    "rescaled_loss": Arm({"weigh_elements": False}),
    "free_encoder": Arm({"clip_encoder": False}),
    "few": Arm(few=LIST),
    "fifteen": Arm(actions=TURNS),
    "no_nodes": Arm(nodes=LIST),
    "more_nodes": Arm(nodes=256),
}
"""UNICORN, with features that the paper's state lacks, its ablations, and what the
released code does otherwise, one by one."""


class Parts(NamedTuple):
    """What it takes to train a method and to score it."""

    method: Method
    source: DataSource
    make_env: MakeEnv
    act: Act


def unicorn_parts(
    catalogue: Catalogue, arm: Arm, config: unicorn.Config, steps: int
) -> Parts:
    """UNICORN; `steps` are gradient steps."""
    rules_of = benchmark.options(
        catalogue,
        arm.actions,
        num_questions=catalogue.num_questions if arm.every_attribute else QUESTIONS,
        questions_by="preference" if arm.preference else "entropy",
        num_nodes=arm.nodes,
    )

    def make_env(about: Catalogue) -> Env:
        name = "conversation/lastfm_graph"
        return unicorn_env.make(about, rules_of, name, arm.sharpness)

    env = make_env(catalogue)
    method = unicorn.make(env.spec, config)
    source = prioritised(
        env,
        num_envs=NUM_ENVS,
        batch_size=config.batch_size,
        num_minibatches=config.num_minibatches,
        capacity=config.capacity,
        warmup=config.warmup,
        n_step=config.n_step,
        gamma=config.gamma,
        alpha=arm.alpha,
        beta_steps=steps,
    )
    act = greedy(method)
    if arm.few:
        act = ending(act, arm.few)
    return Parts(method, source, make_env, act)


def ending(act: Act, few: int) -> Act:
    """Recommends by score where `few` candidates or fewer are left.

    `few` is smaller than the number of nodes.
    """

    def changed(params: Params, seen: unicorn.GraphState, key: Key) -> unicorn.Choice:
        chosen = act(params, seen, key)
        end = jnp.sum(seen.items >= 0, axis=-1) <= few
        return unicorn.Choice(
            attribute=jnp.where(end, -1, chosen.attribute),
            items=jnp.where(end[..., None], seen.item_actions, chosen.items),
            index=jnp.where(end, 0, chosen.index),
        )

    return changed


def greedy(method: Method) -> Act:
    """The deterministic policy of a method without stats that matter to it."""

    def act(params: Params, seen: PyTree, key: Key) -> PyTree:
        del key
        return method.act(params, jnp.int32(0), seen, (), None)[0]

    return act


@struct.dataclass
class Told:
    """A conversation with what happened in each of its turns."""

    seen: Observation
    history: Array
    """`int32[TURNS]`: 1 accepted, -1 rejected, -2 a list that missed, 0 yet to come."""


def told(catalogue: Catalogue, questions: int = 0) -> Env:
    """Conversations whose observations, and states, remember what happened."""
    env = benchmark.plain(catalogue, questions)

    def reset(key: Key) -> tuple[tuple[PyTree, Told], Told]:
        state, seen = env.reset(key)
        # The user's opening is the first turn.
        told = Told(seen, jnp.zeros((TURNS,), jnp.int32).at[0].set(1))
        return (state, told), told

    def step(state: tuple[PyTree, Told], action: Array, key: Key) -> Any:
        inner, before = state
        inner, new = env.step(inner, action, key)
        seen = new.observation
        accepted = jnp.sum(seen.accepted) > jnp.sum(before.seen.accepted)
        code = jnp.where(new.info["asked"], jnp.where(accepted, 1, -1), -2)
        now = Told(seen, before.history.at[seen.turn].set(code, mode="drop"))
        return (inner, now), new.replace(observation=now)

    return Env(reset, step, env.spec)


def numbers(catalogue: Catalogue, now: Told, sharpness: float = 0.0) -> Array:
    """What SCPR's two-action policy sees: the history, and bits of |C|.

    Where `sharpness` is not 0 also the share of the best list, by weights that sharp.
    """
    count = jnp.maximum(now.seen.num_candidates, 1).astype(jnp.float32)
    size = jnp.ceil(jnp.log2(count)).astype(jnp.int32)
    bits = jax.nn.one_hot(size, width(catalogue) - TURNS)
    found = jnp.concatenate([now.history.astype(jnp.float32), bits])
    if not sharpness:
        return found
    scores = conversation.scores(catalogue, now.seen)
    weights = conversation.weights(scores, now.seen.candidate, sharpness)
    best = jnp.sum(jax.lax.top_k(weights, LIST)[0]) / jnp.sum(weights)
    return jnp.append(found, best)


def width(catalogue: Catalogue) -> int:
    """Of `numbers` without a sharpness."""
    return TURNS + (catalogue.num_items - 1).bit_length() + 1


def scpr_env(catalogue: Catalogue, sharpness: float = 0.0) -> Env:
    """SCPR's view: 0 asks for the greatest weighted entropy, 1 recommends."""
    env = told(catalogue, questions=1)
    ask = rules.threshold(catalogue, 0)

    def reset(key: Key) -> tuple[PyTree, Array]:
        state, now = env.reset(key)
        return state, numbers(catalogue, now, sharpness)

    def step(state: tuple[PyTree, Told], action: Array, key: Key) -> tuple[Any, Step]:
        seen = jax.tree.map(lambda x: x[None], state[1].seen)
        slot = jnp.where(action == 0, ask((), seen, key)[0], rules.RECOMMEND)
        state, new = env.step(state, slot, key)
        seen = numbers(catalogue, new.observation, sharpness)
        return state, new.replace(observation=seen)

    size = width(catalogue) + bool(sharpness)
    spec = dataclasses.replace(env.spec, observation=Box((size,)), action=Discrete(2))
    return Env(reset, step, spec)


def scpr_parts(
    catalogue: Catalogue, num_minibatches: int, steps: int, sharpness: float = 0.0
) -> Parts:
    """SCPR-like (Lei et al. 2020, https://arxiv.org/abs/2007.00194).

    A DQN chooses between asking for the greatest weighted entropy and recommending.

    Args:
      catalogue: its interactions are learned from.
      num_minibatches: gradient steps for each step of the conversations.
      steps: gradient steps in all.
      sharpness: see `numbers`; 0 in the published method.
    """

    def make_env(about: Catalogue) -> Env:
        return scpr_env(about, sharpness)

    env = make_env(catalogue)
    config = dqn.Config(
        hidden_sizes=(64, 64),
        gamma=0.999,
        learning_rate=1e-3,
        double=False,
        dueling=False,
        target_period=20,
        epsilon_end=0.1,
        epsilon_steps=steps // 2,
        num_minibatches=num_minibatches,
    )
    method = dqn.make(env.spec, config)
    source = replay(
        env,
        num_envs=NUM_ENVS,
        batch_size=128,
        num_minibatches=num_minibatches,
        capacity=NUM_ENVS * 780,
        warmup=NUM_ENVS * 10,
    )
    return Parts(method, source, make_env, greedy(method))


def trained(
    parts: Parts,
    seed: int,
    iterations: int,
    points: int,
    report: Callable[[int, LearnerState], None],
) -> LearnerState:
    """The learner after `iterations`; `report(iteration, learner)` at all `points`.

    Raises:
      ValueError: `iterations` is no multiple of `points`.
    """
    if iterations % points:
        raise ValueError(f"{iterations} iterations are no multiple of {points}")
    each = iterations // points
    method, source = parts.method, parts.source
    state = jax.jit(lambda key: train.init(method, source, key))(jax.random.key(seed))
    advance = jax.jit(
        lambda state: train.run(method, source, state, each)[0], donate_argnums=0
    )
    for iteration in range(each, iterations + 1, each):
        state = advance(state)
        report(iteration, state.learner)
    return state.learner
