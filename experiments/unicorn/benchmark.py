"""The Last.fm benchmark: what conversations are about, and about which pairs."""

from __future__ import annotations

import zlib
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
    path: Path,
    *,
    coarse: bool = True,
    vectors: str = "als",
    seed: int = 0,
    kept: Path | None = None,
) -> Benchmark:
    """LastFM-33 (coarse attributes) or LastFM* (fine ones).

    Args:
      path: of the edge lists, see `envs.conversation.files`.
      coarse: attributes are the groups of an item's attributes.
      vectors: `"als"` or `"transe"`.
      seed: of the vectors' start.
      kept: a folder in which vectors are kept from one run to the next, by what they
        were learned from; nowhere unless given.
    """
    lists = files.load(path, groups=coarse)
    pairs = lists.interactions
    mark = zlib.crc32(path.read_bytes())
    name = f"{'coarse' if coarse else 'fine'}_{vectors}_{seed}_{mark:08x}.npz"
    if kept is not None and (kept / name).is_file():
        with np.load(kept / name, allow_pickle=False) as found:
            about = conversation.catalogue(
                lists.item_attribute, **found, interactions=pairs["valid"]
            )
        return Benchmark(about, pairs["valid"], pairs["test"])
    about = suite.from_file(path, groups=coarse, vectors=vectors, seed=seed)
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        np.savez(
            kept / name,
            users=about.user_embedding,
            items=about.item_embedding,
            attributes=about.attribute_embedding,
        )
    return Benchmark(about, pairs["valid"], pairs["test"])


def options(
    catalogue: Catalogue, actions: int = ACTIONS, **pruning: object
) -> conversation.Options:
    """The published rules; every question is an action unless `pruning` says else."""
    every = {"num_questions": catalogue.num_questions, **pruning}
    return conversation.Options(
        max_turns=actions,
        pruning=conversation.Pruning(**every),  # type: ignore[arg-type]
    )


def plain(catalogue: Catalogue, questions: int = 0) -> Env:
    """Conversations in which every question may be asked; actions are slots.

    Fewer `questions` are those with the greatest entropy, which is faster.
    """
    rules = options(catalogue, num_questions=questions or catalogue.num_questions)
    return conversation.make(catalogue, rules, "conversation/lastfm")
