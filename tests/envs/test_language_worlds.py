"""Worlds of preferences against sums over everything that can be said."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.language import bandit, markov


def random_policy(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.nn.log_softmax(jax.random.normal(key, shape), axis=-1)


@pytest.mark.parametrize("kind", ["tabular", "hidden", "linear"])
def test_the_optimum_of_a_bandit(kind: str, double_precision: None) -> None:
    """J(π*) = J*, and J* − J(π) = β KL(π ‖ π*) for any π."""
    key = jax.random.key(0)
    if kind == "linear":
        world = bandit.linear(key, num_prompts=3, num_responses=4, num_features=2)
        assert np.linalg.norm(world.weight) == pytest.approx(3.0)
        world = world.bandit
    else:
        world = bandit.tabular(key, num_prompts=3, num_responses=4)
        world = bandit.hidden_best(world) if kind == "hidden" else world
    np.testing.assert_allclose(np.exp(world.reference).sum(-1), 1.0)
    best = bandit.optimal_value(world, 0.4)
    found = bandit.value(world, bandit.optimum(world, 0.4), 0.4)
    np.testing.assert_allclose(found, best, rtol=1e-12)
    other = random_policy(jax.random.key(1), world.reward.shape)
    worse = best - bandit.value(world, other, 0.4)
    assert worse > 0.01
    np.testing.assert_allclose(bandit.gap(world, other, 0.4), worse, rtol=1e-10)


def test_the_hidden_best_has_its_logit() -> None:
    world = bandit.tabular(jax.random.key(0), num_responses=5)
    hidden = bandit.hidden_best(world, -3.0)
    best = int(jnp.argmax(world.reward))
    others = np.delete(np.arange(5), best)
    shift = hidden.reference[0, others] - world.reference[0, others]
    np.testing.assert_allclose(shift, shift[0], atol=1e-6)
    np.testing.assert_allclose(hidden.reference[0, best], -3.0 + shift[0], atol=1e-6)


def test_a_policy_may_leave_responses_out() -> None:
    world = bandit.tabular(jax.random.key(0), num_responses=3)
    sure = jnp.array([[0.0, -jnp.inf, -jnp.inf]])
    expected = world.reward[0, 0] + 0.5 * world.reference[0, 0]
    np.testing.assert_allclose(bandit.value(world, sure, 0.5), expected, rtol=1e-6)
    left = bandit.optimal_value(world, 0.5) - expected
    np.testing.assert_allclose(bandit.gap(world, sure, 0.5), left, rtol=1e-5)


def test_labels_are_bradley_and_terry(key: jax.Array) -> None:
    reward, uniform = jnp.array([[0.0, 1.0]]), jnp.log(jnp.full((1, 2), 0.5))
    world = bandit.Bandit(reward, uniform)
    answers = bandit.collect(key, world, uniform, 4000)
    counts = bandit.counted(world, answers)[0]
    np.testing.assert_array_equal(np.diag(counts), 0)
    total = counts.sum()
    assert 1850 < total < 2150  # half of the pairs are the same response twice
    deviation = np.sqrt(0.731 * 0.269 / total)
    assert abs(counts[1, 0] / total - 0.7310586) < 4 * deviation


SMALL = {"num_words": 3, "length": 4, "num_prompts": 2, "scale": 1.0}


def enumerated(chain: markov.Chain, policy: jax.Array, beta: float) -> tuple:
    """E r, KL and J* by a sum over all 3⁴ responses to each prompt."""
    words = np.array(list(itertools.product(range(3), repeat=4)))
    reference = markov.reference_policy(chain)
    found = []
    for x in range(2):
        prompt = np.full(len(words), x)
        mine = np.asarray(markov.log_prob(policy, prompt, words))
        ref = np.asarray(markov.log_prob(reference, prompt, words))
        reward = np.asarray(markov.reward(chain, prompt, words))
        np.testing.assert_allclose(np.exp(mine).sum(), 1.0)
        best = beta * np.log(np.sum(np.exp(ref + reward / beta)))
        found.append((np.exp(mine) @ reward, np.exp(mine) @ (mine - ref), best))
    return tuple(np.mean(found, axis=0))


def test_the_recursion_is_the_sum_over_all_responses(double_precision: None) -> None:
    chain = markov.random(jax.random.key(0), **SMALL)
    policy = random_policy(jax.random.key(1), (2, 4, 3, 3))
    reward, kl, best = enumerated(chain, policy, 0.5)
    found = markov.value(chain, policy)
    np.testing.assert_allclose(found, (reward, kl), rtol=1e-12)
    star, value = markov.optimum(chain, 0.5)
    np.testing.assert_allclose(value, best, rtol=1e-12)
    np.testing.assert_allclose(np.exp(star).sum(-1), 1.0)
    np.testing.assert_allclose(markov.gap(chain, star, 0.5), 0.0, atol=1e-12)
    np.testing.assert_allclose(
        markov.gap(chain, policy, 0.5), best - reward + 0.5 * kl, rtol=1e-12
    )
    still = markov.value(chain, markov.reference_policy(chain))
    np.testing.assert_allclose(still.kl, 0.0, atol=1e-15)


def test_samples_follow_the_policy_and_are_scored(key: jax.Array) -> None:
    chain = markov.random(jax.random.key(0), **SMALL)
    policy, _ = markov.optimum(chain, 0.5)
    prompt = jnp.arange(2).repeat(3000)
    words = markov.sample(key, policy, prompt)
    assert words.shape == (6000, 4) and words.dtype == jnp.int32
    rows = markov.sequences(prompt, words)
    scores = markov.score(chain)(rows)
    np.testing.assert_allclose(scores, markov.reward(chain, prompt, words), rtol=1e-6)
    exact = markov.value(chain, policy).reward
    error = scores.std() / np.sqrt(6000)
    assert abs(scores.mean() - exact) < 4 * error
    np.testing.assert_array_equal(rows.response, [[False] + [True] * 4] * 6000)
    asked = markov.prompts(chain)
    np.testing.assert_array_equal(asked.tokens, [[0], [1]])


def test_worlds_are_mapped_over_seeds() -> None:
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def gaps(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        chain = markov.random(key, **SMALL)
        world = bandit.tabular(key)
        return (
            markov.gap(chain, markov.reference_policy(chain), 0.5),
            bandit.gap(world, world.reference, 0.5),
        )

    together = jax.jit(jax.vmap(gaps))(keys)
    alone = [gaps(key) for key in keys]
    np.testing.assert_allclose(
        np.array(together).T, np.array(alone), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("change", [{"num_prompts": 4}, {"length": 0}])
def test_impossible_chains_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        markov.random(jax.random.key(0), **SMALL | change)


def test_policies_of_another_shape_are_refused() -> None:
    chain = markov.random(jax.random.key(0), **SMALL)
    with pytest.raises(AssertionError):
        markov.value(chain, jnp.zeros((2, 3, 3)))
    world = bandit.tabular(jax.random.key(0))
    with pytest.raises(AssertionError):
        bandit.gap(world, world.reference[0], 0.5)
