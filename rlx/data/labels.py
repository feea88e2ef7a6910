"""Labels on the host: what is wrong with them, and answers that a person gave."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from rlx.ops.segments import Labels


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Counts over the labels of one run."""

    labels: int
    """Labels in the buffer."""
    ties: int
    """Those that prefer neither segment."""
    intransitive: int
    """Decided labels that are part of a cycle: a > b, b > c, c > a, or a > b > a."""
    asked: int
    """Queries shown to the teacher since the run began."""
    skipped: int
    """Queries that it did not answer."""
    missing: int
    """Queries that were not shown, for want of segments that lie in one episode."""


def diagnose(labels: Labels) -> Diagnosis:
    """Looks for what makes labels useless.

    A segment is known again by its numbers: labels of segments that never recur, as
    scripted queries mostly are, cannot contradict each other.

    Args:
      labels: of one run: no leading axis of runs.

    Raises:
      ValueError: the labels have an axis of runs.
    """
    if np.ndim(labels.size):
        raise ValueError(
            "these are the labels of several runs: choose one, for example by "
            "jax.tree.map(lambda x: x[0], labels)"
        )
    size = int(labels.size)
    preference = np.asarray(labels.preference)[:size]
    rows = [np.asarray(x) for x in (labels.observation, labels.action)]
    flat = np.concatenate(
        [x.reshape(2 * len(x), -1)[: 2 * size].astype(np.float64) for x in rows], 1
    )
    _, node = np.unique(flat, axis=0, return_inverse=True)
    node = node.reshape(size, 2)
    decided = preference != 0.5
    winner = np.where(preference > 0.5, node[:, 0], node[:, 1])[decided]
    loser = np.where(preference > 0.5, node[:, 1], node[:, 0])[decided]
    return Diagnosis(
        labels=size,
        ties=int(np.sum(~decided)),
        intransitive=_in_cycles(winner, loser),
        asked=int(labels.asked),
        skipped=int(labels.skipped),
        missing=int(labels.missing),
    )


def _in_cycles(winner: np.ndarray, loser: np.ndarray) -> int:
    """Edges whose ends reach each other."""
    left = np.arange(len(winner))
    while True:  # edges into or out of dead ends are in no cycle
        kept = left[
            np.isin(winner[left], loser[left]) & np.isin(loser[left], winner[left])
        ]
        if len(kept) == len(left):
            break
        left = kept
    if not len(left):
        return 0
    nodes, edge = np.unique(
        np.concatenate([winner[left], loser[left]]), return_inverse=True
    )
    first, second = edge.reshape(2, -1)
    reach = np.zeros((len(nodes),) * 2, bool)
    reach[first, second] = True
    for _ in range(len(nodes).bit_length()):
        reach |= (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
    return int(np.sum(reach[second, first]))


def warn(labels: Labels, share: float = 0.5) -> Diagnosis:
    """Warns, with the count, of labels from which no reward can be learned.

    Call it after a run: a compiled program cannot warn. While it goes, the metrics
    `asked`, `skipped`, `ties` and `missing` tell the same.

    Args:
      labels: of one run.
      share: warns of ties, skips and queries not shown from this share on; of
        intransitive labels from the first.
    """
    found = diagnose(labels)
    tried = found.asked + found.missing
    complaints = []
    if found.asked and found.skipped == found.asked:
        complaints.append(
            f"the teacher answered none of {found.asked} queries: the reward is as "
            "random as it was"
        )
    elif found.skipped > share * found.asked:
        complaints.append(f"the teacher skipped {found.skipped} of {found.asked}")
    if found.labels and found.ties >= share * found.labels:
        complaints.append(
            f"{found.ties} of {found.labels} labels are ties: ask about segments that "
            "differ more, or lower the teacher's equal threshold"
        )
    if found.intransitive:
        complaints.append(
            f"{found.intransitive} of {found.labels} labels are intransitive: no "
            "reward explains them all"
        )
    if tried and found.missing >= share * tried:
        complaints.append(
            f"{found.missing} of {tried} queries found no segment within one episode: "
            "shorten the segments"
        )
    for complaint in complaints:
        warnings.warn(complaint, stacklevel=2)
    return found
