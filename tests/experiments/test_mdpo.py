"""The records of experiments.mdpo, joined."""

import numpy as np
import pytest

from experiments.mdpo import on_policy


def record(seeds, steps, slope):
    """Returns that are linear in the step, so that interpolating them is exact."""
    steps = np.array(steps)
    returns = steps[:, None] * slope + np.array(seeds)
    return {"seeds": seeds, "steps": steps.tolist(), "returns": returns.tolist()}


def test_records_of_other_evaluation_steps_are_joined_at_those_of_the_first():
    first = record([0, 1], [0, 24, 48, 72, 100], 2.0)
    second = record([4], [0, 26, 50, 100], 3.0)
    steps, returns = on_policy.join([first, second])
    np.testing.assert_array_equal(steps, [0, 24, 48, 72, 100])
    np.testing.assert_allclose(
        returns, [[0, 1, 4], [48, 49, 76], [96, 97, 148], [144, 145, 220],
                  [200, 201, 304]]
    )  # fmt: skip


def test_records_of_equal_steps_are_joined_unchanged():
    parts = [record([0], [0, 7, 10], 1 / 3), record([1], [0, 7, 10], 1 / 7)]
    _, returns = on_policy.join(parts)
    expected = np.concatenate([part["returns"] for part in parts], axis=1)
    np.testing.assert_array_equal(returns, expected)


def test_records_that_cannot_be_joined_say_why():
    part = record([0, 1], [0, 10], 1.0)
    with pytest.raises(ValueError, match=r"a seed twice: \[0, 1, 1\]"):
        on_policy.join([part, record([1], [0, 10], 1.0)])
    with pytest.raises(ValueError, match=r"end at different steps: \[10, 12\]"):
        on_policy.join([part, record([2], [0, 12], 1.0)])
