"""Running statistics, reward scales and standardisation against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlx.ops import normalization

# Compiled once per shape: operation by operation takes longer. Eager is tested below.
update = jax.jit(normalization.update)
scale_rewards = jax.jit(normalization.scale_rewards)
SHAPES = {"position": (3,), "image": (2, 2), "time": ()}


def example():
    return {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in SHAPES.items()}


def samples(generator, *leading):
    return {
        name: (5 + 2 * generator.normal(size=(*leading, *shape))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def total_count(stats):
    return int(stats.count[0]) * 2**32 + int(stats.count[1])


def assert_moments(stats, data, rtol=1e-6):
    """Equal to float64 moments of `data`, leaves `[N, *shape]`."""
    variance = normalization.variance(stats)
    for name, x in data.items():
        x = np.asarray(x, np.float64)
        assert total_count(stats) == len(x)
        np.testing.assert_allclose(stats.mean[name], x.mean(0), rtol=rtol)
        np.testing.assert_allclose(variance[name], x.var(0), rtol=rtol)


def join(*batches):
    return {
        name: np.concatenate([b[name].reshape(-1, *shape) for b in batches])
        for name, shape in SHAPES.items()
    }


# ------------------------------------------------------------------------- goldens


def test_golden():
    # 1, 3 then 8: mean 2, S = 2; delta = 6, mean = 2 + 6/3 = 4,
    # S = 2 + 36*2/3 = 26 = 9 + 1 + 16.
    stats = normalization.init(jnp.zeros(()))
    stats = normalization.update(stats, jnp.array([1.0, 3.0]))
    assert (stats.mean, stats.summed_variance) == (2, 2)
    stats = update(stats, jnp.array([8.0]))
    np.testing.assert_allclose(stats.mean, 4, rtol=1e-7)
    np.testing.assert_allclose(stats.summed_variance, 26, rtol=1e-7)
    assert total_count(stats) == 3
    # (10 - 4)/sqrt(26/3) and back.
    normal = normalization.normalize(stats, jnp.array(10.0))
    np.testing.assert_allclose(normal, 6 / np.sqrt(26 / 3), rtol=1e-6)
    np.testing.assert_allclose(normalization.denormalize(stats, normal), 10, rtol=1e-6)


def test_reward_scale_golden():
    # Two environments, gamma = 1/2. Returns: environment 0: 1, 2 + 1/2 = 2.5 (ended),
    # 3; environment 1: 4 (truncated), 0, 2. Mean 12.5/6, squares 1 + 6.25 + 9 + 16 + 4.
    reward = jnp.array([[1.0, 4.0], [2.0, 0.0], [3.0, 2.0]])
    discount = jnp.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    truncated = jnp.array([[False, True], [False, False], [False, False]])
    state = normalization.init_reward_scale(2)
    state, scaled = scale_rewards(state, reward, discount, truncated, 0.5)
    np.testing.assert_array_equal(state.returns, [3, 2])
    variance = 36.25 / 6 - (12.5 / 6) ** 2
    np.testing.assert_allclose(scaled, reward / np.sqrt(variance), rtol=1e-6)


def test_standardize_golden():
    # Mean 3, variance (4 + 0 + 4)/3.
    x = jnp.array([1.0, 3.0, 5.0])
    expected = np.array([-2, 0, 2]) / np.sqrt(8 / 3)
    np.testing.assert_allclose(normalization.standardize(x), expected, atol=1e-7)


# -------------------------------------------------------------- running statistics


def test_updates_equal_moments_of_the_whole(generator):
    sizes = [(1,), (7, 4), (100,), (2, 3, 5), ()]
    batches = [samples(generator, *size) for size in sizes]
    stats = normalization.init(example())
    for batch in batches:
        stats = update(stats, batch)
    assert_moments(stats, join(*batches))


def test_merge_is_exact_in_any_grouping(generator):
    batches = [samples(generator, n) for n in (1, 30, 400)]
    empty = normalization.init(example())
    parts = [update(empty, batch) for batch in batches]
    merge = jax.jit(normalization.merge)
    left = merge(merge(parts[0], parts[1]), parts[2])
    right = merge(parts[0], merge(parts[2], parts[1]))
    for stats in (left, right):
        assert_moments(stats, join(*batches))
    jax.tree.map(np.testing.assert_array_equal, merge(left, empty), left)
    assert_moments(merge(empty, left), join(*batches))


def test_masked_samples_do_not_count(generator):
    batch = samples(generator, 6, 4)
    mask = generator.random((6, 4)) < 0.5
    dirty = {
        k: np.where(mask.reshape(6, 4, *[1] * len(SHAPES[k])), x, np.nan)
        for k, x in batch.items()
    }
    stats = update(normalization.init(example()), dirty, mask)
    assert_moments(stats, {k: x[mask] for k, x in batch.items()})
    nothing = update(stats, dirty, np.zeros((6, 4), bool))
    jax.tree.map(np.testing.assert_array_equal, nothing, stats)


def test_large_offset_does_not_cancel(generator):
    # Deviation 1 on an offset of 10^4: E[x^2] - E[x]^2 in float32 is noise of size 8.
    x = (1e4 + generator.normal(size=(50, 200))).astype(np.float32)
    stats = normalization.init(jnp.zeros(()))
    for row in x:
        stats = update(stats, row)
    np.testing.assert_allclose(stats.mean, x.astype(np.float64).mean(), rtol=1e-7)
    np.testing.assert_allclose(
        normalization.variance(stats), x.astype(np.float64).var(), rtol=1e-5
    )


def test_single_samples_still_count_after_10_to_the_8():
    # 2^27 samples of mean 1 and variance 1 by doubling, then 2^18 single samples that
    # alternate between 3 and 7: mean 5, variance 4. In plain float32 the count would
    # stand still (2^27 + 1 = 2^27) and the mean too (6/2^27 < 2^-24).
    stats = normalization.init(jnp.zeros(()))
    stats = update(stats, jnp.array([0.0, 2.0]))
    stats = jax.lax.fori_loop(0, 26, lambda _, s: normalization.merge(s, s), stats)
    assert total_count(stats) == 2**27
    np.testing.assert_array_equal((stats.mean, normalization.variance(stats)), (1, 1))

    def body(carry, x):
        stats, (count, mean) = carry
        naive = count + 1, mean + (x - mean) / (count + 1)
        return (update(stats, x), naive), None

    new = jnp.where(jnp.arange(2**18) % 2 == 0, 3.0, 7.0)
    naive = jnp.float32(2**27), jnp.float32(1)
    (stats, naive), _ = jax.jit(lambda *args: jax.lax.scan(body, *args))(
        (stats, naive), new
    )
    n, m = 2**27, 2**18
    assert total_count(stats) == n + m
    mean = (n * 1 + m * 5) / (n + m)
    np.testing.assert_allclose(stats.mean, mean, rtol=2e-7)
    variance = (n * (1 + 1**2) + m * (4 + 5**2)) / (n + m) - mean**2
    np.testing.assert_allclose(normalization.variance(stats), variance, rtol=1e-6)
    assert naive == (2**27, 1)  # the control: plain float32 learned nothing


def test_count_carries_past_32_bits():
    stats = normalization.init(jnp.zeros(()))
    stats = stats.replace(count=jnp.array([0, 2**32 - 3], jnp.uint32))
    stats = update(stats, jnp.zeros(5))
    assert total_count(stats) == 2**32 + 2
    assert total_count(normalization.merge(stats, stats)) == 2**33 + 4


def test_integers_and_half_precision():
    x = np.arange(256, dtype=np.uint8).reshape(64, 4)
    stats = update(normalization.init(x[0]), x)
    np.testing.assert_allclose(stats.mean, x.mean(0))
    np.testing.assert_allclose(normalization.variance(stats), x.astype(float).var(0))
    assert normalization.normalize(stats, x).dtype == jnp.float32
    half = normalization.init(jnp.zeros(3, jnp.bfloat16))
    assert half.mean.dtype == jnp.float32


def test_normalize(generator):
    batch = samples(generator, 1000)
    stats = normalization.init(example())
    untouched = normalization.normalize(stats, batch, clip=None)
    for name in SHAPES:
        np.testing.assert_allclose(untouched[name], batch[name], rtol=1e-6)
    stats = update(stats, batch)
    normal = normalization.normalize(stats, batch, clip=None)
    for x in normal.values():
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(0), 1, rtol=1e-5)
    back = normalization.denormalize(stats, normal)
    clipped = normalization.normalize(stats, batch, clip=1.5)
    for name in SHAPES:
        np.testing.assert_allclose(back[name], batch[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(clipped[name], np.clip(normal[name], -1.5, 1.5))


@pytest.mark.parametrize("value", [0.1, 1000.1, -3e7])
def test_what_never_varied_comes_out_as_zero(value):
    x = jnp.full((777, 3), value)
    stats = update(normalization.init(x[0]), x)
    np.testing.assert_array_equal(normalization.normalize(stats, x), 0)


def test_eager_jit_vmap_agree(generator):
    batches = jax.tree.map(
        lambda *x: np.stack(x), samples(generator, 9), samples(generator, 9)
    )

    def both(batch):
        stats = normalization.update(normalization.init(example()), batch)
        return (
            stats.mean,
            normalization.variance(stats),
            normalization.normalize(stats, batch),
        )

    expected = both(jax.tree.map(lambda x: x[1], batches))
    jitted = jax.jit(both)(jax.tree.map(lambda x: x[1], batches))
    mapped = jax.tree.map(lambda x: x[1], jax.vmap(both)(batches))
    for actual in (jitted, mapped):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6),
            actual,
            expected,
        )


def test_wrong_shapes_raise():
    stats = normalization.init(jnp.zeros(3))
    for shape in [(), (5,), (5, 1), (5, 3, 1)]:
        for function in (
            normalization.update,
            normalization.normalize,
            normalization.denormalize,
        ):
            with pytest.raises(AssertionError):
                function(stats, jnp.zeros(shape))
    for mask in [jnp.ones((5, 1), bool), jnp.ones(3, bool), jnp.ones(5)]:
        with pytest.raises(AssertionError):
            update(stats, jnp.zeros((5, 3)), mask)
    with pytest.raises(AssertionError):
        update(stats, {"x": jnp.zeros((5, 3))})
    with pytest.raises(AssertionError):
        normalization.merge(stats, normalization.init(jnp.zeros(1)))
    two = normalization.init({"a": jnp.zeros(3), "b": jnp.zeros(())})
    with pytest.raises(AssertionError):
        update(two, {"a": jnp.zeros((5, 3)), "b": jnp.zeros((5, 1))})


# ------------------------------------------------------------------- reward scaling


def naive_scale(reward, discount, truncated, gamma):
    """VecNormalize's bookkeeping in float64; returns all sums and the last ones."""
    running, totals = np.zeros(reward.shape[1]), []
    for r, d, cut in zip(reward, discount, truncated, strict=True):
        running = gamma * running + r
        totals.append(running.copy())
        running[(d == 0) | cut] = 0
    return np.array(totals), running


def test_reward_scale_over_several_calls(generator):
    shape = (40, 3)
    reward = generator.normal(size=shape).astype(np.float32) + 1
    discount = (generator.random(shape) > 0.1).astype(np.float32)
    truncated = generator.random(shape) < 0.1
    totals, running = naive_scale(reward, discount, truncated, 0.9)
    state = normalization.init_reward_scale(3)
    for i in range(0, 40, 10):
        rows = slice(i, i + 10)
        state, scaled = scale_rewards(
            state, reward[rows], discount[rows], truncated[rows], 0.9
        )
        expected = reward[rows] / np.sqrt(totals[: i + 10].var() + 1e-8)
        np.testing.assert_allclose(scaled, expected, rtol=1e-5)
    np.testing.assert_allclose(state.returns, running, rtol=1e-5)


def test_reward_scale_extremes():
    ones, never = jnp.ones((4, 1)), jnp.zeros((4, 1), bool)
    state = normalization.init_reward_scale(1)
    _, scaled = scale_rewards(state, 0 * ones, ones, never, 0.9)
    np.testing.assert_array_equal(scaled, 0)
    # Episodes of one step with equal rewards: variance 0, so the clip decides.
    _, scaled = scale_rewards(state, ones, 0 * ones, never, 0.9)
    np.testing.assert_array_equal(scaled, 10)


def test_reward_scale_sweeps_over_gamma(generator):
    reward, ones = generator.normal(size=(6, 2)).astype(np.float32), jnp.ones((6, 2))
    state, never = normalization.init_reward_scale(2), jnp.zeros((6, 2), bool)
    swept = jax.vmap(normalization.scale_rewards, (None, None, None, None, 0))(
        state, reward, ones, never, jnp.array([0.5, 0.9])
    )
    single = scale_rewards(state, reward, ones, never, 0.9)
    np.testing.assert_allclose(swept[1][1], single[1], rtol=1e-5)


def test_reward_scale_wrong_shapes_raise():
    state = normalization.init_reward_scale(2)
    good = [jnp.zeros((5, 2)), jnp.ones((5, 2)), jnp.zeros((5, 2), bool)]
    for i in range(3):
        bad = [x[..., :1] if i == j else x for j, x in enumerate(good)]
        with pytest.raises(AssertionError):
            scale_rewards(state, *bad, 0.9)
    with pytest.raises(AssertionError):
        scale_rewards(state, *[x[:, 0] for x in good], 0.9)
    with pytest.raises(AssertionError):
        scale_rewards(state, *good, jnp.array([0.9]))
    with pytest.raises(AssertionError):
        scale_rewards(state, *good[:2], jnp.zeros((5, 2)), 0.9)


# ------------------------------------------------------------------- standardisation


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1), -1])
@pytest.mark.parametrize("masked", [False, True])
def test_standardize(generator, axis, masked):
    x = (3 + 2 * generator.normal(size=(6, 5, 4))).astype(np.float32)
    mask = generator.random(x.shape) < 0.6 if masked else np.ones(x.shape, bool)
    wide = np.ma.masked_array(x.astype(np.float64), ~mask)
    expected = (wide - wide.mean(axis, keepdims=True)) / wide.std(axis, keepdims=True)
    dirty = np.where(mask, x, np.nan)
    actual = jax.jit(normalization.standardize, static_argnums=1)(dirty, axis, mask)
    np.testing.assert_allclose(actual, expected.filled(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_standardize_constants_is_zero(value):
    standardize = jax.jit(normalization.standardize, static_argnums=1)
    x = jnp.full((1000, 7), value)
    for axis in (None, 0):
        np.testing.assert_array_equal(standardize(x, axis), 0)
        gradient = jax.grad(lambda x, a=axis: standardize(x, a)[0, 0])(x)
        np.testing.assert_array_equal(gradient, 0)
    none = jnp.zeros(x.shape, bool)
    np.testing.assert_array_equal(standardize(x, None, none), 0)
    np.testing.assert_array_equal(standardize(x, 0, none.at[3].set(True)), 0)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_standardize_has_no_unit(generator, unit):
    x = generator.normal(size=50).astype(np.float32)
    np.testing.assert_allclose(
        normalization.standardize(x * np.float32(unit)),
        normalization.standardize(x),
        rtol=1e-5,
        atol=1e-6,
    )


def test_standardize_gradient(generator):
    with jax.enable_x64(True):
        x = jnp.asarray(generator.normal(size=(4, 3)))
        mask = jnp.asarray(generator.random((4, 3)) < 0.8)
        check_grads(jax.jit(normalization.standardize), (x,), 1, rtol=1e-6)
        masked = jax.jit(lambda x: normalization.standardize(x, 0, mask))
        check_grads(masked, (x,), 1, rtol=1e-6)


def test_standardize_wrong_mask_raises():
    with pytest.raises(AssertionError):
        normalization.standardize(jnp.zeros(5), None, jnp.ones((5, 1), bool))
    with pytest.raises(AssertionError):
        normalization.standardize(jnp.zeros(5), None, jnp.ones(5))
