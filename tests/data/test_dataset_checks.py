"""Every fault that `dataset_checks` names, put into sound data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rlx.data import dataset as datasets
from rlx.data.dataset import Dataset, DatasetError, Metadata
from rlx.data.dataset_record import from_arrays
from rlx.types import Box, Discrete, EnvSpec
from tests.data.test_dataset import episode, joined, three

SPEC = EnvSpec("half_cheetah", Box((2,)), Box((3,), -1.0, 1.0), 30)


def sound(count: int = 6, metadata: Metadata | None = None) -> Dataset:
    """Episodes of 30 steps, cut by the limit, and one that terminates earlier."""
    parts = [episode(30, 50 * i, terminal=False) for i in range(count)]
    return from_arrays(joined(*parts, episode(21, 990)), metadata or Metadata())


def changed(data: Dataset, **fields) -> Dataset:
    """The same data with other arrays."""
    kept = data.transitions.replace(**fields)
    return dataclasses.replace(data, transitions=kept)


def found(data: Dataset, spec: EnvSpec | None = None) -> list[tuple[str, str]]:
    return [(item.severity, item.check) for item in datasets.report(data, spec)]


def text(data: Dataset, spec: EnvSpec | None = None) -> str:
    return "\n".join(map(str, datasets.report(data, spec)))


def test_sound_data_have_no_findings():
    assert found(sound()) == found(sound(), SPEC) == []
    named = sound(metadata=Metadata(env="half_cheetah", time_limit=30))
    assert found(named, SPEC) == []
    datasets.require(named, "here", SPEC)


def test_numbers():
    for name, label in (
        ("observation", "observations"),
        ("action", "actions"),
        ("reward", "rewards"),
        ("next_observation", "next_observations"),
    ):
        data = sound()
        array = getattr(data.transitions, name).copy()
        array[[40, 41]] = np.inf if name == "action" else np.nan
        bad = changed(data, **{name: array})
        assert ("error", "finite") in found(bad)
        assert (
            f"{label} hold NaN or infinity in 2 of 201 rows, first in row 40"
            in text(bad)
        )
    with pytest.raises(DatasetError, match="^file: refused: finite: next_obs.*NaN"):
        datasets.require(bad, "file")
    gamma = changed(sound(), discount=0.99 * sound().transitions.discount)
    assert "gamma belongs to the method" in text(gamma)
    still = changed(sound(), reward=np.zeros(201, np.float32))
    assert found(still) == [("warn", "rewards")]


def test_shapes():
    data = sound()
    short = changed(data, reward=data.transitions.reward[:-1])
    assert found(short) == [("error", "shapes")]
    assert "rewards 200" in text(short)
    column = changed(data, reward=data.transitions.reward[:, None])
    assert "rewards must have the shape [N], got (201, 1)" in text(column)
    wide = np.zeros((201, 3), np.float32)
    assert "must agree" in text(changed(data, next_observation=wide))


def test_borders():
    data = sound()
    missing = data.transitions.truncated.copy()
    missing[59] = False  # the second episode runs into the third
    torn = changed(data, truncated=missing)
    assert found(torn) == [("error", "borders")]
    assert "1 of 195 steps inside episodes" in text(torn)
    assert "first row 59: timeouts are missing" in text(torn)
    order = np.random.default_rng(0).permutation(200)  # the last row stays
    order = np.append(order, 200)
    kept = data.transitions
    shuffled = type(kept)(
        **{
            field: getattr(kept, field)[order]
            for field in (
                *("observation", "action", "reward"),
                *("discount", "truncated", "next_observation"),
            )
        }
    )
    assert "not in the order of time" in text(Dataset(shuffled))
    open_end = data.transitions.discount.copy()
    open_end[-1] = 1.0
    assert found(changed(data, discount=open_end)) == [("error", "borders")]
    both = data.transitions.truncated.copy()
    both[-1] = True
    assert "terminal and cut at once" in text(changed(data, truncated=both))


def as_terminals(data: Dataset) -> Dataset:
    """Timeouts marked as terminals: the classic."""
    cut = data.transitions.truncated
    return changed(
        data,
        discount=np.where(cut, 0.0, data.transitions.discount).astype(np.float32),
        truncated=np.zeros_like(cut),
    )


@pytest.mark.parametrize("known", ["spec", "metadata"])
def test_timeouts_marked_as_terminals(known):
    metadata = Metadata(time_limit=30 if known == "metadata" else None)
    spec = SPEC if known == "spec" else None
    wrong = as_terminals(sound(metadata=metadata))
    assert found(wrong, spec) == [("error", "timeouts")]
    assert "all 6 episodes that last exactly 30 steps, the time limit" in text(
        wrong, spec
    )
    once = as_terminals(sound(1, metadata))
    assert found(once, spec) == [("warn", "timeouts")]


def test_timeouts_marked_as_terminals_without_a_known_limit():
    wrong = as_terminals(sound())  # beside them, one that ended earlier
    assert found(wrong) == [("warn", "timeouts")]
    parts = joined(*(episode(30, 50 * i) for i in range(6)))
    every = from_arrays(parts, Metadata())
    assert found(every) == [("error", "timeouts")]
    assert "6 of 6 episodes end as terminal after exactly 30 steps" in text(every)
    # A task that does end then says so by its limit.
    assert found(every, dataclasses.replace(SPEC, time_limit=100)) == []


def test_missing_timeouts():
    data = sound()
    glued = changed(data, truncated=np.zeros(201, bool))
    assert found(glued, SPEC) == [("error", "borders"), ("error", "timeouts")]
    assert "1 of 1 episodes are longer than the time limit of 30 steps" in text(
        glued, SPEC
    )
    endless = from_arrays(episode(20_000, 0, terminal=False), Metadata())
    assert found(endless) == [("warn", "timeouts")]


def test_duplicates():
    parts = [episode(30, 50 * i, terminal=False) for i in (0, 1, 2, 1, 1, 0)]
    data = from_arrays(joined(*parts), Metadata())
    assert found(data) == [("warn", "duplicates")]
    assert "3 of 6 episodes are copies of others, such as episode 5 of" in text(data)


def scaled(*scales: float, metadata: Metadata | None = None) -> Dataset:
    parts = [
        episode(30, 50 * i, terminal=False, scale=scale)
        for i, scale in enumerate(scales)
    ]
    return from_arrays(joined(*parts), metadata or Metadata())


def test_mixed_action_scales():
    mixed = scaled(1, 1, 2, 1, 2)
    assert found(mixed, SPEC) == [("error", "actions")]
    assert "mixed action scales:" in text(mixed, SPEC)
    assert "in 2 of 5 episodes leave the bounds [-1, 1], up to 2" in text(mixed, SPEC)
    assert found(mixed) == []  # nothing says that one of the two is wrong
    bounds = Metadata(action_minimum=(-1.0,) * 3, action_maximum=(1.0,) * 3)
    assert found(scaled(1, 2, metadata=bounds)) == [("error", "actions")]
    every = scaled(2, 2)
    assert found(every, SPEC) == [("error", "actions")]
    assert "mixed" not in text(every, SPEC)
    apart = scaled(1, 1, 100, 1)
    assert found(apart) == [("error", "actions")]
    assert "reach 1 in 3 episodes and at least 99.9 in 1" in text(apart)
    # Inside known bounds it may be a timid policy beside a bold one.
    assert found(scaled(1, 1, 0.01), SPEC) == [("warn", "actions")]
    rounded = changed(
        scaled(1, 1), action=scaled(1, 1).transitions.action * np.float32(1 + 1e-6)
    )
    assert found(rounded, SPEC) == []


def test_bounds_per_element():
    spec = dataclasses.replace(
        SPEC, action=Box((3,), (-1.0, -1.0, -3.0), (1.0, 1.0, 3.0))
    )
    data = scaled(1, 1)
    action = data.transitions.action.copy()
    action[:, 2] *= 3
    assert found(changed(data, action=action), spec) == []
    action[:, 1] *= 3
    assert found(changed(data, action=action), spec) == [("error", "actions")]


def test_another_task():
    other = dataclasses.replace(SPEC, name="hopper", observation=Box((11,)))
    assert found(sound(), other) == [("error", "task")]
    assert "(2,), but those of hopper have (11,): the data are of another" in text(
        sound(), other
    )
    wide = dataclasses.replace(SPEC, action=Box((6,), -1.0, 1.0))
    assert found(sound(), wide) == [("error", "task")]
    # Walker2d's arrays are as large as HalfCheetah's: the name tells.
    named = sound(metadata=Metadata(env="walker2d"))
    assert "the data are of walker2d, not of half_cheetah" in text(named, SPEC)
    assert found(named, SPEC) == [("error", "task")]
    gym = sound(metadata=Metadata(env="HalfCheetah-v5"))
    assert found(gym, SPEC) == [("warn", "task")]


def test_discrete_actions():
    spec = EnvSpec("maze", Box((2,)), Discrete(3), 30)
    data = from_arrays({**three(), "actions": np.arange(9) % 3}, Metadata())
    assert found(data, spec) == []
    four = from_arrays({**three(), "actions": np.arange(9) % 4}, Metadata())
    assert found(four, spec) == [("error", "actions")]
    real = from_arrays({**three(), "actions": np.zeros(9)}, Metadata())
    assert "are the integers 0 to 2" in text(real, spec)


def test_many_errors_become_one_line():
    data = sound()
    broken = changed(
        as_terminals(data),
        reward=np.full(201, np.nan, np.float32),
        action=data.transitions.action * 9,
        observation=np.full((201, 2), np.inf, np.float32),
    )
    with pytest.raises(DatasetError, match="; and 2 more$") as error:
        datasets.require(broken, "file", SPEC)
    assert "\n" not in str(error.value)
