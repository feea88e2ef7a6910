"""What methods that learn a reward from preferences share: ensemble, teacher, fit.

Lee et al. 2021 (PEBBLE), https://arxiv.org/abs/2106.05091; teachers of Lee et al. 2021
(B-Pref), https://arxiv.org/abs/2111.03026.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlx.networks.ensemble import ensemble
from rlx.networks.rewards import bounded_reward
from rlx.ops import preference, segments
from rlx.ops.preference import Answer
from rlx.ops.segments import Labels, Pairs
from rlx.types import Array, EnvSpec, Key, Network, Params, PyTree

Ask = Callable[[Key, Array, Array], Answer]
"""`(key, first_reward [L, N], second_reward [L, N]) -> Answer [N]`: a teacher of one's
own in place of the scripted one. It may decline by weight 0."""


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Fields of methods that ask a teacher. Floats may be swept under `vmap`."""

    segment_length: int = 50
    """L: steps of a segment (B-Pref's code)."""
    num_labels: float = 1000
    """The budget: queries shown to the teacher, skipped ones too (B-Pref, walker)."""
    queries_per_session: int = 100
    """Queries asked at a time (B-Pref, walker)."""
    session_interval: float = 20_000
    """Batches from one session to the next (B-Pref: 20,000 steps); may be swept."""
    query_selection: str = "disagreement"
    """Asks the candidates on which the members disagree most, or "uniform" ones."""
    label_capacity: int = 1000
    """Labels remembered; the oldest are forgotten."""
    reward_members: int = 3
    """E: networks in the reward's ensemble (B-Pref's code)."""
    reward_hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Units of the reward's hidden layers (B-Pref's code)."""
    reward_activation: str = "leaky_relu"
    """Activation between the reward's layers (B-Pref's code)."""
    reward_learning_rate: float = 3e-4
    """Adam's step size for the reward (B-Pref's code)."""
    reward_batch_size: int = 128
    """Labels in a minibatch of each member, drawn with replacement."""
    label_smoothing: float = 0.0
    """Labels are taken for noise with this chance, see `rlx.ops.preference.smooth`."""
    teacher_rationality: float = math.inf
    """β of the scripted teacher, see `rlx.ops.preference.Teacher`."""
    teacher_gamma: float = 1.0
    """Its myopia."""
    teacher_mistake: float = 0.0
    """How often it errs."""
    teacher_skip: float = 0.0
    """It skips where both returns are below this part of the mean; 0: never."""
    teacher_equal: float = 0.0
    """It ties where returns differ by less than this part of the mean's size."""


class Reward(NamedTuple):
    """A member of the ensemble, and all of them."""

    member: Network
    """`apply(params of one, observation, action) -> [...]`."""
    members: Network
    """`apply(params, observation, action) -> [E, ...]`."""

    def mean(self, params: Params, observation: Array, action: Array) -> Array:
        """The policy's reward: the mean of the members `[...]`."""
        return jnp.mean(self.members.apply(params, observation, action), axis=0)


def make_reward(spec: EnvSpec, config: PreferenceConfig) -> Reward:
    """The ensemble that a config describes."""
    sizes = config.reward_hidden_sizes
    member = bounded_reward(spec, sizes, config.reward_activation)
    return Reward(member, ensemble(member, config.reward_members))


def differences(
    member: Network,
    params: Params,
    observation: Array,
    action: Array,
    mask: Array | None = None,
) -> Array:
    """Δ = R(first) − R(second) `[N]` of pairs `[N, 2, L, ...]` under one member."""
    reward = member.apply(params, observation, action)
    if mask is not None:
        reward = jnp.where(mask, reward, 0.0)
    returns = jnp.sum(reward, axis=-1)
    return returns[:, 0] - returns[:, 1]


class Fit(NamedTuple):
    """A loss of the reward and how often it agrees with the labels."""

    loss: Array
    agreement: Array


def label_loss(
    reward: Reward,
    params: Params,
    labels: Labels,
    index: Array,
    mask: Array | None = None,
    smoothing: float | Array = 0.0,
) -> Fit:
    """Mean over members of the cross-entropy of their labels (Lee et al., equation 4).

    Args:
      reward: the ensemble.
      params: its parameters, what is differentiated.
      labels: the buffer.
      index: `int32[E, M]` rows, each member's own.
      mask: `bool[E, M, 2, L]`, False for steps that are cropped away.
      smoothing: ε of label smoothing.
    """

    def one(member: Params, rows: Array, kept: Array | None) -> Fit:
        difference = differences(
            reward.member, member, labels.observation[rows], labels.action[rows], kept
        )
        y = labels.preference[rows]
        weight = (rows < labels.size).astype(difference.dtype)
        fit = preference.log_likelihood(difference, preference.smooth(y, smoothing))
        right = preference.agreement(difference, Answer(y, weight))
        return Fit(-preference.weighted_mean(fit, weight), right)

    axes = (0, 0, None if mask is None else 0)
    both = jax.vmap(one, axes)(params, index, mask)
    return Fit(jnp.mean(both.loss), jnp.mean(both.agreement))


def minibatch(key: Key, config: PreferenceConfig, labels: Labels) -> Array:
    """Rows of labels `int32[E, M]`, for each member its own, with replacement."""
    shape = (config.reward_members, config.reward_batch_size)
    return jax.random.randint(key, shape, 0, jnp.maximum(labels.size, 1))


def choose(
    key: Key, config: PreferenceConfig, reward: Reward, params: Params, pairs: Pairs
) -> tuple[Pairs, Array]:
    """Which candidates to ask about.

    Args:
      key: used once.
      config: how to choose, and how many.
      reward: the ensemble.
      params: its parameters.
      pairs: candidates.

    Returns:
      The queries, and their indices among the candidates.
    """
    if config.query_selection == "uniform":
        score = jax.random.uniform(key, pairs.whole.shape)
    else:
        score = disagreement(reward, params, pairs)
    return segments.choose(pairs, score, config.queries_per_session)


def consult(
    key: Key,
    config: PreferenceConfig,
    pairs: Pairs,
    candidates: Pairs,
    ask: Ask | None = None,
    margin: int = 0,
) -> Answer:
    """What the teacher answers.

    Args:
      key: used once.
      config: the scripted teacher.
      pairs: the queries.
      candidates: from which they were chosen: their mean return sets its thresholds.
      ask: the teacher; the scripted one if None.
      margin: steps at either end of a segment that the teacher does not see.
    """
    inside = slice(margin, candidates.reward.shape[-1] - margin)
    shown = jnp.moveaxis(pairs.reward[..., inside], -1, 0)
    if ask is not None:
        return ask(key, shown[..., 0], shown[..., 1])
    typical = candidates.reward[..., inside].sum(-1).mean(-1)
    whole = candidates.whole.astype(typical.dtype)
    teacher = make_teacher(config, preference.weighted_mean(typical, whole))
    return preference.ask(key, shown[..., 0], shown[..., 1], teacher)


def within_budget(config: PreferenceConfig, labels: Labels, pairs: Pairs) -> Pairs:
    """The pairs of which as many may still be shown as the budget allows."""
    left = config.num_labels - labels.asked
    return pairs.replace(whole=pairs.whole & (jnp.cumsum(pairs.whole) <= left))


def disagreement(reward: Reward, params: Params, pairs: Pairs) -> Array:
    """Standard deviation over members of P(first > second) `[N]` (section 4.2)."""

    def one(member: Params) -> Array:
        difference = differences(reward.member, member, pairs.observation, pairs.action)
        return jax.nn.sigmoid(difference)

    return jnp.std(jax.vmap(one)(params), axis=0)


def make_teacher(
    config: PreferenceConfig, mean_return: Array | float
) -> preference.Teacher:
    """The scripted teacher, its thresholds from the mean return of a segment."""
    length = config.segment_length
    mean_return = jnp.asarray(mean_return)

    def part(fraction: float | Array, of: Array) -> Array:
        return preference.threshold(fraction, of, length, length)

    skip = jnp.asarray(config.teacher_skip)
    return preference.Teacher(
        rationality=config.teacher_rationality,
        gamma=config.teacher_gamma,
        mistake=config.teacher_mistake,
        skip_threshold=jnp.where(skip > 0, part(skip, mean_return), -jnp.inf),
        equal_threshold=part(config.teacher_equal, jnp.abs(mean_return)),
    )


def once_if(
    condition: Array, run: Callable[[PyTree, Key], PyTree], state: PyTree, key: Key
) -> PyTree:
    """`run(state, key)` where the condition holds, else the state as it is.

    A loop of one or no rounds: vmapped, `jax.lax.cond` would compute both branches for
    ever, while this costs nothing in an iteration in which nobody is due.
    """

    def body(carry: tuple[Array, PyTree, Key]) -> tuple[Array, PyTree, Key]:
        _, state, key = carry
        own, key = jax.random.split(key)
        return jnp.zeros((), bool), run(state, own), key

    start = (jnp.asarray(condition), state, key)
    return jax.lax.while_loop(lambda carry: carry[0], body, start)[1]


def counts(labels: Labels) -> dict[str, Array]:
    """What a run reports of its labels."""
    return {
        name: getattr(labels, name).astype(jnp.float32)
        for name in ("asked", "skipped", "ties", "missing")
    }


def two_optimizers(
    policy: optax.GradientTransformation, reward: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimiser for the entry "reward" of the parameters, one for the rest.

    The state is `{"policy": ..., "reward": ...}`, so that each can step alone.
    """

    def init(params: Params) -> dict[str, Any]:
        return {
            "policy": policy.init(without_reward(params)),
            "reward": reward.init(params["reward"]),
        }

    def update(
        gradient: PyTree, state: PyTree, params: PyTree | None = None
    ) -> tuple[PyTree, PyTree]:
        rest, own = (
            (without_reward(params), params["reward"]) if params else (None,) * 2
        )
        moved, policy_state = policy.update(
            without_reward(gradient), state["policy"], rest
        )
        learned, reward_state = reward.update(gradient["reward"], state["reward"], own)
        new = {"policy": policy_state, "reward": reward_state}
        return {**moved, "reward": learned}, new

    return optax.GradientTransformation(init, update)


def without_reward(params: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the parameters that are not the reward's."""
    return {name: value for name, value in params.items() if name != "reward"}


def check(config: PreferenceConfig) -> None:
    """Raises ValueError for fields that no run could use; traced floats pass."""
    if config.query_selection not in ("uniform", "disagreement"):
        raise ValueError(
            'query_selection must be "uniform" or "disagreement", got '
            f"{config.query_selection!r}"
        )
    if config.query_selection == "disagreement" and config.reward_members < 2:
        raise ValueError(
            "a single member cannot disagree: set reward_members to 2 or more, or "
            'query_selection to "uniform"'
        )
    for name in (
        "segment_length",
        "queries_per_session",
        "session_interval",
        "label_capacity",
        "reward_members",
        "reward_batch_size",
    ):
        value = getattr(config, name)
        if isinstance(value, int | float) and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if config.queries_per_session > config.label_capacity:
        raise ValueError(
            f"label_capacity={config.label_capacity} cannot hold the "
            f"{config.queries_per_session} labels of a session"
        )
    bounds = {
        "teacher_rationality": (0.0, math.inf),
        "teacher_gamma": (0.0, 1.0),
        "teacher_mistake": (0.0, 1.0),
        "label_smoothing": (0.0, 1.0),
        "teacher_skip": (0.0, math.inf),
        "teacher_equal": (0.0, math.inf),
        "num_labels": (0.0, math.inf),
    }
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if isinstance(value, int | float) and not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")
