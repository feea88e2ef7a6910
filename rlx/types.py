"""The records that every part of rlx speaks: data, state, methods, environments.

Records of *arrays* are `flax.struct.dataclass` (frozen pytrees, checkpointed whole).
Records of *functions* are `NamedTuple`. What describes shapes is a plain frozen
dataclass: hashable, static under `jit`, never traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import optax
from flax import struct

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Key: TypeAlias = jax.Array
"""A typed PRNG key, made by `jax.random.key`."""
Params: TypeAlias = PyTree
Carry: TypeAlias = PyTree
Metrics: TypeAlias = Mapping[str, Array]

LossFn: TypeAlias = Callable[
    [Params, Params, PyTree, PyTree, Key], tuple[Array, Metrics]
]
"""`(params, target_params, stats, batch, key) -> (scalar, metrics)`."""

FEEDBACK = "feedback"
"""A metric of this name is none: what a loss reports under it for every element of its
minibatch goes to `DataSource.feedback`, in the order of the batch."""


# ---------------------------------------------------------------------------- data


@struct.dataclass
class Transition:
    """One environment step, or any number of them: all fields share leading axes.

    `discount` says *terminated* and `truncated` says *cut by a time limit*; there is
    no `done`. The discount factor gamma belongs to the method, not to the data.
    """

    observation: PyTree
    action: PyTree
    reward: Array
    """`[...]` reward received for this step."""
    discount: Array
    """`[...]` 0 where the episode terminated at this step, else 1."""
    truncated: Array
    """`[...]` bool, True where a time limit cut the episode at this step."""
    next_observation: PyTree
    """The true successor, before any reset: what a truncated step bootstraps from."""
    extras: PyTree = struct.field(default_factory=dict)
    """What the behaviour policy returned with the action (log-probability, carry)."""


@struct.dataclass
class Step:
    """What one call of `Env.step` returns."""

    observation: PyTree
    """Observation of the state just reached: always the true one, never a reset's."""
    reward: Array
    terminated: Array
    """bool: the task ended here, the future is worth nothing."""
    truncated: Array
    """bool: a time limit cut the episode here, the future still counts."""
    info: Mapping[str, Array] = struct.field(default_factory=dict)
    """Scalars worth logging (success, reward terms, ...)."""


# --------------------------------------------------------------------------- state


@struct.dataclass
class LearnerState:
    """Everything that learning changes."""

    params: Params
    """What gradients move."""
    target_params: Params
    """A slow copy: target network, or reference policy."""
    stats: PyTree
    """What is estimated, not learned: observation mean and variance, reward scale."""
    opt_state: optax.OptState
    step: Array
    """`int32[]` gradient steps taken."""


@struct.dataclass
class TrainState:
    """Everything that a run is. Saved whole, loaded whole: nothing else is needed."""

    learner: LearnerState
    source: PyTree
    """The data source's state: environments, replay buffer, episode statistics."""
    key: Key
    iteration: Array
    """`int32[]` calls of `train.step` so far."""


# ------------------------------------------------------------------------- records


class Network(NamedTuple):
    """A network without its library: `params = init(key)`, `apply(params, ...)`."""

    init: Callable[[Key], Params]
    apply: Callable[..., Any]


class Policy(NamedTuple):
    """What a data source sees of a method: how to act, and how to begin an episode."""

    act: Callable[[PyTree, Carry, Key | None], tuple[PyTree, Carry, PyTree]]
    """`(observation, carry, key) -> (action, carry, extras)`, any leading axes."""
    init_carry: Callable[[], Carry]
    """`() -> carry` of one episode, without leading axes; `()` when memoryless."""


def _no_stats(num_envs: int) -> PyTree:
    del num_envs
    return ()


def _no_carry() -> Carry:
    return ()


def _keep_batch(learner: LearnerState, batch: PyTree) -> tuple[PyTree, PyTree]:
    return learner.stats, batch


def _frozen(params: Params, target_params: Params, step: Array) -> Params:
    del params, step
    return target_params


class Method(NamedTuple):
    """A learning method as a record of pure functions.

    What has a default defaults to the simplest thing: no stats, no memory, a frozen
    target, one pass over the batch.
    """

    init: Callable[[Key], Params]
    act: Callable[..., tuple[PyTree, Carry, PyTree]]
    """`(params, stats, observation, carry, key) -> (action, carry, extras)`.

    Observations have any leading axes; one key serves them all. `key=None` asks for
    the deterministic policy (the mode), which is what evaluation runs.
    """
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    prepare: Callable[[LearnerState, PyTree], tuple[PyTree, PyTree]] = _keep_batch
    """`(learner, batch) -> (stats, batch)`, once per batch, before any gradient step.

    Computes what stays constant while the batch is used (advantages, old log-
    probabilities), normalises observations with the stats that the behaviour policy
    used, and returns the stats of the *next* batch. Leaves of the batch it returns
    share their leading axis, along which minibatches are drawn.
    """
    target_update: Callable[[Params, Params, Array], Params] = _frozen
    """`(params, target_params, step) -> target_params`, after each gradient step."""
    init_carry: Callable[[], Carry] = _no_carry
    init_stats: Callable[[int], PyTree] = _no_stats
    """`(num_envs) -> stats`; a batch holds that many parallel streams (datasets: 1)."""
    num_epochs: int = 1
    num_minibatches: int = 1
    update: Callable[..., tuple[LearnerState, Metrics]] | None = None
    """`(learner, batch, key) -> (learner, metrics)`: replaces the gradient steps.

    For methods whose step is no gradient of one loss (natural gradient, least
    squares, bilevel). It receives the prepared batch and must count `learner.step`.
    """


def _no_feedback(source_state: PyTree, signal: PyTree) -> PyTree:
    del signal
    return source_state


class DataSource(NamedTuple):
    """Where batches come from: a rollout, a replay buffer, a dataset."""

    init: Callable[[Key, Policy], PyTree]
    """`(key, policy) -> source_state`."""
    next: Callable[[PyTree, Policy, Key], tuple[PyTree, PyTree, Metrics]]
    """`(source_state, policy, key) -> (source_state, batch, metrics)`."""
    feedback: Callable[[PyTree, PyTree], PyTree] = _no_feedback
    """`(source_state, signal) -> source_state`; for prioritised replay.

    Called after learning with what the loss reported as `FEEDBACK`, leaves as long as
    the prepared batch's; never where it reported nothing."""
    steps_per_batch: int = 0
    """Environment steps that one `next` takes; 0 when the data is already there."""
    num_envs: int = 1
    """Parallel streams of experience in a batch."""
    env: Env | None = None
    """The environment behind the data, where there is one: evaluation runs on it."""
    arrays: PyTree = ()
    """What all runs read and none changes (a dataset). `fit` passes it to its programs
    as an argument: one copy for all runs, no constant, and in no checkpoint."""
    over: Callable[[PyTree], DataSource] | None = None
    """`(arrays) -> DataSource`: this source over other arrays of the same shapes, such
    as traced ones; None where there are none."""


# -------------------------------------------------------------------- environments


@dataclasses.dataclass(frozen=True)
class Box:
    """Real vectors or arrays. Bounds are scalars or one number per element."""

    shape: tuple[int, ...]
    minimum: float | tuple[float, ...] = -float("inf")
    maximum: float | tuple[float, ...] = float("inf")
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Integers `0 ... num_values - 1`."""

    num_values: int
    dtype: str = "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        """A discrete value is a scalar."""
        return ()


Space: TypeAlias = Box | Discrete


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """What a method must know of an environment before it sees a single step."""

    name: str
    observation: Space
    action: Space
    time_limit: int | None = None
    """Steps after which an episode is truncated; None: the env never truncates."""
    control_frequency: float | None = None
    """Actions per second of simulated time; None where time has no unit."""


class Env(NamedTuple):
    """One environment, no batch axis: callers `vmap`. It never resets itself."""

    reset: Callable[[Key], tuple[PyTree, PyTree]]
    """`(key) -> (env_state, observation)`."""
    step: Callable[[PyTree, PyTree, Key], tuple[PyTree, Step]]
    """`(env_state, action, key) -> (env_state, step)`."""
    spec: EnvSpec
    render: Callable[[PyTree], Any] | None = None
    """`(env_state) -> uint8[H, W, 3]` on the host, for one concrete state; optional."""
