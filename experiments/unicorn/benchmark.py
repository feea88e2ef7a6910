"""The Last.fm benchmark: what conversations are about, and about which pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs import conversation
from envs.conversation import files, suite
from rlx.ops.catalogue import Catalogue
from rlx.types import Env

TURNS, LIST = 15, 10
"""T, in which a failure counts 15 turns, and items of a list."""
ACTIONS = TURNS - 1
"""The user's opening is turn 1, as in the released code."""

MakeEnv = Callable[[Catalogue], Env]
"""Conversations about any of a catalogue's interactions."""


class Benchmark(NamedTuple):
    """A catalogue whose conversations are about validation pairs, and the test pairs.

    Vectors come from training pairs alone.
    """

    catalogue: Catalogue
    valid: np.ndarray
    """`int[N, 2]` users and what they have in mind."""
    test: np.ndarray


def lastfm(
    path: Path, *, coarse: bool = True, vectors: str = "als", seed: int = 0
) -> Benchmark:
    """LastFM-33 (coarse attributes) or LastFM* (fine ones).

    Args:
      path: of the edge lists, see `envs.conversation.files`.
      coarse: attributes are the groups of an item's attributes.
      vectors: `"als"` or `"transe"`.
      seed: of the vectors' start.
    """
    about = suite.from_file(path, groups=coarse, vectors=vectors, seed=seed)
    pairs = files.load(path, groups=coarse).interactions
    return Benchmark(about, pairs["valid"], pairs["test"])


def options(catalogue: Catalogue, **pruning: object) -> conversation.Options:
    """The published rules; every question is an action unless `pruning` says else."""
    every = {"num_questions": catalogue.num_questions, **pruning}
    return conversation.Options(
        max_turns=ACTIONS,
        pruning=conversation.Pruning(**every),  # type: ignore[arg-type]
    )


def plain(catalogue: Catalogue) -> Env:
    """Conversations in which every question may be asked; actions are slots."""
    return conversation.make(catalogue, options(catalogue), "conversation/lastfm")
