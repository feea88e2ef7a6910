"""Errors for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_choice(what: str, name: str, known: Iterable[str]) -> None:
    """Raise a ValueError that suggests the nearest name unless `name` is known."""
    known = sorted(known)
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    raise ValueError(f"Unknown {what}: {name!r}. {hint}")
