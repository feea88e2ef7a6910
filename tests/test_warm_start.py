"""Runs that begin with what was learned elsewhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlx import train
from tests import fitting, toy
from tests.fit_process import settings

METHOD = toy.method()


def fit(method: Any = METHOD, num_steps: int = 16, **options: Any) -> train.Result:
    """A fit of the toy."""
    defaults = {"num_steps": num_steps, "seeds": 2, "settings": settings()}
    return train.fit(method, toy.source(), **{**defaults, **options})


@pytest.fixture(scope="module")
def whole() -> train.Result:
    """Seeds 0 and 1, without a warm start."""
    return fit(num_steps=160)


def test_runs_begin_with_what_was_learned_elsewhere(whole: train.Result):
    learned = whole.state.learner.params
    again = fit(num_steps=48, start={"params": learned})
    # The same evaluation keys at iteration 0 and another policy than at the start.
    assert not np.array_equal(again.returns[0], whole.returns[0])
    frozen = fit(METHOD._replace(optimizer=optax.sgd(0.0)), start={"params": learned})
    fitting.assert_same(frozen.state.learner.params, learned)
    fitting.assert_same(frozen.state.learner.target_params, learned)


def test_a_warm_start_does_not_depend_on_its_neighbours(whole: train.Result):
    learned = whole.state.learner.params
    both = fit(num_steps=48, start={"params": learned})
    second = jax.tree.map(lambda x: x[1:], learned)
    solo = fit(num_steps=48, seeds=[1], start={"params": second})
    one = jax.tree.map(lambda x: x[1:], both.state.learner)
    fitting.assert_same(one, solo.state.learner)


def test_stats_can_be_given_too():
    method = METHOD._replace(init_stats=lambda num_envs: jnp.zeros(3))
    given = jnp.arange(6.0).reshape(2, 3)
    result = fit(method, start={"stats": given})
    np.testing.assert_array_equal(result.state.learner.stats, given)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"weights": jnp.zeros(2)}, "expected params or stats"),
        ({"params": {"bias": jnp.zeros(3)}}, r"2 runs .* float32\[2\], got .*\[3\]"),
        ({"params": {"bias": jnp.zeros(2, jnp.int32)}}, "got int32"),
        ({"params": {"other": jnp.zeros(2)}}, "structure"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(start: Any, message: str):
    with pytest.raises(ValueError, match=message):
        fit(start=start)
