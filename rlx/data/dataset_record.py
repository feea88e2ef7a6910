"""What an offline dataset is: transitions in the order of time, and their origin.

Fu et al. 2020, https://arxiv.org/abs/2004.07219 (D4RL).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.types import Transition


class DatasetError(ValueError):
    """A dataset cannot be read, written or used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Where data come from. Empty or None where nobody says."""

    env: str = ""
    """Name of the environment, as `envs.make` or the data's makers call it."""
    env_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `envs.make` was given beside the name."""
    kind: str = ""
    """`random`, `medium`, `medium-replay`, `medium-expert`, `expert`, or another."""
    how: str = ""
    """How the data were collected, in a sentence."""
    random_return: float | None = None
    """Mean return of a uniformly random policy: the normalised score 0."""
    expert_return: float | None = None
    """Mean return of the reference expert: the normalised score 100."""
    time_limit: int | None = None
    """Steps after which the environment cuts an episode."""
    action_minimum: tuple[float, ...] | None = None
    """Lowest action, per element; None where actions have no bounds or nobody says."""
    action_maximum: tuple[float, ...] | None = None
    last_steps_dropped: int = 0
    """Steps before a time limit that a reader left out: their successor is unknown."""
    terminal_successors_known: bool = True
    """False: `next_observation` of terminal steps is a placeholder, the observation
    itself. Nothing bootstraps from it, but a model of the dynamics must not learn it.
    """
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Packages that made the data."""
    notes: tuple[str, ...] = ()
    """What a reader did to the data."""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further JSON values, such as the checkpoints that acted."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Recorded transitions on the host, episode after episode.

    An episode ends where `discount` is 0 or `truncated` is set. Whoever cut it, a time
    limit or the end of the recording, the successor of a cut step is the true one.
    """

    transitions: Transition
    """NumPy arrays `[N, ...]`; `discount` is 0 or 1."""
    metadata: Metadata = dataclasses.field(default_factory=Metadata)

    @property
    def num_steps(self) -> int:
        """N."""
        return self.transitions.reward.shape[0]

    @property
    def terminal(self) -> np.ndarray:
        """`bool[N]` the task ended at this step."""
        return np.asarray(self.transitions.discount) == 0

    @property
    def ended(self) -> np.ndarray:
        """`bool[N]` an episode ended at this step, for whatever reason."""
        return self.terminal | np.asarray(self.transitions.truncated)

    @property
    def episode_ends(self) -> np.ndarray:
        """`int64[E]` the row after each episode's last."""
        return np.flatnonzero(self.ended) + 1

    @property
    def episode_starts(self) -> np.ndarray:
        """`int64[E]` each episode's first row."""
        return np.concatenate([[0], self.episode_ends[:-1]])

    @property
    def episode_lengths(self) -> np.ndarray:
        """`int64[E]`."""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def episode_returns(self) -> np.ndarray:
        """`float64[E]` undiscounted sums of rewards."""
        rewards = np.asarray(self.transitions.reward, np.float64)
        return np.add.reduceat(rewards, self.episode_starts)

    @property
    def complete(self) -> np.ndarray:
        """`bool[E]` which episodes ended by themselves, not with the recording.

        Where the time limit is unknown every cut counts as its doing.
        """
        limit = self.metadata.time_limit
        if limit is None:
            return np.ones(len(self.episode_ends), bool)
        full = limit - (self.metadata.last_steps_dropped > 0)
        return self.terminal[self.episode_ends - 1] | (self.episode_lengths >= full)

    def with_metadata(self, **changes: Any) -> Dataset:
        """Return the same transitions with other metadata."""
        changed = dataclasses.replace(self.metadata, **changes)
        return dataclasses.replace(self, metadata=changed)


def from_arrays(
    arrays: Mapping[str, np.ndarray], metadata: Metadata, where: str = "the dataset"
) -> Dataset:
    """Make a dataset from arrays under the names of D4RL.

    Reals become float32 and integers of actions int32; other integers (images) stay.
    Where a step is both terminal and cut, it is terminal. The last row is a border.

    Args:
      arrays: `observations [N, ...]`, `actions [N, ...]`, `rewards [N]`, `terminals
        [N]`, `timeouts [N]` and `next_observations [N, ...]`.
      metadata: where the arrays come from.
      where: what the arrays belong to, for messages.

    Raises:
      DatasetError: no rows, or shapes that do not belong together.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    rows = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(rows.values())) > 1 or not all(rows.values()):
        listed = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise DatasetError(
            f"{where}: every array needs the same number of rows, at least one, but "
            f"there are {listed}: cut or complete them"
        )
    for name in ("rewards", "terminals", "timeouts"):
        if arrays[name].ndim == 2 and arrays[name].shape[1] == 1:
            arrays[name] = arrays[name][:, 0]
        if arrays[name].ndim != 1:
            raise DatasetError(
                f"{where}: {name} must hold one number per step, but has the shape "
                f"{arrays[name].shape}"
            )
    one, two = arrays["observations"].shape, arrays["next_observations"].shape
    if one != two:
        raise DatasetError(
            f"{where}: observations have the shape {one}, next_observations {two}: "
            "they must agree"
        )
    terminal = arrays["terminals"].astype(bool)
    truncated = arrays["timeouts"].astype(bool) & ~terminal
    truncated[-1] = not terminal[-1]
    action = arrays["actions"]
    fields: dict[str, Any] = dict(
        observation=_plain(arrays["observations"]),
        action=action.astype(np.int32)
        if action.dtype.kind in "iub"
        else _plain(action),
        reward=arrays["rewards"].astype(np.float32),
        discount=(~terminal).astype(np.float32),
        truncated=truncated,
        next_observation=_plain(arrays["next_observations"]),
    )
    return Dataset(Transition(**fields), metadata)


def to_arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return what `from_arrays` takes."""
    kept = dataset.transitions
    return {
        "observations": np.asarray(kept.observation),
        "actions": np.asarray(kept.action),
        "rewards": np.asarray(kept.reward),
        "terminals": dataset.terminal,
        "timeouts": np.asarray(kept.truncated),
        "next_observations": np.asarray(kept.next_observation),
    }


def concatenate(
    datasets: Sequence[Dataset], metadata: Metadata, num_steps: int | None = None
) -> Dataset:
    """Join datasets, one after the other, and keep the first `num_steps` steps.

    Raises:
      DatasetError: none given, or their observations or actions differ in size.
    """
    parts = [to_arrays(dataset) for dataset in datasets]
    if not parts:
        raise DatasetError("there is no dataset to join: give at least one")
    for name in ("observations", "actions"):
        shapes = sorted({part[name].shape[1:] for part in parts})
        if len(shapes) > 1:
            raise DatasetError(
                f"datasets of different tasks cannot be joined: their {name} have the "
                f"shapes {', '.join(map(str, shapes))}"
            )
    joined = {
        name: np.concatenate([part[name] for part in parts])[:num_steps]
        for name in parts[0]
    }
    return from_arrays(joined, metadata)


def normalized_score(returns: Any, random_return: float, expert_return: float) -> Any:
    """Normalised score of D4RL: 0 is the random policy, 100 the expert.

    Fu et al. 2020, https://arxiv.org/abs/2004.07219, section 5:

        100 · (return − random) / (expert − random)

    Args:
      returns: a number or an array of any shape.
      random_return: mean return of the random policy.
      expert_return: mean return of the expert.

    Returns:
      What has the shape of `returns`.

    Raises:
      DatasetError: the expert is not above the random policy.
    """
    if not expert_return > random_return:
        raise DatasetError(
            f"a normalised score needs an expert above the random policy, got the "
            f"returns {expert_return:g} and {random_return:g}"
        )
    return 100.0 * (returns - random_return) / (expert_return - random_return)


def _plain(array: np.ndarray) -> np.ndarray:
    """Reals in single precision, anything else as it is."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array
