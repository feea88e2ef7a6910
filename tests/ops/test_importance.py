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
