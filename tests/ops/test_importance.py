import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.ops import importance

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # rlax imports tensorflow_probability
    import rlax


def test_ratios_are_exact_and_never_overflow():
    log_prob = jnp.array([-1.0, 0.5, 500.0, -500.0])
    got = importance.ratio(log_prob, jnp.array([-1.0, 1.5, 0.0, 0.0]))
    np.testing.assert_allclose(
        got, np.exp([0.0, -1.0, 20.0, -20.0], dtype=np.float32), rtol=1e-6
    )


def test_the_surrogate_is_rlax_s():
    keys = jax.random.split(jax.random.key(0), 3)
    new, old, advantage = (jax.random.normal(key, (50,)) for key in keys)
    got = importance.clipped_surrogate(new, old, advantage, 0.2)
    expected = rlax.clipped_surrogate_pg_loss(jnp.exp(new - old), advantage, 0.2)
    np.testing.assert_allclose(-got.mean(), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1), (1,)])
def test_shapes_that_would_broadcast_are_refused(shape):
    x = jnp.zeros((3,))
    with pytest.raises(AssertionError):
        importance.ratio(x, jnp.zeros(shape))
    with pytest.raises(AssertionError):
        importance.clipped_surrogate(x, x, jnp.zeros(shape), 0.2)


def test_truncated_weights_are_constants_between_nought_and_the_cap():
    """π/μ = 2, 1/2 and 8, C = 3."""
    ours, theirs = (
        jnp.log(jnp.array([0.4, 0.1, 0.8])),
        jnp.log(jnp.array([0.2, 0.2, 0.1])),
    )
    np.testing.assert_allclose(
        importance.truncated(ours, theirs, 3.0), [2.0, 0.5, 3.0], rtol=1e-6
    )

    def total(*x):
        return importance.truncated(*x, 3.0).sum()

    for gradient in jax.grad(total, (0, 1))(ours, theirs):
        np.testing.assert_array_equal(gradient, 0.0)


def test_the_mean_of_k3_is_the_divergence():
    """Exactly, by the sum over all outcomes."""
    one, two = np.random.default_rng(0).dirichlet(np.ones(6), 2)
    each = importance.k3(jnp.log(jnp.asarray(one)), jnp.log(jnp.asarray(two)))
    assert (each >= 0).all()
    exact = (one * np.log(one / two)).sum()
    np.testing.assert_allclose((one * each).sum(), exact, rtol=1e-5)
    far = importance.k3(jnp.array([-500.0, 0.0]), jnp.array([0.0, -500.0]))
    np.testing.assert_allclose(far, [np.exp(20) - 21, 499.0], rtol=1e-5)


def test_mismatch_of_what_counts():
    ours, theirs = (
        jnp.log(jnp.array([0.5, 0.2, 0.9])),
        jnp.log(jnp.array([0.25, 0.4, 0.1])),
    )
    found = importance.mismatch(ours, theirs, jnp.array([True, True, False]))
    np.testing.assert_allclose(found.mean_absolute, np.log(2.0), rtol=1e-6)
    kl = ((2 - np.log(2) - 1) + (0.5 + np.log(2) - 1)) / 2
    np.testing.assert_allclose(found.kl, kl, rtol=1e-6)
    np.testing.assert_allclose(found.largest_ratio, 2.0, rtol=1e-6)
    nothing = importance.mismatch(ours, theirs, jnp.zeros(3, bool))
    np.testing.assert_array_equal(jnp.stack(nothing), 0.0)
