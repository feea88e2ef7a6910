"""Running mean and variance, reward scaling, and standardisation of a batch.

`RunningStatistics` estimates moments of a stream. They are exact for as long as a run
can last: the count is a 64-bit integer, and mean and sum of squares are kept as pairs
of floats (value and what rounding left over), because in plain float32 a single
sample is lost once the count passes 2²⁴.

Variances are those of the population, divided by n.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rlx.types import Array, PyTree

EPSILON = 1e-8
"""Added to variances before the root, as VecNormalize of Stable-Baselines does."""


@struct.dataclass
class RunningStatistics:
    """Count, mean and sum of squared deviations of everything seen so far."""

    count: Array
    """`uint32[2]` samples seen: count[0]·2³² + count[1]."""
    mean: PyTree
    mean_rest: PyTree
    """What rounding left over: the mean is mean + mean_rest."""
    summed_variance: PyTree
    """Σᵢ (xᵢ − mean)², elementwise."""
    summed_variance_rest: PyTree


@struct.dataclass
class RewardScale:
    """The running deviation of the discounted return, and the returns under way."""

    returns: Array
    """`[...]` discounted sum of the rewards of each running episode so far."""
    statistics: RunningStatistics
    """Of those sums, one scalar for all environments."""


def init(example: PyTree) -> RunningStatistics:
    """Statistics of nothing yet, for samples shaped like `example`.

    Args:
      example: one sample: a pytree of arrays or `jax.ShapeDtypeStruct`, no batch axes.

    Returns:
      Statistics with count 0. `normalize` leaves its input as it is until `update`.
    """

    def zeros() -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, _float_type(x)), example)

    return RunningStatistics(
        count=jnp.zeros(2, jnp.uint32),
        mean=zeros(),
        mean_rest=zeros(),
        summed_variance=zeros(),
        summed_variance_rest=zeros(),
    )


def update(
    stats: RunningStatistics, batch: PyTree, mask: Array | None = None
) -> RunningStatistics:
    """The statistics after a batch of further samples.

    Chan, Golub & LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115, eq. 1.5,
    with n samples seen and m new ones of mean μ' and summed variance S':

        δ = μ' − μ,   μ ← μ + δ m/(n+m),   S ← S + S' + δ² n m/(n+m)

    The order and the grouping of batches do not matter, save for rounding.

    Args:
      stats: statistics so far.
      batch: pytree of `[..., *shape]`; all axes before `shape` are samples.
      mask: `bool[...]`, True for samples that count; None: all do. What is masked may
        be anything, NaN included. A NaN that counts stays for good.

    Returns:
      New statistics.

    Raises:
      AssertionError: a leaf's trailing axes are not its sample's shape, or leading
        axes or mask differ between leaves.
    """
    mask = _check_samples(stats, batch, mask)
    num_new = jnp.sum(mask, dtype=jnp.uint32)
    moments = jax.tree.map(
        lambda x, mean, rest: _moments_about(x, mean, rest, mask, num_new),
        batch,
        stats.mean,
        stats.mean_rest,
    )
    delta, summed_variance = _unzip(stats.mean, moments)
    count = jnp.stack([jnp.zeros_like(num_new), num_new])
    return _combine(stats, count, delta, summed_variance)


def merge(first: RunningStatistics, second: RunningStatistics) -> RunningStatistics:
    """Statistics of the union of two disjoint sets of samples; see `update`.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_trees_all_equal_shapes(first, second)
    delta = jax.tree.map(
        lambda a, a_rest, b, b_rest: (b - a) + (b_rest - a_rest),
        first.mean,
        first.mean_rest,
        second.mean,
        second.mean_rest,
    )
    summed = jax.tree.map(jnp.add, second.summed_variance, second.summed_variance_rest)
    return _combine(first, second.count, delta, summed)


def variance(stats: RunningStatistics) -> PyTree:
    """Variances of the samples seen, `[*shape]` per leaf; 1 before the first."""

    def of_leaf(summed: Array) -> Array:
        count = _as_float(stats.count, summed.dtype)
        return jnp.where(count == 0, 1, summed / jnp.maximum(count, 1))

    return jax.tree.map(of_leaf, stats.summed_variance)


def normalize(
    stats: RunningStatistics, sample: PyTree, clip: float | None = 10.0
) -> PyTree:
    """(x − mean) / √(variance + 10⁻⁸), clipped to [−clip, clip].

    An element that never varied comes out as 0 while it stays so. Nothing is stopped:
    the result is differentiable in x.

    Args:
      stats: constants of the method that calls it.
      sample: pytree of `[..., *shape]`.
      clip: bound in deviations; None: no bound.

    Returns:
      Pytree of floats, shaped like `sample`.

    Raises:
      AssertionError: a leaf's trailing axes are not its sample's shape.
    """
    _check_samples(stats, sample, None)

    def of_leaf(x: Array, mean: Array, rest: Array, var: Array) -> Array:
        centred = _centred(x, mean, rest)
        scaled = centred * _like(jax.lax.rsqrt(var + EPSILON), centred)
        return scaled if clip is None else jnp.clip(scaled, -clip, clip)

    return jax.tree.map(of_leaf, sample, stats.mean, stats.mean_rest, variance(stats))


def denormalize(stats: RunningStatistics, sample: PyTree) -> PyTree:
    """The inverse of `normalize` where nothing was clipped.

    Raises:
      AssertionError: a leaf's trailing axes are not its sample's shape.
    """
    _check_samples(stats, sample, None)

    def of_leaf(x: Array, mean: Array, rest: Array, var: Array) -> Array:
        return x * _like(jnp.sqrt(var + EPSILON), x) + _like(mean + rest, x)

    return jax.tree.map(of_leaf, sample, stats.mean, stats.mean_rest, variance(stats))


def init_reward_scale(shape: int | tuple[int, ...]) -> RewardScale:
    """A reward scale for environments of this number (or batch shape)."""
    returns = jnp.zeros(shape)
    return RewardScale(returns, init(jax.ShapeDtypeStruct((), returns.dtype)))


def scale_rewards(
    state: RewardScale,
    reward: Array,
    discount: Array,
    truncated: Array,
    gamma: float | Array,
) -> tuple[RewardScale, Array]:
    """Divides rewards by the running deviation of the discounted return.

    VecNormalize of Stable-Baselines 3 (Raffin et al. 2021,
    https://jmlr.org/papers/v22/20-1364.html); effect studied by Engstrom et al. 2020,
    https://arxiv.org/abs/2005.12729:

        Rₜ = rₜ + γ dₜ₋₁ (1 − truncatedₜ₋₁) Rₜ₋₁
        r'ₜ = clip(rₜ / √(Var[R] + 10⁻⁸), −10, 10)

    Rewards are not centred. R starts anew after termination and truncation alike, and
    goes on over calls. Unlike VecNormalize, which updates the variance at every step,
    all T rows enter it before any is scaled: one batch has one scale.

    Args:
      state: from `init_reward_scale`, or the last call.
      reward: `[T, ...]` r of consecutive steps, `[...]` as in `init_reward_scale`.
      discount: `[T, ...]` d, 0 at termination, else 1.
      truncated: `bool[T, ...]`.
      gamma: γ in [0, 1], scalar.

    Returns:
      The new state and the scaled rewards `[T, ...]`.

    Raises:
      AssertionError: shapes differ, `truncated` is no bool, or γ no scalar.
    """
    chex.assert_equal_shape([reward, discount, truncated])
    chex.assert_shape(reward, (None, *state.returns.shape))
    chex.assert_type(truncated, bool)
    chex.assert_rank(gamma, 0)

    def body(total: Array, row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, discount, truncated = row
        total = (reward + gamma * total).astype(state.returns.dtype)
        return jnp.where(truncated, 0, discount * total).astype(total.dtype), total

    running, totals = jax.lax.scan(body, state.returns, (reward, discount, truncated))
    statistics = update(state.statistics, totals)
    scaled = reward * jax.lax.rsqrt(variance(statistics) + EPSILON)
    return RewardScale(running, statistics), jnp.clip(scaled, -10.0, 10.0)


def standardize(
    x: Array, axis: int | tuple[int, ...] | None = None, mask: Array | None = None
) -> Array:
    """(x − mean) / deviation; exactly 0 where all counted elements are equal.

    No ε is added: the result does not depend on the unit of x.

    Args:
      x: `[...]`.
      axis: axes over which mean and deviation are taken; None: all.
      mask: bool, of the shape of x, True for elements that count; None: all do.

    Returns:
      `[...]`, 0 where masked.

    Raises:
      AssertionError: the mask has another shape, or is no bool.
    """
    mask = jnp.ones(x.shape, bool) if mask is None else mask
    chex.assert_equal_shape([x, mask])
    chex.assert_type(mask, bool)
    low = jnp.min(jnp.where(mask, x, jnp.inf), axis, keepdims=True)
    high = jnp.max(jnp.where(mask, x, -jnp.inf), axis, keepdims=True)
    # Map to [0, 1] first: equal elements become exact zeros, and squares neither
    # overflow nor vanish. The result does not depend on this map, nor its gradient.
    low, width = jax.lax.stop_gradient((low, high - low))
    varies = width > 0
    counts = mask & varies
    unit = jnp.where(counts, (x - low) / jnp.where(varies, width, 1), 0)
    count = jnp.maximum(jnp.sum(mask, axis, keepdims=True), 1)
    centred = jnp.where(counts, unit - jnp.sum(unit, axis, keepdims=True) / count, 0)
    var = jnp.sum(jnp.square(centred), axis, keepdims=True) / count
    return centred * jax.lax.rsqrt(jnp.where(varies, var, 1))


def _float_type(x: Array) -> jnp.dtype:
    """Moments of integers and of half precision are kept in float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _check_samples(
    stats: RunningStatistics, sample: PyTree, mask: Array | None
) -> Array:
    """Checks shapes and returns a mask over the leading axes."""
    chex.assert_trees_all_equal_structs(stats.mean, sample)
    leaves = jax.tree.leaves(sample)
    shapes = [x.shape for x in jax.tree.leaves(stats.mean)]
    for x, shape in zip(leaves, shapes, strict=True):
        chex.assert_shape(x, (..., *shape))
    leading = [
        x.shape[: x.ndim - len(shape)] for x, shape in zip(leaves, shapes, strict=True)
    ]
    chex.assert_equal(len(set(leading)), 1)
    if mask is None:
        return jnp.ones(leading[0], bool)
    chex.assert_shape(mask, leading[0])
    chex.assert_type(mask, bool)
    return mask


def _like(moment: Array, x: Array) -> Array:
    return jnp.broadcast_to(moment, x.shape)


def _centred(x: Array, mean: Array, rest: Array) -> Array:
    return (x.astype(mean.dtype) - _like(mean, x)) - _like(rest, x)


def _moments_about(
    x: Array, mean: Array, rest: Array, mask: Array, count: Array
) -> tuple[Array, Array]:
    """Mean minus the running mean, and summed variance, of the samples that count."""
    mask = mask.reshape(mask.shape + (1,) * mean.ndim)
    axes = tuple(range(x.ndim - mean.ndim))
    count = jnp.maximum(count, 1).astype(mean.dtype)
    # Deviations are taken from the running mean first: nothing cancels later. The
    # second pass removes the rounding of the first.
    shifted = jnp.where(mask, _centred(x, mean, rest), 0)
    first = jnp.sum(shifted, axes) / count
    deviation = jnp.where(mask, shifted - _like(first, x), 0)
    second = jnp.sum(deviation, axes) / count
    return first + second, jnp.sum(jnp.square(deviation), axes)


def _combine(
    stats: RunningStatistics, count: Array, delta: PyTree, summed_variance: PyTree
) -> RunningStatistics:
    """Chan's update, with `delta` the distance of the new mean from the old."""
    total = _add_counts(stats.count, count)

    def weight(dtype: jnp.dtype) -> Array:
        return _as_float(count, dtype) / jnp.maximum(_as_float(total, dtype), 1)

    means = jax.tree.map(
        lambda mean, rest, d: _add(mean, rest, d * weight(mean.dtype)),
        stats.mean,
        stats.mean_rest,
        delta,
    )
    increment = jax.tree.map(
        lambda s, d: s + d * (d * _as_float(stats.count, d.dtype) * weight(d.dtype)),
        summed_variance,
        delta,
    )
    sums = jax.tree.map(
        _add, stats.summed_variance, stats.summed_variance_rest, increment
    )
    return RunningStatistics(
        total, *_unzip(stats.mean, means), *_unzip(stats.mean, sums)
    )


def _unzip(like: PyTree, pairs: PyTree) -> tuple[PyTree, PyTree]:
    outer, inner = jax.tree.structure(like), jax.tree.structure((0, 0))
    return jax.tree.transpose(outer, inner, pairs)


def _add(value: Array, rest: Array, increment: Array) -> tuple[Array, Array]:
    """(value + rest) + increment without loss (Knuth's two-sum), as a new pair."""
    total = value + increment
    seen = total - value
    rest = rest + ((value - (total - seen)) + (increment - seen))
    result = total + rest
    return result, rest - (result - total)


def _add_counts(a: Array, b: Array) -> Array:
    low = a[1] + b[1]
    carry = (low < a[1]).astype(jnp.uint32)  # unsigned sums wrap around
    return jnp.stack([a[0] + b[0] + carry, low])


def _as_float(count: Array, dtype: jnp.dtype) -> Array:
    return count[0].astype(dtype) * 2.0**32 + count[1].astype(dtype)
