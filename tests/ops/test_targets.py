"""Target updates: hand-worked, jitted, over the steps of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlx.ops import targets

PARAMS = {"w": jnp.array([4.0, 8.0]), "n": jnp.array(7)}
TARGET = {"w": jnp.array([0.0, 4.0]), "n": jnp.array(3)}


def run(update, num_steps):
    """Targets after steps 1 ... num_steps of constant parameters."""
    target, history = TARGET, []
    update = jax.jit(update)
    for step in range(1, num_steps + 1):
        target = update(PARAMS, target, jnp.int32(step))
        history.append(target["w"])
    return np.array(history)


def test_frozen():
    np.testing.assert_array_equal(run(targets.frozen(), 2), [TARGET["w"]] * 2)


def test_ema_golden():
    # tau = 1/4: 3/4*0 + 4/4 = 1, 3/4*4 + 8/4 = 5; then 3/4 + 1, 15/4 + 2.
    expected = [[1, 5], [1.75, 5.75]]
    np.testing.assert_array_equal(run(targets.ema(0.25), 2), expected)
    new = targets.ema(0.25)(PARAMS, TARGET, jnp.int32(1))
    assert new["n"] == 7  # no float: copied
    oracle = optax.incremental_update(PARAMS, TARGET, 0.25)
    np.testing.assert_array_equal(new["w"], oracle["w"])


def test_ema_reductions():
    weights = {"w": jnp.array([0.1, 1e8]), "n": jnp.array(7)}
    copied = targets.ema(1.0)(weights, TARGET, jnp.int32(1))
    np.testing.assert_array_equal(copied["w"], weights["w"])
    np.testing.assert_array_equal(run(targets.ema(0.0), 2), [TARGET["w"]] * 2)
    np.testing.assert_array_equal(run(targets.ema(1.0), 2), run(targets.periodic(1), 2))


def test_periodic():
    old, new = TARGET["w"], PARAMS["w"]
    expected = [old, old, new]
    np.testing.assert_array_equal(run(targets.periodic(3), 3), expected)
    oracle = optax.periodic_update(PARAMS, TARGET, jnp.int32(6), 3)
    update = targets.periodic(3)
    jax.tree.map(
        np.testing.assert_array_equal, update(PARAMS, TARGET, jnp.int32(6)), oracle
    )
    jax.tree.map(
        np.testing.assert_array_equal, update(PARAMS, TARGET, jnp.int32(7)), TARGET
    )


def test_sweep_over_tau_and_period():
    taus = jnp.array([0.0, 0.25])
    swept = jax.vmap(lambda tau: targets.ema(tau)(PARAMS, TARGET, jnp.int32(1)))(taus)
    np.testing.assert_array_equal(swept["w"], [[0, 4], [1, 5]])
    periods = jnp.array([2, 3])
    swept = jax.vmap(lambda n: targets.periodic(n)(PARAMS, TARGET, jnp.int32(3)))(
        periods
    )
    np.testing.assert_array_equal(swept["w"], [TARGET["w"], PARAMS["w"]])


def test_precision_is_kept():
    half = {"w": jnp.ones(2, jnp.bfloat16)}
    new = targets.ema(0.5)(half, half, jnp.int32(1))
    assert new["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("update", [targets.ema(0.5), targets.periodic(1)])
def test_different_trees_raise(update):
    for other in ({"w": jnp.zeros((2, 1)), "n": jnp.array(0)}, {"w": jnp.zeros(2)}):
        with pytest.raises(AssertionError):
            update(PARAMS, other, jnp.int32(1))


def test_impossible_values_raise():
    for tau in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="tau"):
            targets.ema(tau)
    for every in (0, -3):
        with pytest.raises(ValueError, match="at least 1"):
            targets.periodic(every)
    with pytest.raises(AssertionError):
        targets.periodic(1.5)
    with pytest.raises(AssertionError):
        targets.ema(jnp.ones(2))
