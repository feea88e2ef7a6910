"""Is a dataset what it claims to be? Every doubt as a finding in words.

An *error* makes results wrong: `rlx.data.dataset.load` refuses the data. A *warn* may
be meant. What cannot be seen cannot be found: bounds, time limit and name of the task
come from an `EnvSpec` or from the metadata, and checks that need them are silent
without.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from rlx.data.dataset_record import Dataset, DatasetError, to_arrays
from rlx.types import Box, EnvSpec

_TOLERANCE = 1e-3
"""Of the range of an action: bounds are met in single precision, not exactly."""
_LONG = 20
"""Steps of an episode from which the largest action says something about the scale."""
_APART = 10.0
"""Largest actions of two groups of episodes that differ by as much were scaled apart:
policies of different skill have not differed by half of it in bounded tasks."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong, or that may be."""

    severity: str
    """`error` or `warn`."""
    check: str
    """Which check found it, in one word."""
    text: str
    """What is wrong, where, and what to do."""

    def __str__(self) -> str:
        return f"{self.severity.upper():5}  {self.check}: {self.text}"


def report(dataset: Dataset, spec: EnvSpec | None = None) -> list[Finding]:
    """Return everything that looks wrong, errors first; nothing for a sound dataset.

    Args:
      dataset: as read or made.
      spec: the environment the data are wanted for; None: only what they say
        themselves.
    """
    found = list(_shapes(dataset))
    if not found:  # what follows counts on arrays that belong together
        for check in (_numbers, _borders, _time_limit, _duplicates):
            found += check(dataset, spec)
        found += _task(dataset, spec)
        found += _actions(dataset, spec)
    return sorted(found, key=lambda finding: finding.severity)


def require(dataset: Dataset, where: str, spec: EnvSpec | None = None) -> None:
    """Refuse a dataset with errors.

    Raises:
      DatasetError: says the first errors and how many more there are.
    """
    errors = [item for item in report(dataset, spec) if item.severity == "error"]
    if errors:
        texts = "; ".join(f"{item.check}: {item.text}" for item in errors[:3])
        more = f"; and {len(errors) - 3} more" if len(errors) > 3 else ""
        raise DatasetError(f"{where}: refused: {texts}{more}")


# -------------------------------------------------------------------------- the arrays


def _shapes(dataset: Dataset) -> Iterator[Finding]:
    kept = dataset.transitions
    arrays = {**to_arrays(dataset), "discount": np.asarray(kept.discount)}
    counts = {name: len(x) if x.ndim else 0 for name, x in arrays.items()}
    if len(set(counts.values())) > 1 or not counts["rewards"]:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield Finding("error", "shapes", f"rows differ or are missing: {listed}")
        return
    for name in ("rewards", "discount", "timeouts"):
        if arrays[name].ndim != 1:
            text = f"{name} must have the shape [N], got {arrays[name].shape}"
            yield Finding("error", "shapes", text)
    one, two = arrays["observations"].shape, arrays["next_observations"].shape
    if one != two:
        text = f"observations {one} and next_observations {two} must agree"
        yield Finding("error", "shapes", text)


def _numbers(dataset: Dataset, spec: EnvSpec | None) -> Iterator[Finding]:
    del spec
    for name, array in to_arrays(dataset).items():
        if array.dtype.kind != "f":
            continue
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            yield Finding(
                "error",
                "finite",
                f"{name} hold NaN or infinity in {bad.sum()} of {len(bad)} rows, first "
                f"in row {int(np.argmax(bad))}: drop those episodes or collect anew",
            )
    discount = np.asarray(dataset.transitions.discount)
    if not np.isin(discount, (0.0, 1.0)).all():
        yield Finding(
            "error",
            "finite",
            "discount must be 0 at terminal steps and 1 elsewhere: gamma belongs to "
            "the method",
        )
    if not np.any(dataset.transitions.reward):
        yield Finding("warn", "rewards", "every reward is 0")


# ------------------------------------------------------------------------- the episodes


def _borders(dataset: Dataset, spec: EnvSpec | None) -> Iterator[Finding]:
    """Inside an episode each step leads to the observation of the next row."""
    del spec
    ended, kept = dataset.ended, dataset.transitions
    both = dataset.terminal & np.asarray(kept.truncated)
    if both.any():
        text = f"{both.sum()} steps are terminal and cut at once: terminal is enough"
        yield Finding("error", "borders", text)
    if not ended[-1]:
        text = "the last row ends no episode: mark it as a timeout, or drop its episode"
        yield Finding("error", "borders", text)
        return
    count = dataset.num_steps
    successor = np.asarray(kept.next_observation)[:-1].reshape(count - 1, -1)
    below = np.asarray(kept.observation)[1:].reshape(count - 1, -1)
    inside = ~ended[:-1]
    same = np.isclose(successor, below, 1e-4, 1e-5, equal_nan=True).all(axis=1)
    torn = inside & ~same
    if torn.any():
        yield Finding(
            "error",
            "borders",
            f"{torn.sum()} of {inside.sum()} steps inside episodes do not lead to the "
            f"observation of the next row, first row {int(np.argmax(torn))}: timeouts "
            "are missing, or rows are not in the order of time",
        )


def _time_limit(dataset: Dataset, spec: EnvSpec | None) -> Iterator[Finding]:
    if not dataset.ended[-1]:
        return  # said by the borders
    limit = dataset.metadata.time_limit or (spec.time_limit if spec else None)
    lengths = dataset.episode_lengths
    died = dataset.terminal[dataset.episode_ends - 1]
    if limit is None:
        yield from _unknown_limit(lengths, died)
        return
    longer = lengths > limit
    if longer.any():
        yield Finding(
            "error",
            "timeouts",
            f"{longer.sum()} of {len(lengths)} episodes are longer than the time limit "
            f"of {limit} steps (the longest: {lengths.max()}): their timeouts are "
            "missing, or the data are of another task",
        )
    full = lengths == limit
    wrong = int((full & died).sum())
    if wrong and not (full & ~died).any():
        yield Finding(
            "error" if wrong > 1 else "warn",
            "timeouts",
            f"all {wrong} episodes that last exactly {limit} steps, the time limit, "
            "end as terminal: a timeout marked as a terminal teaches that the future "
            "there is worth nothing; move the flag to timeouts",
        )


def _unknown_limit(lengths: np.ndarray, died: np.ndarray) -> Iterator[Finding]:
    longest = lengths.max()
    full = lengths == longest
    if full.sum() >= 2 and longest >= 10 and died[full].all():
        yield Finding(
            "error" if full.all() else "warn",
            "timeouts",
            f"{full.sum()} of {len(lengths)} episodes end as terminal after exactly "
            f"{longest} steps, the longest of all: these look like timeouts marked as "
            "terminals; move the flag to timeouts, or name the environment or time "
            "limit if the task does end there",
        )
    if len(lengths) == 1 and longest > 10_000:
        text = f"one episode of {longest} steps: are terminals and timeouts missing?"
        yield Finding("warn", "timeouts", text)


def _duplicates(dataset: Dataset, spec: EnvSpec | None) -> Iterator[Finding]:
    del spec
    if not dataset.ended[-1]:
        return
    seen: dict[bytes, list[int]] = collections.defaultdict(list)
    arrays = to_arrays(dataset).values()
    borders = zip(dataset.episode_starts, dataset.episode_ends, strict=True)
    for index, (first, end) in enumerate(borders):
        content = hashlib.blake2b(digest_size=16)
        for array in arrays:
            content.update(array[first:end].tobytes())
        seen[content.digest()].append(index)
    copies = [members for members in seen.values() if len(members) > 1]
    if copies:
        extra, first = sum(len(members) - 1 for members in copies), copies[0]
        yield Finding(
            "warn",
            "duplicates",
            f"{extra} of {len(dataset.episode_ends)} episodes are copies of others, "
            f"such as episode {first[1]} of episode {first[0]}: they count double",
        )


# ----------------------------------------------------------------------------- the task


def _task(dataset: Dataset, spec: EnvSpec | None) -> Iterator[Finding]:
    if spec is None:
        return
    kept, name = dataset.transitions, dataset.metadata.env
    for what, array, space in (
        ("observations", kept.observation, spec.observation),
        ("actions", kept.action, spec.action),
    ):
        shape = np.shape(array)[1:]
        if shape != space.shape:
            yield Finding(
                "error",
                "task",
                f"{what} have the shape {shape}, but those of {spec.name} have "
                f"{space.shape}: the data are of another task",
            )
    if name and _plain(name) != _plain(spec.name):
        text = f"the data are of {name}, not of {spec.name}"
        yield Finding("error", "task", text)
    elif name and name != spec.name:
        text = f"the data are of {name}: is that the task that is {spec.name} here?"
        yield Finding("warn", "task", text)


def _plain(name: str) -> str:
    """`mujoco/HalfCheetah-v5` and `half_cheetah` are the same task, as far as told."""
    local = name.rpartition("/")[2].lower().partition("-v")[0]
    return "".join(letter for letter in local if letter.isalnum())


def _actions(dataset: Dataset, spec: EnvSpec | None) -> Iterator[Finding]:
    action = np.asarray(dataset.transitions.action)
    if spec is not None and action.shape[1:] != spec.action.shape:
        return  # said by the task
    if spec is not None and not isinstance(spec.action, Box):
        number = spec.action.num_values
        if action.dtype.kind not in "iu" or action.min() < 0 or action.max() >= number:
            text = f"actions of {spec.name} are the integers 0 to {number - 1}"
            yield Finding("error", "actions", text)
        return
    if action.dtype.kind != "f" or not dataset.ended[-1]:
        return
    bounds = _bounds(dataset, spec)
    outside = _outside(action, bounds)
    if bounds is not None and outside.any():
        low, high = (f"{np.min(bounds[0]):g}", f"{np.max(bounds[1]):g}")
        episodes = np.add.reduceat(outside, dataset.episode_starts) > 0
        share = f"{episodes.sum()} of {len(episodes)} episodes"
        mixed = "mixed action scales: " if not episodes.all() else ""
        yield Finding(
            "error",
            "actions",
            f"{mixed}{outside.sum()} actions in {share} leave the bounds [{low}, "
            f"{high}], up to {np.abs(action[outside]).max():.3g}: bring all episodes "
            "to the environment's units, or clip and collect anew",
        )
        return
    yield from _scales(dataset, action, known=bounds is not None)


def _bounds(
    dataset: Dataset, spec: EnvSpec | None
) -> tuple[np.ndarray, np.ndarray] | None:
    size = int(np.prod(np.shape(dataset.transitions.action)[1:]))
    kept = dataset.metadata
    pair: tuple[Any, Any] = (kept.action_minimum, kept.action_maximum)
    if spec is not None and isinstance(spec.action, Box):
        pair = (spec.action.minimum, spec.action.maximum)
    if pair[0] is None or pair[1] is None:
        return None
    low, high = (np.ravel(np.asarray(bound, float)) for bound in pair)
    if low.size not in (1, size) or high.size not in (1, size):
        return None
    return low, high


def _outside(
    action: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    if bounds is None:
        return np.zeros(len(action), bool)
    low, high = bounds
    slack = _TOLERANCE * np.where(np.isfinite(high - low), high - low, 0.0)
    flat = action.reshape(len(action), -1)
    return np.any((flat < low - slack) | (flat > high + slack), axis=1)


def _scales(dataset: Dataset, action: np.ndarray, known: bool) -> Iterator[Finding]:
    """Do the largest actions of the episodes fall into two groups far apart?"""
    size = np.abs(action.reshape(len(action), -1)).max(axis=1)
    peaks = np.maximum.reduceat(size, dataset.episode_starts)
    peaks = np.sort(peaks[(dataset.episode_lengths >= _LONG) & (peaks > 0)])
    if len(peaks) < 2 or not np.isfinite(peaks).all():
        return
    ratios = peaks[1:] / peaks[:-1]
    place = int(np.argmax(ratios)) + 1
    if ratios[place - 1] >= _APART:
        yield Finding(
            "warn" if known else "error",
            "actions",
            f"mixed action scales: actions reach {peaks[place - 1]:.3g} in {place} "
            f"episodes and at least {peaks[place]:.3g} in {len(peaks) - place}: bring "
            "all episodes to the environment's units",
        )
