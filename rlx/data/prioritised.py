"""Prioritised replay: what surprised most is learned from most often.

Schaul et al. 2016, https://arxiv.org/abs/1511.05952, the proportional variant
(section 3.3 and algorithm 1): transition i is drawn with

    P(i) = pᵢ^α / Σ pₖ^α,    pᵢ = |δᵢ| + ε

and its loss is weighted by wᵢ = (N P(i))^{−β} / max_k w_k, with β rising to 1.

There is no tree of sums. A draw takes two short cumulative sums, over blocks and within
one, computed afresh from the priorities for every batch: nothing accumulates, so
nothing drifts, and each sum has the rounding of about √N terms, not of N.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from rlx.data import replay as replay_lib
from rlx.data import ring as ring_lib
from rlx.types import Array, DataSource, Env, Key, Metrics, Policy, Transition

IMPORTANCE = "importance"
"""Where a batch's `extras` hold the weights w."""


@struct.dataclass
class PrioritisedState:
    """Where the environments stand, what is remembered, and how much it matters."""

    replay: replay_lib.ReplayState
    mass: Array
    """`[R, B]` p^α of every row of the ring; 0 where nothing is written."""
    drawn: Array
    """`int32[num_minibatches, batch_size]` the last batch's places in `mass`."""
    draws: Array
    """`int32[]` minibatches drawn so far."""


def prioritised(  # noqa: PLR0913 (the front door: everything is given by name)
    env: Env,
    *,
    num_envs: int = 1,
    length: int = 1,
    batch_size: int = 256,
    num_minibatches: int = 1,
    capacity: int = 1_000_000,
    warmup: int = 10_000,
    n_step: int = 1,
    gamma: float = 0.99,
    alpha: float = 0.6,
    beta: float = 0.4,
    beta_steps: int = 100_000,
    smallest: float = 0.01,
) -> DataSource:
    """Replay that draws transitions in proportion to their last error.

    As `rlx.data.replay.replay`, but batches carry the weights w `[num_minibatches,
    batch_size]` in `extras["importance"]`, and the method must report |δ| of every
    element as `FEEDBACK`. What is new has the largest priority of all that is kept.
    With α = 0 the draws are uniform and all weights 1.

    Args:
      env: one environment; it is vmapped here.
      num_envs: environments stepped together.
      length: steps per environment and batch.
      batch_size: transitions in a minibatch.
      num_minibatches: minibatches in a batch, all drawn before the method learns.
      capacity: transitions remembered, over all environments.
      warmup: environment steps with random actions before the first batch.
      n_step: steps that a transition spans.
      gamma: γ, which must be the method's; used only where `n_step` > 1.
      alpha: how much priorities count (Schaul et al. 2016, table 3: 0.6).
      beta: how much the weights correct at first (table 3: 0.4).
      beta_steps: minibatches after which they correct in full.
      smallest: ε, which lets no transition vanish.

    Raises:
      ValueError: a size is impossible, see `rlx.data.replay.replay`; α or ε is
        negative, β is not in [0, 1], or ε = 0 with α > 0.
    """
    replay_lib.require_positive(
        batch_size=batch_size,
        num_minibatches=num_minibatches,
        n_step=n_step,
        beta_steps=beta_steps,
    )
    _check(alpha, beta, smallest)
    collector = replay_lib.make_collector(
        env, num_envs=num_envs, length=length, capacity=capacity, warmup=warmup
    )
    shape = (num_minibatches, batch_size)

    def init(key: Key, policy: Policy) -> PrioritisedState:
        state = collector.init(key, policy)
        num_rows, num_streams = state.ring.rows.reward.shape
        written = jnp.arange(num_rows)[:, None] < state.ring.size
        return PrioritisedState(
            replay=state,
            mass=jnp.broadcast_to(written, (num_rows, num_streams)) * jnp.float32(1),
            drawn=jnp.zeros(shape, jnp.int32),
            draws=jnp.zeros((), jnp.int32),
        )

    def next_batch(
        state: PrioritisedState, policy: Policy, key: Key
    ) -> tuple[PrioritisedState, Transition, Metrics]:
        act_key, sample_key = jax.random.split(key)
        cursor = state.replay.ring.cursor
        kept, metrics = collector.collect(state.replay, policy, act_key)
        mass = _welcome(state.mass, cursor, length)
        drawn = draw(mass, sample_key, shape)
        count = state.draws + jnp.arange(num_minibatches)
        weights = importance(mass, drawn, _rising(beta, count, beta_steps)[:, None])
        batch = ring_lib.read(kept.ring, _ages(kept.ring, drawn), n_step, gamma)
        state = PrioritisedState(kept, mass, drawn, state.draws + num_minibatches)
        return state, batch.replace(extras={IMPORTANCE: weights}), metrics

    def feedback(state: PrioritisedState, error: Array) -> PrioritisedState:
        mass = (jnp.abs(error).reshape(-1) + smallest) ** alpha
        return state.replace(mass=put(state.mass, state.drawn.reshape(-1), mass))

    return DataSource(
        init=init,
        next=next_batch,
        feedback=feedback,
        steps_per_batch=collector.steps,
        num_envs=num_envs,
        env=env,
    )


def draw(mass: Array, key: Key, shape: tuple[int, ...]) -> Array:
    """Places in `mass`, flattened, each drawn in proportion to what lies there.

    Args:
      mass: `[...]` >= 0, not all 0.
      key: used once.
      shape: of the result.

    Returns:
      `int32[*shape]`; never a place without mass.
    """
    flat = mass.reshape(-1)
    width = math.isqrt(flat.size - 1) + 1
    blocks = jnp.pad(flat, (0, -flat.size % width)).reshape(-1, width)
    block_key, key = jax.random.split(key)
    number = math.prod(shape)
    block = _choose(jnp.sum(blocks, axis=1), jax.random.uniform(block_key, (number,)))
    choose = jax.vmap(_choose)
    within = choose(blocks[block], jax.random.uniform(key, (number,)))
    return (block * width + within).astype(jnp.int32).reshape(shape)


def _choose(mass: Array, unit: Array) -> Array:
    """Where the cumulative sum of `mass [K]` exceeds `unit [...]` of its total."""
    sums = jnp.cumsum(mass)
    index = jnp.searchsorted(sums, unit * sums[-1], side="right")
    # unit < 1 can round up to the total; beyond the last mass there is nothing.
    last = mass.shape[0] - 1 - jnp.argmax(mass[::-1] > 0)
    return jnp.minimum(index, last)


def importance(mass: Array, drawn: Array, beta: Array | float) -> Array:
    """Weights w = (N P)^{−β}, over the largest of all: in (0, 1].

    Args:
      mass: `[...]` p^α; places without mass count for nothing.
      drawn: `int32[*S]` places in `mass`, flattened.
      beta: β in [0, 1], broadcastable to `drawn`.

    Returns:
      `[*S]`: (min mass / mass)^β, in which N and the sum of all cancel.
    """
    smallest = jnp.min(jnp.where(mass > 0, mass, jnp.inf))
    return (smallest / mass.reshape(-1)[drawn]) ** beta


def put(mass: Array, places: Array, new: Array) -> Array:
    """Sets masses; where a place was drawn more than once the largest counts.

    Args:
      mass: `[...]`.
      places: `int32[M]` in `mass`, flattened.
      new: `[M]`.
    """
    flat = mass.reshape(-1).at[places].set(0.0).at[places].max(new)
    return flat.reshape(mass.shape)


def _welcome(mass: Array, cursor: Array, length: int) -> Array:
    """The rows just written get the largest mass there is; 1 if there is none."""
    largest = jnp.max(mass)
    new = jnp.broadcast_to(
        jnp.where(largest > 0, largest, 1.0), (length, mass.shape[1])
    )
    return jax.lax.dynamic_update_slice_in_dim(mass, new, cursor, axis=0)


def _ages(ring: ring_lib.Ring, places: Array) -> Array:
    """What `ring.read` wants, from places in memory."""
    num_rows, num_streams = ring.rows.reward.shape
    age = (places // num_streams - (ring.cursor - ring.size)) % num_rows
    return age * num_streams + places % num_streams


def _rising(beta: float | Array, count: Array, steps: int) -> Array:
    return beta + (1 - beta) * jnp.minimum(count / steps, 1.0)


def _check(alpha: float, beta: float, smallest: float) -> None:
    """Raises ValueError for numbers no one could use; traced ones pass."""
    numbers = {
        n: x
        for n, x in {"alpha": alpha, "beta": beta, "smallest": smallest}.items()
        if isinstance(x, int | float)
    }
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if numbers.get("beta", 0.0) > 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    if numbers.get("smallest", 1.0) == 0 and numbers.get("alpha", 0.0) > 0:
        raise ValueError("smallest must be positive: 0 would lose what is learned well")
