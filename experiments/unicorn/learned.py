"""The learned methods' views of a conversation, and their training.

Every method becomes a `scoring.Rule` of its parameters. UNICORN and the SCPR-like
baseline are methods of this project; the EAR-like baseline is trained here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.unicorn import scoring
from experiments.unicorn import world as world_lib
from experiments.unicorn.world import LIST, TURNS, Conversation, World
from rlx import train
from rlx.data.prioritised import prioritised
from rlx.data.replay import replay
from rlx.methods import dqn, unicorn
from rlx.networks.mlp import mlp
from rlx.ops import exploration
from rlx.types import (
    Array,
    Box,
    DataSource,
    Discrete,
    Env,
    EnvSpec,
    Key,
    Method,
    Params,
    Step,
)

NODES, QUESTIONS, NUM_ENVS = 64, 10, 64


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


ARMS = {
    "unicorn": Arm(),
    "as_coded": Arm(unicorn.AS_CODED, preference=True),
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
}
"""UNICORN, its ablations, and what the released code does otherwise, one by one."""


def conversations(
    world: World,
    pairs: np.ndarray,
    observe: Callable[[Conversation], Any],
    decide: Callable[[Conversation, Any], tuple[Array, Array]],
    spec: EnvSpec,
) -> Env:
    """An environment of conversations about any of the pairs.

    Args:
      world: the catalogue.
      pairs: `int[N, 2]` users and what they have in mind.
      observe: what a method sees.
      decide: `(conversation, action) -> (attribute, items)`.
      spec: of what it sees and does.
    """
    table = jnp.asarray(pairs, jnp.int32)

    def reset(key: Key) -> tuple[Conversation, Any]:
        which, key = jax.random.split(key)
        user, target = table[jax.random.randint(which, (), 0, len(table))]
        now = world_lib.begin(world, user, target, key)
        return now, observe(now)

    def step(now: Conversation, action: Any, key: Key) -> tuple[Conversation, Step]:
        del key
        new = world_lib.answer(world, now, *decide(now, action))
        return new.conversation, Step(
            observation=observe(new.conversation),
            reward=new.reward,
            terminated=new.over,
            truncated=jnp.zeros((), bool),
        )

    return Env(reset, step, spec)


def graph_view(world: World, arm: Arm) -> Callable[[Conversation], unicorn.GraphState]:
    """What UNICORN sees."""
    numbers = world.has.astype(jnp.float32)
    size = world.num_attributes if arm.every_attribute else QUESTIONS

    def observe(now: Conversation) -> unicorn.GraphState:
        known = world_lib.beliefs(world, now)
        worth = known.preference if arm.preference else known.entropy
        worth = jnp.where(known.askable, worth, -jnp.inf)
        best, attributes = jax.lax.top_k(worth, size)
        return unicorn.graph_state(
            now.user,
            now.accepted,
            now.candidate,
            known.scores,
            jnp.where(best > -jnp.inf, attributes, -1),
            counts=lambda mask: mask @ numbers,
            num_items=NODES,
            num_actions=LIST,
        )

    return observe


def unicorn_parts(
    world: World, arm: Arm, config: unicorn.Config, batch_size: int, steps: int
) -> tuple[Method, DataSource, scoring.Rule]:
    """Method, source and rule of UNICORN; `steps` are gradient steps."""
    observe = graph_view(world, arm)
    size = world.num_attributes if arm.every_attribute else QUESTIONS
    # A record of spaces has the form of the actions.
    record: Any = unicorn.Choice
    choice = record(
        attribute=Discrete(world.num_attributes),
        items=Box((LIST,), -1, world.has.shape[0] - 1, "int32"),
        index=Discrete(LIST + size),
    )
    spec = EnvSpec("conversation/graph", Box((1,)), choice, TURNS)
    env = conversations(
        world, world.valid, observe, lambda now, act: (act.attribute, act.items), spec
    )
    knowledge = unicorn.Knowledge(
        world.user_vectors,
        world.item_vectors,
        world.attribute_vectors,
        lambda i, p: world.has[i[..., :, None], p[..., None, :]],
    )
    method = unicorn.make(spec, config, knowledge=knowledge)
    source = prioritised(
        env,
        num_envs=NUM_ENVS,
        batch_size=batch_size,
        num_minibatches=config.num_minibatches,
        capacity=NUM_ENVS * 780,
        warmup=0,
        n_step=config.n_step,
        gamma=config.gamma,
        alpha=arm.alpha,
        beta_steps=steps,
    )

    def rule(params: Params, now: Conversation, key: Key) -> tuple[Array, Array]:
        del key
        action, _, _ = method.act(
            params, jnp.int32(0), jax.vmap(observe)(now), (), None
        )
        return action.attribute, action.items

    return method, source, rule


def scpr_view(world: World) -> Callable[[Conversation], Array]:
    """What SCPR's two-action policy sees: the history, and bits of |C|."""
    bits = int(np.ceil(np.log2(world.has.shape[0]))) + 1

    def observe(now: Conversation) -> Array:
        count = jnp.maximum(jnp.sum(now.candidate), 1)
        size = jnp.ceil(jnp.log2(count)).astype(jnp.int32)
        codes = now.history.astype(jnp.float32)
        return jnp.concatenate([codes, jax.nn.one_hot(size, bits)])

    return observe


def scpr_parts(
    world: World, num_minibatches: int, steps: int
) -> tuple[Method, DataSource, scoring.Rule]:
    """SCPR-like (Lei et al. 2020, https://arxiv.org/abs/2007.00194).

    A DQN chooses between asking for the greatest weighted entropy and recommending.
    """
    observe = scpr_view(world)

    def decide(now: Conversation, action: Array) -> tuple[Array, Array]:
        known = world_lib.beliefs(world, now)
        best = jnp.argmax(known.entropy).astype(jnp.int32)
        ask = (action == 0) & (known.entropy[best] > 0)
        return jnp.where(ask, best, -1), world_lib.best_list(now, known.scores)

    example = jax.eval_shape(
        lambda key: observe(world_lib.begin(world, jnp.int32(0), jnp.int32(0), key)),
        jax.random.key(0),
    )
    spec = EnvSpec("conversation/scpr", Box(example.shape), Discrete(2), TURNS)
    env = conversations(world, world.valid, observe, decide, spec)
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
    method = dqn.make(spec, config)
    source = replay(
        env,
        num_envs=NUM_ENVS,
        batch_size=128,
        num_minibatches=num_minibatches,
        capacity=NUM_ENVS * 780,
        warmup=NUM_ENVS * 10,
    )

    def rule(params: Params, now: Conversation, key: Key) -> tuple[Array, Array]:
        del key
        action, _, _ = method.act(
            params, jnp.int32(0), jax.vmap(observe)(now), (), None
        )
        return jax.vmap(decide)(now, action)

    return method, source, rule


def trained(
    method: Method,
    source: DataSource,
    seed: int,
    iterations: int,
    each: int,
    report: Callable[[int, Params], None],
) -> Params:
    """Parameters after `iterations`; `report(iteration, params)` after every `each`."""
    state = jax.jit(lambda key: train.init(method, source, key))(jax.random.key(seed))
    advance = jax.jit(
        lambda state: train.run(method, source, state, each)[0], donate_argnums=0
    )
    for iteration in range(each, iterations + 1, each):
        state = advance(state)
        report(iteration, jax.tree.map(jnp.copy, state.learner.params))
    return state.learner.params


def ear_rule(world: World, greedy: bool = True) -> tuple[Any, scoring.Rule]:
    """EAR-like: a softmax over all attributes and "recommend" (network, rule)."""
    scpr = scpr_view(world)
    width = 2 * world.num_attributes + scpr_width(world)
    network = mlp(width, (64, 64, world.num_attributes + 1), activation="relu")

    def one(params: Params, now: Conversation, key: Key) -> tuple[Array, Array]:
        known = world_lib.beliefs(world, now)
        logits = ear_logits(network, params, now, known, scpr(now))
        where = jnp.append(known.askable, True)
        if greedy:
            index = exploration.greedy(logits, where)
        else:
            index = jax.random.categorical(key, jnp.where(where, logits, -jnp.inf))
        ask = index < world.num_attributes
        items = world_lib.best_list(now, known.scores)
        return jnp.where(ask, index, -1).astype(jnp.int32), items

    def rule(params: Params, now: Conversation, key: Key) -> tuple[Array, Array]:
        keys = jax.random.split(key, now.turn.shape[0])
        return jax.vmap(lambda now, key: one(params, now, key))(now, keys)

    return network, rule


def scpr_width(world: World) -> int:
    """Features of `scpr_view`."""
    return TURNS + int(np.ceil(np.log2(world.has.shape[0]))) + 1


def ear_logits(
    network: Any,
    params: Params,
    now: Conversation,
    known: world_lib.Beliefs,
    codes: Array,
) -> Array:
    """`[P + 1]` from entropies, preferences of the user, history and |C|."""
    liking = world_liking(known, now)
    return network.apply(params, jnp.concatenate([known.entropy, liking, codes]))


def world_liking(known: world_lib.Beliefs, now: Conversation) -> Array:
    """Preferences, squashed; 0 for what was asked before."""
    return jnp.where(now.asked, 0.0, jnp.tanh(known.preference))


def train_ear(
    world: World, seed: int, imitation: int, updates: int
) -> tuple[Params, scoring.Rule]:
    """Imitate maximum entropy, then REINFORCE with γ = 0.7 (Lei et al. 2020, EAR).

    Args:
      world: the catalogue.
      seed: of everything.
      imitation: batches of 64 conversations to imitate.
      updates: batches of 64 conversations of its own.
    """
    network, sampled = ear_rule(world, greedy=False)
    teacher = scoring.maximum_entropy(world)
    scpr, table = scpr_view(world), jnp.asarray(world.valid, jnp.int32)
    adam = optax.adam(1e-3)

    def log_prob(params: Params, now: Conversation, attribute: Array) -> Array:
        known = world_lib.beliefs(world, now)
        logits = ear_logits(network, params, now, known, scpr(now))
        where = jnp.append(known.askable, True)
        every = jax.nn.log_softmax(jnp.where(where, logits, -1e9))
        return every[jnp.where(attribute < 0, world.num_attributes, attribute)]

    def held(params: Params, rule: scoring.Rule, key: Key):
        which, begin_key, key = jax.random.split(key, 3)
        pairs = table[jax.random.randint(which, (NUM_ENVS,), 0, len(table))]
        start = jax.vmap(lambda pair, k: world_lib.begin(world, pair[0], pair[1], k))(
            pairs, jax.random.split(begin_key, NUM_ENVS)
        )

        def turn(carry, key):
            now, over = carry
            attribute, items = rule(params, now, key)
            new = jax.vmap(lambda *given: world_lib.answer(world, *given))(
                now, attribute, items
            )
            reward = jnp.where(over, 0.0, new.reward)
            record = (now, attribute, reward, ~over)
            return (new.conversation, over | new.over), record

        keys = jax.random.split(key, TURNS - 1)
        return jax.lax.scan(turn, (start, jnp.zeros((NUM_ENVS,), bool)), keys)[1]

    def loss(params: Params, record: Any, weights: Array) -> Array:
        now, attribute, _, alive = record
        each = jax.vmap(jax.vmap(lambda n, a: log_prob(params, n, a)))(now, attribute)
        return -jnp.sum(each * weights * alive) / jnp.maximum(jnp.sum(alive), 1)

    def returns(reward: Array) -> Array:
        def back(later, now):
            total = now + 0.7 * later
            return total, total

        return jax.lax.scan(back, jnp.zeros((NUM_ENVS,)), reward, reverse=True)[1]

    def update(imitate: bool, carry: Any, key: Key) -> tuple[Any, Array]:
        params, moments = carry
        record = held(params, teacher if imitate else sampled, key)
        found = returns(record[2])
        alive = record[3]
        mean = jnp.sum(found * alive) / jnp.maximum(jnp.sum(alive), 1)
        weights = jnp.ones_like(found) if imitate else found - mean
        value, gradient = jax.value_and_grad(loss)(params, record, weights)
        steps, moments = adam.update(gradient, moments)
        return (optax.apply_updates(params, steps), moments), value

    init_key, first, second = jax.random.split(jax.random.key(seed), 3)
    params = network.init(init_key)
    carry = (params, adam.init(params))
    for imitate, number, key in ((True, imitation, first), (False, updates, second)):
        run = jax.jit(
            lambda carry, keys, imitate=imitate: jax.lax.scan(
                lambda c, k: update(imitate, c, k), carry, keys
            )[0]
        )
        carry = run(carry, jax.random.split(key, number))
    return carry[0], ear_rule(world)[1]
