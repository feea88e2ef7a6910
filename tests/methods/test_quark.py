"""Quark: its fixed points in a bandit, its constants, its refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.methods import quark
from rlx.ops.control_tokens import assign_bins
from rlx.types import DataSource, Method
from tests.methods import control_cases as cases

ONE = cases.controls(1)


def conformance_cases() -> dict[str, tuple[Method, DataSource]]:
    config = quark.Config(learning_rate=1e-2)
    return {"scalar": (quark.make(cases.model(ONE), config), cases.source(ONE))}


def test_the_loss_by_hand() -> None:
    """−log p = 2, KL 3, H 5: 2 + 0.05 · 3 − 0.06 · 5."""
    one = [jnp.array([x]) for x in (-2.0, 3.0, 5.0)]
    config = quark.Config()
    terms = {
        "kl_coefficient": config.kl_coefficient,
        "entropy_coefficient": config.entropy_coefficient,
    }
    np.testing.assert_allclose(quark.loss(*one, **terms), [1.85], rtol=1e-6)


ROOM = 6000
bins = jax.jit(assign_bins, static_argnames=("num_groups", "num_bins"))


def levels(reward: np.ndarray, num_bins: int) -> np.ndarray:
    """Bins of rewards of one style, in a pool with room for more."""
    there = np.arange(ROOM) < len(reward)
    padded = np.zeros((ROOM, 1), np.float32)
    padded[: len(reward), 0] = reward
    found = bins(
        jnp.asarray(padded),
        jnp.zeros(ROOM, int),
        jnp.asarray(there),
        num_groups=1,
        num_bins=num_bins,
    )
    return np.asarray(found)[: len(reward), 0]


def best_response(arms: np.ndarray, level: np.ndarray, count: int, bins: int):
    """The softmax behind the best word that minimises Quark's loss, by descent.

    A table of logits, one row for each word; without coefficients.
    """

    def loss(table: jax.Array) -> jax.Array:
        own = jax.nn.log_softmax(table)[level, arms]
        zero = jnp.zeros_like(own)
        each = quark.loss(own, zero, zero, kl_coefficient=0.0, entropy_coefficient=0.0)
        return jnp.mean(each)

    step = jax.jit(lambda x, _: (x - 10.0 * jax.grad(loss)(x), None))
    table = jax.jit(lambda x: jax.lax.scan(step, x, length=4000)[0])(
        jnp.zeros((bins, count))
    )
    return np.asarray(jax.nn.softmax(table[-1]))


def test_one_round_gives_the_distribution_of_the_best_fifth() -> None:
    """By descent on the loss itself; rewards of arms overlap."""
    generator = np.random.default_rng(0)
    arms = generator.integers(0, 6, 1000)
    reward = arms + 2.0 * generator.normal(size=1000)
    best = np.argsort(reward)[800:]
    expected = np.bincount(arms[best], minlength=6) / 200
    found = best_response(arms, levels(reward, 5), 6, 5)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_rounds_without_end_find_the_best_arm() -> None:
    """Exact likelihood is counting; 30 rounds, all of history kept, ten bins."""
    generator = np.random.default_rng(1)
    value = np.array([0.1, 0.5, 0.9, 0.3])
    policy, arms, reward = np.full(4, 0.25), np.empty(0, int), np.empty(0)
    for _ in range(30):
        new = generator.choice(4, 200, p=policy)
        arms = np.concatenate([arms, new])
        reward = np.concatenate([reward, value[new] + 0.1 * generator.normal(size=200)])
        top = levels(reward, 10) == 9
        policy = np.bincount(arms[top], minlength=4) / top.sum()
    assert policy[2] > 0.999


def test_several_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="the control words have 3"):
        quark.make(cases.model(cases.controls(3)))
