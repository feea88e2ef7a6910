"""Statistics against hand-worked numbers, rliable, scipy and known distributions."""

import jax
import numpy as np
import pytest
import scipy.stats
from rliable import metrics

from rlx.ops import statistics


def scores(seed=0, runs=10, tasks=6):
    return np.random.default_rng(seed).normal(1, 1, size=(runs, tasks))


# ------------------------------------------------------------------------- goldens


def test_golden():
    # Sorted: 0 1 2 3 4 5 6 100. IQM: 2 left out at either end, (2+3+4+5)/4.
    x = np.array([[0.0, 5.0], [100.0, 2.0], [4.0, 3.0], [6.0, 1.0]])
    assert statistics.iqm(x) == 3.5
    assert statistics.mean(x) == 121 / 8
    # Task means 27.5 and 2.75.
    assert statistics.median(x) == (27.5 + 2.75) / 2
    # Clipped at 4: 0 4 4 2 4 3 4 1 has mean 22/8.
    assert statistics.optimality_gap(x, 4.0) == 4 - 22 / 8


def test_probability_of_improvement_golden():
    # Task 1: of the pairs (2,1) (2,2) (5,1) (5,2) three are won and one tied: 3.5/4.
    # Task 2: (0,3) (0,3) lost, (3,3) (3,3) tied: 1/4.
    first = np.array([[2.0, 0.0], [5.0, 3.0]])
    second = np.array([[1.0, 3.0], [2.0, 3.0]])
    value = statistics.probability_of_improvement(first, second)
    assert value == (3.5 / 4 + 1 / 4) / 2
    assert statistics.probability_of_improvement(second, first) == 1 - value
    assert statistics.probability_of_improvement(first, first) == 0.5


def test_wilson_golden():
    # z = 1 (68.27 %), 1 of 2: (1/2 + 1/4 -+ sqrt(1/8 + 1/16))/(3/2)
    # = 1/2 -+ 1/(2 sqrt 3).
    confidence = 2 * scipy.stats.norm.cdf(1) - 1
    interval = statistics.wilson_interval(1, 2, confidence)
    half = 1 / (2 * np.sqrt(3))
    np.testing.assert_allclose(interval, (0.5 - half, 0.5 + half), rtol=1e-12)


# ----------------------------------------------------------------- rliable and scipy


@pytest.mark.parametrize(("runs", "tasks"), [(1, 1), (3, 1), (5, 1), (10, 7), (8, 26)])
def test_point_estimates_against_rliable(runs, tasks):
    x = scores(1, runs, tasks)
    for mine, theirs in [
        (statistics.mean, metrics.aggregate_mean),
        (statistics.median, metrics.aggregate_median),
        (statistics.iqm, metrics.aggregate_iqm),
        (statistics.optimality_gap, metrics.aggregate_optimality_gap),
    ]:
        np.testing.assert_allclose(mine(x), theirs(x), rtol=1e-12)
    expected = scipy.stats.trim_mean(x, 0.25, axis=None)
    np.testing.assert_allclose(statistics.iqm(x), expected, rtol=1e-12)


@pytest.mark.parametrize("decimals", [0, 1, 8])  # few decimals make ties
def test_probability_of_improvement_against_rliable(decimals):
    x = np.round(scores(1, 9, 5), decimals)
    y = np.round(scores(2, 12, 5), decimals)
    np.testing.assert_allclose(
        statistics.probability_of_improvement(x, y),
        metrics.probability_of_improvement(x, y),
        rtol=1e-12,
    )


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_wilson_against_scipy(confidence):
    for s, n in [(0, 1), (0, 20), (3, 20), (20, 20), (999, 1000)]:
        oracle = scipy.stats.binomtest(s, n).proportion_ci(confidence, "wilson")
        actual = statistics.wilson_interval(s, n, confidence)
        np.testing.assert_allclose(actual, (oracle.low, oracle.high), atol=1e-12)
    low, high = statistics.wilson_interval([0, 3, 0], [0, 20, 20], confidence)
    assert (low[0], high[0]) == (0, 1)
    assert low[2] == 0 < high[2] < low[1] + high[1]


def test_leading_axes_are_kept():
    stack = np.stack([scores(0), scores(1)])
    for statistic in (
        statistics.mean,
        statistics.median,
        statistics.iqm,
        statistics.optimality_gap,
    ):
        expected = [statistic(x) for x in stack]
        np.testing.assert_allclose(statistic(stack), expected, rtol=1e-12)
    first, second = stack, stack[::-1]
    np.testing.assert_allclose(
        statistics.probability_of_improvement(first, second),
        [
            statistics.probability_of_improvement(x, y)
            for x, y in zip(first, second, strict=True)
        ],
    )


# ------------------------------------------------------------------------ bootstrap


def naive_interval(x, statistic, num_resamples, seed):
    """One resample, one task, one run at a time."""
    generator = np.random.default_rng(seed)
    estimates = []
    for _ in range(num_resamples):
        columns = [generator.choice(x[:, m], len(x)) for m in range(x.shape[1])]
        estimates.append(statistic(np.stack(columns, axis=1)))
    return np.percentile(estimates, [2.5, 97.5])


@pytest.mark.parametrize(
    ("mine", "oracle"),
    [
        (statistics.iqm, metrics.aggregate_iqm),
        (statistics.median, metrics.aggregate_median),
    ],
)
def test_bootstrap_against_naive_resampling(key, mine, oracle):
    x = scores(3, 12, 4) + np.array([0.0, 1.0, 2.0, 10.0])  # tasks far apart
    actual = statistics.stratified_bootstrap_interval(key, x, mine, 10_000)
    runs = [naive_interval(x, oracle, 1000, seed) for seed in range(4)]
    # The Monte Carlo error of the mean of four naive intervals; ours has less.
    error = np.std(runs, axis=0, ddof=1) / 2
    np.testing.assert_array_less(np.abs(actual - np.mean(runs, axis=0)), 5 * error)
    # Without strata, runs would be drawn across the tasks and the interval be wider.
    pooled = statistics.stratified_bootstrap_interval(key, x.reshape(-1, 1), mine)
    assert pooled.high - pooled.low > 2 * (actual.high - actual.low)


def test_bootstrap_against_scipy(key):
    x = scores(4, 30, 1)
    oracle = scipy.stats.bootstrap(
        (x[:, 0],),
        lambda v, axis: scipy.stats.trim_mean(v, 0.25, axis),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    actual = statistics.stratified_bootstrap_interval(key, x, num_resamples=20_000)
    width = oracle.high - oracle.low
    np.testing.assert_allclose(actual, tuple(oracle), atol=0.03 * width)


def test_bootstrap_of_the_mean_is_the_normal_interval(key):
    # For the mean of many runs, the percentiles are mean -+ z s/sqrt(N M).
    x = scores(5, 400, 3)
    for confidence in (0.5, 0.95):
        actual = statistics.stratified_bootstrap_interval(
            key, x, statistics.mean, 8000, confidence
        )
        z = scipy.stats.norm.ppf((1 + confidence) / 2)
        half = z * np.sqrt(np.mean(x.var(0)) / x.size)
        expected = (x.mean() - half, x.mean() + half)
        np.testing.assert_allclose(actual, expected, atol=0.06 * half)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    # 95 % nominal; the percentile bootstrap of 30 runs covers a little less.
    keys = jax.random.split(jax.random.key(1), 200)
    hits = 0
    for i, k in enumerate(keys):
        low, high = statistics.stratified_bootstrap_interval(
            k, scores(100 + i, 30, 1), statistics.mean, 400
        )
        hits += low <= 1 <= high
    assert 0.90 < hits / 200 < 0.98


def test_bootstrap_draws_each_task_by_itself(key):
    # The mean of four equal columns, each resampled by itself, varies half as much.
    x = scores(9, 30, 1)
    wide = statistics.stratified_bootstrap_interval(key, x, statistics.mean, 8000)
    narrow = statistics.stratified_bootstrap_interval(
        key, np.tile(x, 4), statistics.mean, 8000
    )
    ratio = (wide.high - wide.low) / (narrow.high - narrow.low)
    assert 1.85 < ratio < 2.15


def test_bootstrap_of_pairs(key):
    x, y = scores(6, 20, 3) + 0.5, scores(7, 15, 3)
    probability = statistics.probability_of_improvement
    low, high = statistics.stratified_bootstrap_interval(key, (x, y), probability)
    assert 0.5 < low < probability(x, y) < high < 1
    low, high = statistics.stratified_bootstrap_interval(key, (x, x + 100), probability)
    assert (low, high) == (0, 0)


def test_bootstrap_is_reproducible(key, monkeypatch):
    x = scores(8)
    first = statistics.stratified_bootstrap_interval(key, x)
    assert first == statistics.stratified_bootstrap_interval(key, x)
    assert first != statistics.stratified_bootstrap_interval(jax.random.key(1), x)
    assert first == statistics.stratified_bootstrap_interval(key, x.tolist())
    single = statistics.stratified_bootstrap_interval(key, x[:1])
    assert single.low == single.high == statistics.iqm(x[:1])
    # In chunks: as many resamples, in less memory.
    monkeypatch.setattr(statistics, "MAX_ELEMENTS", 7 * x.size)
    sizes = []

    def spy(resampled):
        sizes.append(len(resampled))
        return statistics.iqm(resampled)

    low, high = statistics.stratified_bootstrap_interval(key, x, spy, 2000)
    assert max(sizes) == 7
    assert sum(sizes) == 2000
    np.testing.assert_allclose((low, high), first, atol=0.05)


# ------------------------------------------------------------------------ bad input


def test_wrong_shapes_raise(key):
    for bad in (np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), 1.0):
        for statistic in (statistics.mean, statistics.median, statistics.iqm):
            with pytest.raises(AssertionError):
                statistic(bad)
    for bad in (np.zeros(3), np.zeros((2, 3, 4))):
        with pytest.raises(AssertionError):
            statistics.stratified_bootstrap_interval(key, bad)
    with pytest.raises(AssertionError):
        statistics.probability_of_improvement(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(AssertionError):
        statistics.wilson_interval(np.zeros(3), np.ones((3, 1)))


def test_bad_values_raise(key):
    x = scores()
    x[2, 1] = np.nan
    for statistic in (statistics.mean, statistics.median, statistics.iqm):
        with pytest.raises(ValueError, match="1 of 60 scores are NaN"):
            statistic(x)
    with pytest.raises(ValueError, match="NaN"):
        statistics.stratified_bootstrap_interval(key, x)
    with pytest.raises(ValueError, match="NaN"):
        statistics.optimality_gap(x)
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match="confidence"):
            statistics.stratified_bootstrap_interval(
                key, scores(), confidence=confidence
            )
        with pytest.raises(ValueError, match="confidence"):
            statistics.wilson_interval(1, 2, confidence)
    with pytest.raises(ValueError, match="num_resamples"):
        statistics.stratified_bootstrap_interval(key, scores(), num_resamples=0)
    for s, n in [(3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="between 0 and trials"):
            statistics.wilson_interval(s, n)
