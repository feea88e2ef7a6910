"""Conversations by name: `envs.make("conversation/synthetic")`.

`synthetic` shows `Observation`s and takes slots or `rlx.ops.conversation.Choice`s.
`synthetic_graph` is the same as `rlx.methods.unicorn` sees it. Catalogues from files
need embeddings, which only Python can give: `envs.conversation.make`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from envs._options import check
from envs.conversation import simulator, unicorn
from envs.conversation.synthetic import World, synthetic
from rlx.ops.conversation import Pruning
from rlx.types import Env

_MAKERS = {"synthetic": simulator.make, "synthetic_graph": unicorn.make}


def names() -> list[str]:
    """The conversations that need nothing but numbers."""
    return sorted(_MAKERS)


def make(name: str, **options: Any) -> Env:
    """Makes the conversation `name`, one of `names()`.

    Args:
      name: of the conversation.
      **options: fields of `World`, `Options` and `Pruning`, `seed` of the draw and
        `dense`; `num_items` is the catalogue's, K_v keeps its default.

    Raises:
      TypeError: there is no such option.
      ValueError: a number is impossible.
    """
    worlds, rules, prunings = (
        [field.name for field in dataclasses.fields(kind) if field.name not in left]
        for kind, left in (
            (World, ()),
            (simulator.Options, ("pruning",)),
            (Pruning, ("num_items",)),
        )
    )
    drawn = ["seed", "dense"]
    full = f"conversation/{name}"
    check(full, options, [*drawn, *worlds, *rules, *prunings])

    def chosen(known: list[str]) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key in known}

    catalogue = synthetic(World(**chosen(worlds)), **chosen(drawn))
    pruning = Pruning(**chosen(prunings))
    return _MAKERS[name](
        catalogue, simulator.Options(**chosen(rules), pruning=pruning), full
    )
