"""Options of environments, checked before use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rlx.types import Env


def call(maker: Callable[..., Env], name: str, **options: Any) -> Env:
    """Calls `maker(**options)`.

    Raises:
      TypeError: an option that the environment called `name` does not have; the
        message lists those that it has.
    """
    known = [
        parameter.name
        for parameter in inspect.signature(maker).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    check(name, options, known)
    return maker(**options)


def check(name: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Checks the names of options.

    Raises:
      TypeError: an option that the environment called `name` does not have; the
        message lists those that it has.
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"{name} has no option {', '.join(unknown)}; "
            f"its options: {', '.join(known) or 'none'}"
        )
