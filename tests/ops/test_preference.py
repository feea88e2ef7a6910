"""Preferences: against SciPy, by hand, by finite differences, and by counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.test_util import check_grads

from rlx.ops import preference
from rlx.ops.preference import Answer, Teacher

DIFFERENCE = np.array([-3.0, -0.5, 0.0, 0.7, 4.0])
LABEL = np.array([0.0, 1.0, 0.5, 0.3, 1.0])

# ------------------------------------------------------------------------- likelihood


def test_the_likelihood_is_that_of_a_logistic_distribution():
    found = preference.log_likelihood(jnp.asarray(DIFFERENCE), jnp.asarray(LABEL))
    logistic = scipy.stats.logistic
    expected = LABEL * logistic.logcdf(DIFFERENCE)
    expected += (1 - LABEL) * logistic.logsf(DIFFERENCE)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # R0 = R1 says nothing: log 1/2, whatever the answer.
    np.testing.assert_allclose(found[2], -np.log(2), rtol=1e-6)


def test_the_two_probabilities_add_to_one():
    difference = jnp.asarray(DIFFERENCE)
    one, zero = jnp.ones(5), jnp.zeros(5)
    first = jnp.exp(preference.log_likelihood(difference, one))
    second = jnp.exp(preference.log_likelihood(difference, zero))
    np.testing.assert_allclose(first + second, 1.0, rtol=1e-6)
    swapped = jnp.exp(preference.log_likelihood(-difference, one))
    np.testing.assert_allclose(swapped, second, rtol=1e-6)


@pytest.mark.parametrize("size", [20.0, 100.0, 1e4, 1e30])
def test_certain_answers_are_exact_and_finite(size):
    difference, right = jnp.array([size, -size]), jnp.array([1.0, 0.0])
    found = preference.log_likelihood(difference, right)
    np.testing.assert_allclose(found, -np.exp(-size), rtol=1e-5, atol=1e-37)
    wrong = preference.log_likelihood(difference, 1 - right)
    np.testing.assert_allclose(wrong, -size, rtol=1e-6)
    gradient = jax.grad(lambda d: preference.log_likelihood(d, 1 - right).sum())
    np.testing.assert_allclose(gradient(difference), [-1.0, 1.0], rtol=1e-6)


def test_gradients_by_finite_differences():
    with jax.enable_x64(True):
        difference, label = jnp.asarray(DIFFERENCE), jnp.asarray(LABEL)
        check_grads(jax.jit(preference.log_likelihood), (difference, label), order=1)
        # d/dΔ = y - σ(Δ)
        gradient = jax.grad(lambda d: preference.log_likelihood(d, label).sum())
        expected = LABEL - scipy.stats.logistic.cdf(DIFFERENCE)
        np.testing.assert_allclose(gradient(difference), expected, rtol=1e-12)


def test_one_step_segments_are_a_logistic_regression(generator):
    """The maximum is the one that SciPy finds for the same data."""
    features = generator.normal(size=(200, 3))
    truth = np.array([1.0, -0.5, 0.3])
    label = (generator.uniform(size=200) < 1 / (1 + np.exp(-features @ truth))) * 1.0

    def cross_entropy(weights):
        return np.logaddexp(0, -(2 * label - 1) * (features @ weights)).mean()

    with jax.enable_x64(True):

        @jax.jit
        def loss(weights):
            likelihood = preference.log_likelihood(
                jnp.asarray(features) @ weights, jnp.asarray(label)
            )
            return -preference.weighted_mean(likelihood, jnp.ones(200))

        found = scipy.optimize.minimize(
            loss, np.zeros(3), jac=jax.jit(jax.grad(loss))
        ).x
        expected = scipy.optimize.minimize(cross_entropy, np.zeros(3)).x
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_smoothing_bounds_the_best_difference():
    # eps = 0.1: targets 0.95, 0.05 and, for a tie, 1/2; best at log(0.95 / 0.05).
    found = preference.smooth(jnp.array([1.0, 0.0, 0.5]), 0.1)
    np.testing.assert_allclose(found, [0.95, 0.05, 0.5], rtol=1e-6)
    best = jnp.log(2 / 0.1 - 1)
    gradient = jax.grad(lambda d: preference.log_likelihood(d, found[0]))
    assert abs(float(gradient(best))) < 1e-6
    assert float(gradient(best - 1)) > 0 > float(gradient(best + 1))


# ---------------------------------------------------------------------------- weights


def test_skipped_queries_do_not_count_whatever_they_hold():
    value = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    weight = jnp.array([1.0, 0.0, 1.0, 0.0])
    assert float(preference.weighted_mean(value, weight)) == 2.0
    gradient = jax.grad(preference.weighted_mean)(value, weight)
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5, 0.0])
    nothing = jnp.zeros(4)
    assert float(preference.weighted_mean(value, nothing)) == 0.0
    gradient = jax.grad(preference.weighted_mean)(value, nothing)
    np.testing.assert_array_equal(gradient, np.zeros(4))


def test_agreement_counts_decided_answers():
    # right, wrong, tie (no count), skipped (no count), undecided prediction (wrong)
    difference = jnp.array([2.0, 1.0, 1.0, -1.0, 0.0])
    answer = Answer(jnp.array([1.0, 0.0, 0.5, 0.0, 1.0]), jnp.array([1.0, 1, 1, 0, 1]))
    np.testing.assert_allclose(preference.agreement(difference, answer), 1 / 3)
    ties = Answer(jnp.full(5, 0.5), jnp.ones(5))
    assert float(preference.agreement(difference, ties)) == 0.0


# ---------------------------------------------------------------------------- returns


def test_myopia_discounts_from_the_end():
    # gamma = 1/2: 1/4 * 8 + 1/2 * 2 + 1 * 1 = 4
    reward = jnp.array([[8.0], [2.0], [1.0]])
    found = preference.segment_return(reward, gamma=0.5)
    np.testing.assert_allclose(found, [4.0])
    np.testing.assert_allclose(preference.segment_return(reward), [11.0])


def test_padding_is_no_step_and_no_reward():
    reward = jnp.array([[8.0, 8.0], [2.0, jnp.nan], [jnp.nan, 1.0]])
    mask = jnp.array([[True, True], [True, False], [False, True]])
    # Of two steps each: 8/2 + 2 and 8/2 + 1.
    found = preference.segment_return(reward, mask, 0.5)
    np.testing.assert_allclose(found, [6.0, 5.0])
    total = jax.grad(lambda r: preference.segment_return(r, mask, 0.5).sum())
    np.testing.assert_allclose(total(reward), [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])


# --------------------------------------------------------------------------- teachers


def naive_teacher(first, second, teacher, coin, slip):
    """One query, after the paper's algorithm: index of the better, None, or 'tie'."""
    sums = [sum(first), sum(second)]
    if max(sums) <= teacher.skip_threshold:
        return None
    if abs(sums[0] - sums[1]) < teacher.equal_threshold:
        return "tie"
    length = len(first)
    myopic = [
        sum(r * teacher.gamma ** (length - 1 - t) for t, r in enumerate(segment))
        for segment in (first, second)
    ]
    prob_first = 1 / (1 + np.exp(teacher.rationality * (myopic[1] - myopic[0])))
    chosen = 0 if coin < prob_first else 1
    return 1 - chosen if slip < teacher.mistake else chosen


TEACHERS = {
    "oracle": Teacher(),
    "stochastic": Teacher(rationality=1.0),
    "myopic": Teacher(gamma=0.5),
    "mistaken": Teacher(mistake=0.1),
    "skipping": Teacher(skip_threshold=0.5),
    "equal": Teacher(equal_threshold=0.8),
    "all": Teacher(0.7, 0.8, 0.2, 0.1, 0.5),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_answer_as_the_papers_algorithm(name, generator, key):
    """Frequencies of every kind of answer, over 20 pairs and 400 draws of each."""
    teacher, draws = TEACHERS[name], 400
    first, second = generator.normal(size=(2, 3, 20)).astype(np.float32)
    ask = jax.vmap(preference.ask, (0, None, None, None))
    answer = jax.jit(ask)(
        jax.random.split(key, draws), jnp.asarray(first), jnp.asarray(second), teacher
    )
    assert set(np.unique(answer.preference)) <= {0.0, 0.5, 1.0}
    expected = preference.preference_prob(
        jnp.asarray(first), jnp.asarray(second), teacher
    )
    for i in range(20):
        draw = generator.uniform(size=(2, draws))
        naive = [
            naive_teacher(first[:, i], second[:, i], teacher, coin, slip)
            for coin, slip in draw.T
        ]
        weight = float(answer.weight[0, i])
        assert (weight == 0) == (naive[0] is None)
        np.testing.assert_array_equal(answer.weight[:, i], weight)
        assert expected.weight[i] == weight
        tie = naive[0] in (None, "tie")
        np.testing.assert_array_equal(answer.preference[:, i] == 0.5, tie)
        chances = [0.5 if tie else np.mean([x == 0 for x in naive])]
        chances.append(float(expected.preference[i]))
        spread = 5 * np.sqrt(0.25 / draws)
        for chance in chances:
            assert abs(float(answer.preference[:, i].mean()) - chance) < 1.5 * spread


def test_the_oracle_is_always_right_and_tosses_a_coin_for_equals(key):
    first = jnp.array([[1.0, 0.0, 2.0]])
    second = jnp.array([[0.0, 1.0, 2.0]])
    found = preference.preference_prob(first, second, Teacher())
    np.testing.assert_array_equal(found.preference, [1.0, 0.0, 0.5])
    drawn = jax.vmap(preference.ask, (0, None, None, None))(
        jax.random.split(key, 400), first, second, Teacher()
    ).preference
    np.testing.assert_array_equal(drawn[:, 0], 1.0)
    np.testing.assert_array_equal(drawn[:, 1], 0.0)
    assert set(np.unique(drawn[:, 2])) == {0.0, 1.0}


def test_mistakes_are_as_frequent_as_asked(key):
    reward = jnp.ones((1, 20_000))
    answer = preference.ask(key, reward, 0 * reward, Teacher(mistake=0.1))
    wrong = int((answer.preference == 0).sum())
    interval = scipy.stats.binom.interval(0.9999, 20_000, 0.1)
    assert interval[0] <= wrong <= interval[1]


def test_teachers_are_vmapped_over_their_numbers(key):
    first = jnp.arange(6.0).reshape(2, 3)
    teachers = Teacher(*(jnp.full(2, x) for x in Teacher(1.0, 1.0, 0.0, -9.0, 0.0)))
    teachers = teachers._replace(mistake=jnp.array([0.0, 1.0]))
    found = jax.vmap(preference.ask, (None, None, None, 0))(
        key, first, 0 * first, teachers._replace(rationality=jnp.full(2, jnp.inf))
    )
    np.testing.assert_array_equal(found.preference, [[1, 1, 1], [0, 0, 0]])


def test_thresholds_scale_with_the_segment():
    # A tenth of 200, for 50 of 1000 steps.
    found = preference.threshold(0.1, jnp.float32(200.0), 50, 1000)
    np.testing.assert_allclose(found, 1.0)
    with pytest.raises(ValueError, match="1 to 40 steps"):
        preference.threshold(0.1, jnp.float32(200.0), 50, 40)


def test_shapes_that_do_not_match_raise():
    with pytest.raises(AssertionError):
        preference.log_likelihood(jnp.zeros(3), jnp.zeros((3, 1)))
    with pytest.raises(AssertionError):
        preference.segment_return(jnp.zeros((3, 2)), jnp.ones((3, 1), bool))
    with pytest.raises(AssertionError):
        preference.preference_prob(jnp.zeros((3, 2)), jnp.zeros((3, 1)), Teacher())
    with pytest.raises(AssertionError):
        wrong = Teacher(mistake=jnp.zeros(2))
        preference.preference_prob(jnp.zeros((3, 2)), jnp.zeros((3, 2)), wrong)
