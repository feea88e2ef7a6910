"""Conversations by name: `envs.make("conversation/synthetic")`.

`synthetic` shows `Observation`s and takes slots or `rlx.ops.conversation.Choice`s.
`synthetic_graph` is the same as `rlx.methods.unicorn` sees it. `file` and `file_graph`
are about the catalogue of a file of edge lists (`envs.conversation.files`), with
embeddings learned here from its training interactions.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs._options import check
from envs.conversation import embedding, files, simulator, unicorn
from envs.conversation.catalogue import catalogue
from envs.conversation.synthetic import World, synthetic
from rlx.ops.catalogue import Catalogue
from rlx.ops.conversation import Pruning
from rlx.types import Env

_MAKERS: dict[str, Callable[..., Env]] = {
    "synthetic": simulator.make,
    "synthetic_graph": unicorn.make,
    "file": simulator.make,
    "file_graph": unicorn.make,
}
VECTORS = ("als", "transe", "random")


def names() -> list[str]:
    """The conversations."""
    return sorted(_MAKERS)


def make(name: str, **options: Any) -> Env:
    """Makes the conversation `name`, one of `names()`.

    Args:
      name: of the conversation.
      **options: fields of `Options` and `Pruning`. Of synthetic ones also the fields of
        `World`, `seed` of the draw and `dense`; `num_items` is the catalogue's, K_v
        keeps its default. Of files the arguments of `from_file`; `path` is needed. Of
        graphs also `graph_sharpness`, the `sharpness` of `unicorn.make`.

    Raises:
      TypeError: there is no such option, or no `path` of a file.
      ValueError: a number is impossible, or the file is damaged.
      FileNotFoundError: there is no such file.
    """
    rules, prunings, worlds = (
        [field.name for field in dataclasses.fields(kind) if field.name not in left]
        for kind, left in (
            (simulator.Options, ("pruning",)),
            (Pruning, ("num_items",)),
            (World, ()),
        )
    )
    full = f"conversation/{name}"
    drawn = ["seed", "dense", *worlds]
    if name.startswith("file"):
        drawn = list(inspect.signature(from_file).parameters)
    seen = ["graph_sharpness"] if _MAKERS[name] is unicorn.make else []
    check(full, options, [*drawn, *rules, *prunings, *seen])

    def chosen(known: list[str]) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key in known}

    if name.startswith("file"):
        if "path" not in options:
            raise TypeError(f"{full} needs a path=FILE.npz of edge lists")
        about = from_file(**chosen(drawn))
    else:
        world = World(**chosen(worlds))
        about = synthetic(world, **chosen(["seed", "dense"]))
    pruning = Pruning(**chosen(prunings))
    return _MAKERS[name](
        about,
        simulator.Options(**chosen(rules), pruning=pruning),
        full,
        **{key.removeprefix("graph_"): x for key, x in chosen(seen).items()},
    )


def from_file(  # noqa: PLR0913 (options, by name)
    path: str | Path,
    *,
    groups: bool = False,
    split: str = "valid",
    vectors: str = "als",
    share: float = 0.7,
    seed: int = 0,
) -> Catalogue:
    """The catalogue of a file, with embeddings of its training interactions.

    Args:
      path: of the `.npz`.
      groups: take the groups as attributes.
      split: whose interactions conversations are about: `"train"`, `"valid"` or
        `"test"`.
      vectors: `"als"`, items leaning on their attributes (`embedding.cold_aware`);
        `"transe"`, the published choice, which takes minutes; `"random"`.
      share: how much items lean on their attributes; read where `vectors` is `"als"`.
      seed: of the vectors.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or an option is none of the above.
    """
    for name, value, choices in (
        ("split", split, files.SPLITS),
        ("vectors", vectors, VECTORS),
    ):
        if value not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(choices)}, got {value!r}"
            )
    lists = files.load(path, groups=groups)
    known = embedding.facts(lists)
    makers: dict[str, Callable[[], embedding.Vectors]] = {
        "als": lambda: embedding.cold_aware(
            known, embedding.als(known, seed=seed), share
        ),
        "transe": lambda: embedding.transe(known, jax.random.key(seed)).vectors,
        "random": functools.partial(_random, known, seed),
    }
    return catalogue(
        lists.item_attribute,
        **makers[vectors]()._asdict(),
        interactions=lists.interactions[split],
    )


def _random(known: embedding.Facts, seed: int, size: int = 64) -> embedding.Vectors:
    generator = np.random.default_rng(seed)
    counts = (known.num_users, known.num_items, known.num_attributes)
    drawn = (generator.normal(size=(n, size)) / size**0.5 for n in counts)
    return embedding.Vectors(*(np.asarray(x, np.float32) for x in drawn))
