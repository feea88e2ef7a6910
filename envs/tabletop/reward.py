"""The shape that Meta-World gives its rewards."""

from __future__ import annotations

from types import ModuleType
from typing import Any

_AT_MARGIN = 0.1


def closeness(xp: ModuleType, error: Any, within: float, margin: float) -> Any:
    """One where an error is small enough, with a long tail beyond.

    `1 / (1 + 9 (d / margin)²)`, d = max(|error| − within, 0): a tenth at the margin, as
    the "long_tail" of Tassa et al. 2018 (https://arxiv.org/abs/1801.00690) and of
    Meta-World's second version.

    Elementwise.

    Args:
      xp: array namespace.
      error: `[...]`.
      within: the error that costs nothing.
      margin: the further error at which 0.1 is left.

    Returns:
      `[...]` in (0, 1].
    """
    beyond = xp.maximum(xp.abs(error) - within, 0.0) / margin
    return 1.0 / (1.0 + (1.0 / _AT_MARGIN - 1.0) * beyond**2)
