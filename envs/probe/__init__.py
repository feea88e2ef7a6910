"""Probe environments: small, pure JAX, with values that are known exactly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from envs._options import call
from envs.probe.chains import chain, chain_values, ring, ring_values
from envs.probe.classic import cartpole, pendulum
from envs.probe.linear_quadratic import LQRSolution, lqr, lqr_evaluate, lqr_solution
from envs.probe.one_step import (
    BEST_ACTION,
    action_reward,
    constant_reward,
    delayed_reward,
    memory,
    observation_action,
    observation_reward,
)
from envs.probe.pressing import button
from rlx.types import Env

__all__ = [
    "BEST_ACTION",
    "LQRSolution",
    "action_reward",
    "button",
    "cartpole",
    "chain",
    "chain_values",
    "constant_reward",
    "delayed_reward",
    "lqr",
    "lqr_evaluate",
    "lqr_solution",
    "make",
    "memory",
    "names",
    "observation_action",
    "observation_reward",
    "pendulum",
    "ring",
    "ring_values",
]

_MAKERS: dict[str, Callable[..., Env]] = {
    "action_reward": action_reward,
    "action_reward_continuous": functools.partial(action_reward, continuous=True),
    "button": button,
    "cartpole": cartpole,
    "chain": chain,
    "constant_reward": constant_reward,
    "delayed_reward": delayed_reward,
    "lqr": lqr,
    "memory": memory,
    "observation_action": observation_action,
    "observation_action_continuous": functools.partial(
        observation_action, continuous=True
    ),
    "observation_reward": observation_reward,
    "pendulum": pendulum,
    "ring": ring,
}


def names() -> list[str]:
    """The names of all probes."""
    return sorted(_MAKERS)


def make(name: str, **options: Any) -> Env:
    """Makes the probe called `name`, one of `names()`, with its own options.

    Raises:
      TypeError: the probe has no such option.
      KeyError: there is no such probe.
    """
    return call(_MAKERS[name], f"probe/{name}", **options)
