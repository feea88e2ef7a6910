"""The measures of how well AM-Q ranks, against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from experiments.uni_o4 import ranking


def test_spearman_is_scipys() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 40))
    expected = stats.spearmanr(first, second).statistic
    assert ranking.spearman(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("score", "share"),
    [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([1, 3, 2, 4], 5 / 6)],
)
def test_share_of_pairs_in_the_right_order(score: list[int], share: float) -> None:
    truth = np.array([10.0, 20.0, 30.0, 40.0])
    assert ranking.in_order(np.array(score), truth) == pytest.approx(share)
