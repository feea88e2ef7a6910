"""Datasets of other projects: D4RL's HDF5, Minari's HDF5, OGBench's npz.

Each reader returns a `Dataset` whose successors are true. Where a file does not say
what followed a step, the step is dropped, and the metadata's notes say how many were.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlx.data.dataset_record import Dataset, DatasetError, Metadata, from_arrays

_EPISODE = re.compile(r"episode_(\d+)")


# ---------------------------------------------------------------------------- D4RL


def read_d4rl(group: Any, where: str, time_limit: int | None = None) -> Dataset:
    """Read D4RL's flat layout: one row per step, `terminals` and `timeouts` apart.

    https://github.com/Farama-Foundation/D4RL. Files of its first version have no
    `next_observations`: the successor of a step is then the next row's observation,
    which at the end of an episode is another episode's. Steps before a timeout, and an
    unfinished last step, are dropped (as D4RL's own `qlearning_dataset` does); terminal
    steps keep their reward, and get a placeholder that nothing bootstraps from.

    Args:
      group: an open HDF5 file.
      where: its name, for messages.
      time_limit: steps of an episode. Needed only where the file has no `timeouts`:
        they are then put where an episode has as many steps.

    Raises:
      DatasetError: an array is missing, `timeouts` without a `time_limit` among them.
    """
    names = ("observations", "actions", "rewards", "terminals")
    arrays = {name: require_array(group, name, where) for name in names}
    notes = []
    terminals = np.reshape(arrays["terminals"], (-1,)).astype(bool)
    if "timeouts" in group:
        arrays["timeouts"] = require_array(group, "timeouts", where)
    elif time_limit is None:
        raise DatasetError(
            f"{where}: has no `timeouts`, so that nobody can tell where a time limit "
            "cut an episode: give the limit (--time-limit 1000), or add the array"
        )
    else:
        arrays["timeouts"] = _timeouts_by_count(terminals, time_limit)
        notes.append(f"no `timeouts` in the file: put after every {time_limit} steps")
    if "next_observations" in group:
        arrays["next_observations"] = require_array(group, "next_observations", where)
        metadata = Metadata(time_limit=time_limit, notes=tuple(notes))
        return from_arrays(arrays, metadata, where)
    return _shifted(arrays, time_limit, notes, where)


def _timeouts_by_count(terminals: np.ndarray, limit: int) -> np.ndarray:
    timeouts, first = np.zeros(len(terminals), bool), 0
    for end in [*(np.flatnonzero(terminals) + 1), len(terminals)]:
        timeouts[first + limit - 1 : end : limit] = True
        first = end
    return timeouts & ~terminals


def _shifted(
    arrays: dict[str, np.ndarray], time_limit: int | None, notes: list[str], where: str
) -> Dataset:
    """Take each row's successor from the next row, where that is one."""
    observations = arrays["observations"]
    terminal = np.reshape(arrays["terminals"], (-1,)).astype(bool)
    ended = terminal | np.reshape(arrays["timeouts"], (-1,)).astype(bool)
    if len({len(array) for array in arrays.values()}) > 1 or len(terminal) < 2:
        complete = {**arrays, "next_observations": observations}
        return from_arrays(complete, Metadata(), where)  # which says what is wrong
    successors = np.concatenate([observations[1:], observations[-1:]])
    successors[terminal] = observations[terminal]
    unknown = ended & ~terminal
    unknown[-1] |= ~terminal[-1]
    # Whoever leads to a dropped row is the last of its episode, with a true successor.
    cut = np.concatenate([unknown[1:], [False]]) & ~ended
    kept = ~unknown
    if not kept.any():
        raise DatasetError(
            f"{where}: no step has a known successor: every row is cut off"
        )
    if unknown.any():
        notes.append(
            f"no `next_observations` in the file: {int(unknown.sum())} last steps of "
            "cut episodes dropped, since their successors are unknown"
        )
    if terminal.any():
        notes.append(
            f"successors of {int(terminal.sum())} terminal steps are unknown: the "
            "observation itself stands there, mask it in models of the dynamics"
        )
    changed = {**arrays, "timeouts": cut, "next_observations": successors}
    metadata = Metadata(
        time_limit=time_limit,
        last_steps_dropped=int(unknown.sum()),
        terminal_successors_known=not terminal.any(),
        notes=tuple(notes),
    )
    rows = {name: np.asarray(array)[kept] for name, array in changed.items()}
    return from_arrays(rows, metadata, where)


# -------------------------------------------------------------------------- Minari


def read_minari(
    group: Any, where: Path, observation_keys: Sequence[str] | None = None
) -> Dataset:
    """Read Minari's layout: a group per episode, with T + 1 observations for T steps.

    https://minari.farama.org/content/dataset_standards. Metadata are the attributes of
    the file, or `metadata.json` beside it.

    Args:
      group: an open HDF5 file.
      where: its path.
      observation_keys: entries of dictionary observations, joined in this order.

    Raises:
      DatasetError: an episode lacks an array or its last observation, or observations
        are dictionaries and nobody says which entries to take.
    """
    found = sorted(
        (int(m[1]), name) for name in group if (m := _EPISODE.fullmatch(name))
    )
    parts = [_minari_episode(group[name], f"{where}: {name}", observation_keys)
             for _, name in found]  # fmt: skip
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    kept = _minari_metadata(group, where)
    spec = _json(kept.get("env_spec"))
    limit = spec.get("max_episode_steps")
    metadata = Metadata(
        env=str(spec.get("id") or ""),
        env_options=spec.get("kwargs") or {},
        kind=str(kept.get("dataset_id") or ""),
        how=str(kept.get("description") or ""),
        random_return=_number(kept.get("ref_min_score")),
        expert_return=_number(kept.get("ref_max_score")),
        time_limit=int(limit) if limit else None,
        versions={"minari": str(kept.get("minari_version") or "")},
    )
    return from_arrays(arrays, metadata, str(where))


def _minari_episode(
    group: Any, where: str, keys: Sequence[str] | None
) -> dict[str, np.ndarray]:
    names = ("actions", "rewards", "terminations", "truncations")
    actions, rewards, terminals, timeouts = (
        require_array(group, name, where) for name in names
    )
    observations = _minari_observations(group, where, keys)
    if len(observations) != len(rewards) + 1:
        raise DatasetError(
            f"{where}: {len(rewards)} steps need {len(rewards) + 1} observations, but "
            f"there are {len(observations)}: without the last one the successor of the "
            "last step is unknown; record the episode again"
        )
    timeouts = np.asarray(timeouts, bool)
    timeouts[-1:] = True  # an episode that was not finished is cut; see `from_arrays`
    return {
        "observations": observations[:-1],
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": observations[1:],
    }


def _minari_observations(
    group: Any, where: str, keys: Sequence[str] | None
) -> np.ndarray:
    if "observations" not in group or not hasattr(group["observations"], "keys"):
        return require_array(group, "observations", where)
    inner = group["observations"]
    if not keys:
        raise DatasetError(
            f"{where}: observations are dictionaries of {', '.join(inner)}: say which "
            f"to take, and in which order (--keys {next(iter(inner), 'NAME')})"
        )
    parts = [require_array(inner, key, f"{where}/observations") for key in keys]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _minari_metadata(group: Any, where: Path) -> Mapping[str, Any]:
    beside = where.with_name("metadata.json")
    if beside.is_file():
        try:
            return json.loads(beside.read_text())
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{beside}: is damaged ({error}): restore it, or remove it to read the "
                "data without"
            ) from error
    return {name: _text(value) for name, value in group.attrs.items()}


# ------------------------------------------------------------------------- OGBench


def read_ogbench(path: Path) -> Dataset:
    """Read OGBench's npz: a row per state, `terminals` at each trajectory's last one.

    https://github.com/seohongpark/ogbench. A trajectory of T steps has T + 1 rows, and
    the action of the last one is void. Nothing terminates there: trajectories are cut.
    Goals give the rewards, so that files have none: they are 0 then. Where a file was
    relabelled, `rewards` are used, and a step whose `masks` is 0 is terminal.

    Raises:
      DatasetError: no npz, or an array is missing.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{path}: cannot be read as npz ({error}): is it whole? copy it again"
        ) from error
    where = str(path)
    names = ("observations", "actions", "terminals")
    found = {name: require_array(arrays, name, where) for name in names}
    counts = {name: len(array) for name, array in arrays.items() if array.ndim}
    last = np.reshape(found["terminals"], (-1,)).astype(bool)
    if len({counts[name] for name in names}) > 1 or len(last) < 2 or not last[-1]:
        raise DatasetError(
            f"{where}: expected as many rows of {', '.join(names)}, the last row with "
            f"terminals = 1, but found {counts}: copy the file again"
        )
    kept = ~last  # rows with a step; their successor is the row below
    if not kept.any():
        raise DatasetError(f"{where}: holds no step: every row ends a trajectory")
    notes = []
    if "rewards" not in arrays:
        notes.append("no `rewards` in the file: all are 0, to be set from goals")
    masks = arrays.get("masks", np.ones(len(last)))
    rows = {
        "observations": found["observations"],
        "actions": found["actions"],
        "rewards": arrays.get("rewards", np.zeros(len(last), np.float32)),
        "terminals": np.asarray(masks) == 0,
        "timeouts": np.append(last[1:], False),
        "next_observations": np.roll(found["observations"], -1, axis=0),
    }
    metadata = Metadata(kind=path.stem, notes=tuple(notes))
    return from_arrays({k: v[kept] for k, v in rows.items()}, metadata, where)


# ------------------------------------------------------------------------- details


def require_array(group: Any, name: str, where: str) -> np.ndarray:
    """Return the array `name` of an open HDF5 file or a mapping.

    Raises:
      DatasetError: it is missing, no array, or damaged.
    """
    if name not in group or not hasattr(group[name], "shape"):
        there = ", ".join(sorted(group)[:12]) or "nothing"
        raise DatasetError(f"{where}: has no array `{name}`; there are {there}")
    try:
        return np.asarray(group[name][()])
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"{where}: `{name}` is damaged ({' '.join(str(error).split())}): copy the "
            "file again, or collect it anew"
        ) from error


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _json(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def episode_groups(group: Any) -> Iterator[str]:
    """The names of Minari's episodes in an open HDF5 file."""
    return (name for name in group if _EPISODE.fullmatch(name))
