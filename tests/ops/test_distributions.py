"""Distributions against hand-worked numbers, scipy, Monte Carlo and each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import integrate, special, stats

from rlx.ops import distributions
from rlx.ops.distributions import Categorical, DiagonalGaussian, TanhGaussian

CLOSE = dict(rtol=2e-5, atol=2e-6)


def normals(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gaussian(kind, seed, *shape):
    return kind(jnp.asarray(normals(seed, *shape)), 0.5 * normals(seed + 99, *shape))


def make(name, seed=0, batch=(5,)):
    if name == "categorical":
        return Categorical(jnp.asarray(normals(seed, *batch, 4)))
    kind = {"gaussian": DiagonalGaussian, "tanh": TanhGaussian}[name]
    return gaussian(kind, seed, *batch, 3)


NAMES = ["categorical", "gaussian", "tanh"]


# ------------------------------------------------------------------------- goldens


def test_categorical_golden():
    # softmax(log 1, log 2, log 5) = 1/8, 2/8, 5/8.
    p = Categorical(jnp.log(jnp.array([1.0, 2.0, 5.0])))
    q = Categorical(jnp.zeros(3))
    np.testing.assert_allclose(p.log_prob(jnp.int32(1)), math.log(2 / 8), rtol=1e-6)
    entropy = math.log(8) - (2 * math.log(2) + 5 * math.log(5)) / 8
    np.testing.assert_allclose(p.entropy(), entropy, rtol=1e-6)
    # KL to the uniform distribution is log 3 - entropy.
    kl = distributions.kl_divergence(p, q)
    np.testing.assert_allclose(kl, math.log(3) - entropy, rtol=1e-5)
    assert p.mode() == 2
    assert p.mode().dtype == jnp.int32


def test_gaussian_golden():
    p = DiagonalGaussian(jnp.array([1.0, 0.0]), jnp.log(jnp.array([2.0, 1.0])))
    q = DiagonalGaussian(jnp.zeros(2), jnp.zeros(2))
    # (3-1)/2 = 1, (1-0)/1 = 1: -1/2 - 1/2 - log 2 - log 2 pi.
    expected = -1 - math.log(2) - math.log(2 * math.pi)
    np.testing.assert_allclose(p.log_prob(jnp.array([3.0, 1.0])), expected, rtol=1e-6)
    expected = math.log(2) + math.log(2 * math.pi * math.e)
    np.testing.assert_allclose(p.entropy(), expected, rtol=1e-6)
    # -log 2 + (4 + 1)/2 - 1/2 = 2 - log 2; the second dimension is equal.
    kl = distributions.kl_divergence(p, q)
    np.testing.assert_allclose(kl, 2 - math.log(2), rtol=1e-6)
    # log 2 + (1 + 1)/8 - 1/2.
    kl = distributions.kl_divergence(q, p)
    np.testing.assert_allclose(kl, math.log(2) - 0.25, rtol=1e-6)


def test_tanh_golden():
    # At x = 0 the slope of tanh is 1: the density is the Gaussian's.
    p = TanhGaussian(jnp.zeros(1), jnp.zeros(1))
    expected = -0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(p.log_prob_raw(jnp.zeros(1)), expected, rtol=1e-6)
    # At a = 3/5: x = log 2, 1 - a^2 = 16/25.
    expected += -0.5 * math.log(2) ** 2 - math.log(16 / 25)
    np.testing.assert_allclose(p.log_prob(jnp.array([0.6])), expected, rtol=1e-5)


# --------------------------------------------------------------------------- scipy


def test_categorical_against_scipy():
    p, q = make("categorical", 0), make("categorical", 1)
    probs = special.softmax(p.logits, axis=-1)
    np.testing.assert_allclose(p.entropy(), stats.entropy(probs, axis=-1), **CLOSE)
    np.testing.assert_allclose(
        distributions.kl_divergence(p, q),
        stats.entropy(probs, special.softmax(q.logits, axis=-1), axis=-1),
        **CLOSE,
    )
    action = np.array([0, 1, 2, 3, 0])
    expected = special.log_softmax(p.logits, axis=-1)[np.arange(5), action]
    np.testing.assert_allclose(p.log_prob(action), expected, **CLOSE)


def test_gaussian_against_scipy():
    p = make("gaussian")
    action = normals(3, 5, 3)
    scale = np.exp(p.log_scale)
    expected = stats.norm.logpdf(action, p.mean, scale).sum(-1)
    np.testing.assert_allclose(p.log_prob(action), expected, **CLOSE)
    expected = stats.norm.entropy(p.mean, scale).sum(-1)
    np.testing.assert_allclose(p.entropy(), expected, **CLOSE)


def test_tanh_density_integrates_to_one():
    p = TanhGaussian(jnp.array([0.5]), jnp.array([-0.3]))
    with jax.enable_x64(True):
        p = jax.tree.map(lambda x: x.astype(jnp.float64), p)
        density = jax.jit(lambda a: jnp.exp(p.log_prob(jnp.array([a]))))
        total, _ = integrate.quad(density, -1, 1)
    assert abs(total - 1) < 1e-6


def test_gaussian_kl_is_exact_between_neighbours():
    # Formulas with log(s_q/s_p) + s_p^2/s_q^2 lose everything here: KL = r^2 + O(r^3).
    mean, log_scale = jnp.zeros(1), jnp.zeros(1)
    p = DiagonalGaussian(mean, log_scale + 1e-3)
    kl = distributions.kl_divergence(p, DiagonalGaussian(mean, log_scale))
    np.testing.assert_allclose(kl, 0.5 * np.expm1(2e-3) - 1e-3, rtol=1e-3)


# --------------------------------------------------------------------- Monte Carlo

NUM_SAMPLES = 100_000


def many(p):
    """Many draws of one distribution of batch shape ()."""
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (NUM_SAMPLES, *x.shape)), p)
    return repeated, repeated.sample_and_log_prob(jax.random.key(7))


def assert_mean(samples, expected):
    """The mean of samples is within five standard errors."""
    samples = np.asarray(samples, np.float64)
    error = np.std(samples, axis=0) / np.sqrt(len(samples))
    distance = np.abs(np.mean(samples, axis=0) - np.asarray(expected))
    assert np.all(distance < 5 * error + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_stated_entropy_and_kl(name):
    p, q = make(name, 0, ()), make(name, 1, ())
    repeated, drawn = many(p)
    repeated_q = jax.tree.map(lambda x: jnp.broadcast_to(x, (NUM_SAMPLES, *x.shape)), q)
    if name == "tanh":
        entropy = repeated.entropy(jax.random.key(8))
        difference = np.asarray(entropy) + np.asarray(drawn.log_prob)
        assert_mean(difference, 0)
    else:
        assert_mean(-drawn.log_prob, p.entropy())
    log_ratio = drawn.log_prob - repeated_q.log_prob_raw(drawn.raw)
    assert_mean(log_ratio, distributions.kl_divergence(p, q))


def test_tanh_entropy_estimate_varies_less_than_log_prob():
    repeated, drawn = many(TanhGaussian(jnp.array([0.0, 1.0, 3.0]), -jnp.ones(3)))
    entropy = repeated.entropy(jax.random.key(8))
    assert np.var(entropy) < 0.2 * np.var(drawn.log_prob)


def test_samples_have_the_stated_moments():
    p = make("gaussian", 0, ())
    _, drawn = many(p)
    assert_mean(drawn.action, p.mean)
    assert_mean(np.square(drawn.action - p.mean[None]), np.exp(2 * p.log_scale))
    p = make("categorical", 0, ())
    _, drawn = many(p)
    assert_mean(jax.nn.one_hot(drawn.action, 4), jax.nn.softmax(p.logits))


# ------------------------------------------------------------------ shared promises


@pytest.mark.parametrize("name", NAMES)
def test_sample_and_log_prob_is_consistent(name):
    p, key = make(name), jax.random.key(3)
    action, log_prob, raw = p.sample_and_log_prob(key)
    np.testing.assert_array_equal(action, p.sample(key))
    np.testing.assert_array_equal(action, p.action_from_raw(raw))
    np.testing.assert_allclose(log_prob, p.log_prob_raw(raw), **CLOSE)
    np.testing.assert_allclose(log_prob, p.log_prob(action), rtol=1e-4, atol=1e-5)
    assert log_prob.shape == (5,)


@pytest.mark.parametrize("name", NAMES)
def test_kl_of_equals_is_zero_with_zero_gradient(name):
    p = make(name)
    np.testing.assert_array_equal(distributions.kl_divergence(p, p), np.zeros(5))

    def total(p, q):
        return distributions.kl_divergence(p, q).sum()

    for gradient in jax.tree.leaves(jax.grad(total, (0, 1))(p, p)):
        np.testing.assert_allclose(gradient, 0, atol=1e-7)


def everything(p, q, raw, key):
    return (
        p.mode(),
        p.log_prob(p.action_from_raw(raw)),
        p.log_prob_raw(raw),
        p.entropy(key),
        p.sample_and_log_prob(key),
        distributions.kl_divergence(p, q),
    )


@pytest.mark.parametrize("name", NAMES)
def test_eager_jit_vmap_agree(name):
    p, q = make(name, 0), make(name, 1)
    key = jax.random.key(0)
    raw = p.sample_and_log_prob(jax.random.key(1)).raw
    expected = everything(p, q, raw, key)
    jitted = jax.jit(everything)(p, q, raw, key)
    keys = jnp.stack([key, jax.random.key(9)])
    pair = jax.tree.map(lambda x: jnp.stack([x, x]), (p, q, raw))
    mapped = jax.vmap(everything)(*pair, keys)
    mapped = jax.tree.map(lambda x: x[0], mapped)
    for actual in (jitted, mapped):
        for x, y in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        p, q = (
            jax.tree.map(lambda x: jnp.float64(x), make(name, seed, (2,)))
            for seed in (0, 1)
        )
        key = jax.random.key(0)
        raw = p.sample_and_log_prob(jax.random.key(1)).raw

        def of_floats(p, q, raw):
            drawn = p.sample_and_log_prob(key)
            outputs = [
                p.log_prob_raw(raw),
                p.entropy(key),
                distributions.kl_divergence(p, q),
            ]
            if name != "categorical":
                outputs += [*drawn, p.log_prob(p.action_from_raw(raw))]
            return outputs

        if name == "categorical":
            of_parameters = jax.jit(lambda p, q: of_floats(p, q, raw))
            check_grads(of_parameters, (p, q), 1, rtol=1e-6)
        else:
            check_grads(jax.jit(of_floats), (p, q, raw), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["gaussian", "tanh"])
def test_wrong_shapes_raise(name):
    p = make(name)
    for shape in [(5,), (3,), (5, 1), (1, 3), (5, 3, 1)]:
        with pytest.raises(AssertionError):
            p.log_prob(jnp.zeros(shape))
        with pytest.raises(AssertionError):
            p.log_prob_raw(jnp.zeros(shape))
        narrow = type(p)(p.mean, jnp.zeros(shape))
        with pytest.raises(AssertionError):
            narrow.sample(jax.random.key(0))
        with pytest.raises(AssertionError):
            narrow.entropy(jax.random.key(0))
        with pytest.raises(AssertionError):
            distributions.kl_divergence(p, narrow)


def test_categorical_wrong_input_raises():
    p = make("categorical")
    for shape in [(), (1,), (5, 1), (5, 4)]:
        with pytest.raises(AssertionError):
            p.log_prob(jnp.zeros(shape, int))
    with pytest.raises(AssertionError):
        p.log_prob(jnp.zeros(5))  # a float action
    with pytest.raises(AssertionError):
        distributions.kl_divergence(p, Categorical(p.logits[:1]))
    # Out of range is not silently another action.
    assert np.isnan(p.log_prob(jnp.array([4, -1, 9, -4, 5]))).all()


def test_kl_of_different_kinds_raises():
    with pytest.raises(TypeError, match="Categorical and DiagonalGaussian"):
        distributions.kl_divergence(make("categorical"), make("gaussian"))
    with pytest.raises(TypeError, match="one kind"):
        distributions.kl_divergence(make("tanh"), make("gaussian"))


# ---------------------------------------------------------------------- categorical


def test_forbidden_actions():
    logits = jnp.array([0.0, -jnp.inf, 1.0])
    p = Categorical(logits)
    short = Categorical(logits[jnp.array([0, 2])])
    np.testing.assert_allclose(p.entropy(), short.entropy(), rtol=1e-6)
    assert p.log_prob(jnp.int32(1)) == -np.inf
    q = Categorical(jnp.array([0.5, -jnp.inf, 0.0]))
    np.testing.assert_allclose(
        distributions.kl_divergence(p, q),
        distributions.kl_divergence(short, Categorical(jnp.array([0.5, 0.0]))),
        rtol=1e-6,
    )
    assert distributions.kl_divergence(Categorical(jnp.zeros(3)), p) == np.inf

    def total(logits):
        p = Categorical(logits)
        kl = distributions.kl_divergence(p, q)
        return p.entropy() + kl + p.log_prob(jnp.int32(0))

    gradient = jax.grad(total)(logits)
    assert np.isfinite(gradient).all()
    assert gradient[1] == 0
    assert gradient[0] != 0
    keys = jax.random.split(jax.random.key(0), 1000)
    assert not np.any(jax.vmap(p.sample)(keys) == 1)


@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e30])
def test_categorical_extreme_logits(scale):
    def total(logits):
        p, q = Categorical(logits), Categorical(-0.5 * logits)
        return p.entropy() + p.log_prob(jnp.int32(0)), distributions.kl_divergence(p, q)

    outputs, gradient = jax.jacrev(lambda x: (total(x), total(x)), has_aux=True)(
        scale * jnp.array([1.0, 0.0, -1.0])
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((outputs, gradient)))


# ------------------------------------------------------------------- tanh, squashing


def test_log_det_is_exact_where_the_naive_form_fails():
    raw = np.array([-30.0, -9.5, -3.0, 0.0, 0.3, 8.0, 20.0, 40.0])
    p = TanhGaussian(jnp.zeros((8, 1)), jnp.zeros((8, 1)))
    actual = p.base.log_prob(raw[:, None]) - p.log_prob_raw(
        jnp.asarray(raw[:, None], jnp.float32)
    )
    # log(1 - tanh^2) = -2 log cosh = 2 log 2 - 2|x| - 2 log(1 + exp(-2|x|)), float64.
    x = np.abs(raw)
    exact = 2 * (np.log(2) - x - np.log1p(np.exp(-2 * x)))
    np.testing.assert_allclose(actual, exact, rtol=1e-4, atol=1e-5)
    assert np.log1p(-np.square(np.tanh(np.float32(9.0)))) < -15.9  # exact: -16.6
    with np.errstate(divide="ignore"):
        assert np.log1p(-np.square(np.tanh(np.float32(10.5)))) == -np.inf


@pytest.mark.parametrize("raw", [0.0, 5.0, 100.0, -100.0])
def test_saturated_actions_have_finite_gradients(raw):
    def total(mean, log_scale, raw):
        p = TanhGaussian(mean, log_scale)
        return p.log_prob_raw(raw) + p.log_prob(p.action_from_raw(raw))

    args = jnp.array([raw / 2]), jnp.zeros(1), jnp.array([raw])
    value, gradients = jax.value_and_grad(total, (0, 1, 2))(*args)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_the_derivatives_of_the_log_det_are_those_of_its_form(double_precision):
    del double_precision
    raw = jnp.array([-30.0, -9.0, -0.7, 0.0, 1e-3, 0.4, 3.0, 25.0])

    def of_terms(x):
        return 2 * (np.log(2) - x - jax.nn.softplus(-2 * x))

    def of_log_prob(x):  # the Gaussian of mean x and scale 1, at its own mean
        unit = distributions.TanhGaussian(x, jnp.zeros(1))
        return -unit.log_prob_raw(x) - 0.5 * np.log(2 * np.pi)

    for order in range(3):
        expected, found = of_terms, lambda x: of_log_prob(x[None])
        for _ in range(order):
            expected, found = jax.grad(expected), jax.grad(found)
        np.testing.assert_allclose(
            jax.vmap(found)(raw), jax.vmap(expected)(raw), rtol=1e-12, atol=1e-12
        )


def test_log_prob_at_and_beyond_the_bounds():
    p = TanhGaussian(jnp.array([1.0]), jnp.array([0.5]))
    inside = p.log_prob(jnp.array([1 - 2.0**-23]))
    for action in (1.0, 1.5):
        np.testing.assert_array_equal(p.log_prob(jnp.array([action])), inside)
        np.testing.assert_array_equal(jax.grad(p.log_prob)(jnp.array([action])), [0.0])
    assert np.isfinite(inside)
    raw = jnp.linspace(-5, 5, 21)[:, None]
    p = TanhGaussian(jnp.zeros((21, 1)), jnp.zeros((21, 1)))
    actual = p.log_prob(jnp.tanh(raw))
    np.testing.assert_allclose(actual, p.log_prob_raw(raw), rtol=2e-3, atol=1e-3)


def test_tanh_kl_is_the_gaussian_kl_and_entropy_needs_a_key():
    p, q = make("tanh", 0), make("tanh", 1)
    np.testing.assert_array_equal(
        distributions.kl_divergence(p, q), distributions.kl_divergence(p.base, q.base)
    )
    with pytest.raises(ValueError, match="give a key"):
        p.entropy(None)


@pytest.mark.parametrize(
    "maker", [distributions.diagonal_gaussian, distributions.tanh_gaussian]
)
def test_free_and_state_dependent_scales(maker):
    mean, free = jnp.asarray(normals(0, 2, 5, 3)), jnp.array([0.1, 0.2, 0.3])
    p = maker(mean, free)
    assert p.log_scale.shape == mean.shape
    np.testing.assert_array_equal(p.log_scale[1, 4], free)
    per_state = maker(mean, p.log_scale)
    np.testing.assert_array_equal(per_state.log_scale, p.log_scale)
    for shape in [(), (2,), (1,), (5, 3), (2, 5, 1)]:
        with pytest.raises(AssertionError):
            maker(mean, jnp.zeros(shape))


# ---------------------------------------------------------------------------- boxes


def test_rescale_golden():
    # [-1, 1] -> [0, 4] and [-3, -1].
    action = jnp.array([[-1.0, 0.0], [0.5, 1.0]])
    rescaled = distributions.rescale_to_box(action, (0.0, -3.0), (4.0, -1.0))
    np.testing.assert_array_equal(rescaled, [[0, -2], [3, -1]])
    back = distributions.rescale_from_box(rescaled, (0.0, -3.0), (4.0, -1.0))
    np.testing.assert_array_equal(back, action)
    scalar = distributions.rescale_to_box(action, -2.0, 2.0)
    np.testing.assert_array_equal(scalar, 2 * action)
    assert scalar.dtype == jnp.float32


def test_rescale_bad_bounds_raise():
    action = jnp.zeros((5, 2))
    for low, high in [(-np.inf, 1.0), (0.0, np.inf), (np.nan, 1.0)]:
        with pytest.raises(ValueError, match="finite bounds"):
            distributions.rescale_to_box(action, low, high)
    for low, high in [(1.0, 1.0), ((0.0, 2.0), (1.0, 1.0))]:
        with pytest.raises(ValueError, match="minimum < maximum"):
            distributions.rescale_from_box(action, low, high)
    for low in [(0.0,), (0.0, 0.0, 0.0), np.zeros((5, 1)), np.zeros((1, 5, 2))]:
        with pytest.raises(AssertionError):
            distributions.rescale_to_box(action, low, 1.0)
