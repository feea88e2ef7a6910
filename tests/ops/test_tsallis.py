"""The Tsallis logarithm against float64, finite differences and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlx.ops.tsallis import tsallis_log


@pytest.mark.parametrize("q", [0.0, 0.5, 0.999, 1.0, 1.0001, 1.5, 2.0])
def test_tsallis_log(q):
    x = np.array([1e-3, 0.2, 0.999, 1.0, 1.001, 3.0, 50.0])
    exact = np.log(x) if q == 1 else np.expm1((1 - q) * np.log(x)) / (1 - q)
    actual = tsallis_log(jnp.log(jnp.asarray(x, jnp.float32)), q)
    np.testing.assert_allclose(actual, exact, rtol=3e-5, atol=1e-6)


def test_tsallis_log_gradients_and_limits():
    with jax.enable_x64(True):
        log_x = jnp.array([-7.0, -0.2, 0.0, 0.01, 1.5])
        for q in (0.0, 0.98, 1.0, 1.3, 2.0):
            check_grads(jax.jit(tsallis_log), (log_x, jnp.float64(q)), 1, rtol=1e-6)
    zero = jnp.array([-jnp.inf])
    assert tsallis_log(zero, 1.0) == -np.inf
    assert tsallis_log(zero, 0.5) == -2
    assert tsallis_log(zero, 2.0) == -np.inf
    with pytest.raises(AssertionError):
        tsallis_log(zero, jnp.ones(1))
