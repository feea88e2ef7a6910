"""Diffusions as environments by name: `envs.make("diffusion/ornstein_uhlenbeck")`.

Nothing is discounted here: give a method the diffusion's own rate (`discount_rate` of
the martingale methods), or another on purpose. `linear_quadratic` is missing: it is
made of matrices, which only Python can give.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from envs._options import check
from envs.diffusion import control, environment, scalar, vector
from envs.diffusion.core import Diffusion
from rlx.types import Env

STEP_SIZE = 0.02
"""Δt unless given: 50 steps to a horizon of 1."""
DURATION = 10.0
"""Simulated time of an episode, unless given, where the horizon is infinite."""

_COMMON = ("step_size", "duration", "scheme", "own_policy")
_MAKERS: dict[str, Callable[..., Any]] = {
    "brownian_quadratic": scalar.brownian_quadratic,
    "call_option": scalar.call_option,
    "ergodic_lq": control.ergodic_lq,
    "geometric_basket": vector.geometric_basket,
    "mean_variance": control.Market,
    "ornstein_uhlenbeck": scalar.ornstein_uhlenbeck,
    "pendulum": vector.pendulum,
}


def names() -> list[str]:
    """The names of all diffusions that need nothing but numbers."""
    return sorted(_MAKERS)


def make(name: str, **options: Any) -> Env:
    """Makes the environment of the diffusion `name`, one of `names()`.

    Args:
      name: of the diffusion.
      **options: `step_size`, `duration`, `scheme` and `own_policy` as
        `envs.diffusion.make` has them, and the numbers of the diffusion itself, such as
        `horizon`, `volatility` or, of `mean_variance`, the fields of `Market`.

    Raises:
      TypeError: the diffusion has no such option.
      ValueError: a number is impossible, or the step does not divide the horizon.
    """
    maker = _MAKERS[name]
    numbers = list(inspect.signature(maker).parameters)
    check(f"diffusion/{name}", options, [*_COMMON, *numbers])
    made = maker(**{k: v for k, v in options.items() if k in numbers})
    if isinstance(made, control.Market):
        made = control.mean_variance(made)
    return _environment(made, {k: v for k, v in options.items() if k in _COMMON})


def _environment(diffusion: Diffusion, options: dict[str, Any]) -> Env:
    defaults: dict[str, Any] = {"step_size": STEP_SIZE}
    if math.isinf(diffusion.horizon):
        defaults["duration"] = DURATION
    return environment.make(diffusion, **{**defaults, **options})
