"""Environments by name: `envs.make("hopper")`, `envs.names()`.

A plain name is a MuJoCo task; other suites have a prefix: `probe/chain`, `brax/ant`.
No suite is imported before one of its environments is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from types import ModuleType
from typing import Any, NamedTuple

from rlx.types import Env


class Suite(NamedTuple):
    """Where the environments of one prefix live: a module with `make` and `names`."""

    module: str
    requires: tuple[str, ...] = ()
    """Modules of other libraries without which the suite cannot be imported."""
    install: str = ""
    """What pip installs to get them."""


SUITES: dict[str, Suite] = {
    "": Suite("envs.mujoco", ("mujoco", "gymnasium"), "mujoco gymnasium"),
    "control": Suite("envs.control", ("mujoco",), "mujoco"),
    "tabletop": Suite("envs.tabletop", ("mujoco",), "mujoco"),
    "probe": Suite("envs.probe"),
    "diffusion": Suite("envs.diffusion.catalogue"),
    "conversation": Suite("envs.conversation.suite"),
    "brax": Suite("envs.brax", ("brax",), "brax"),
    "gymnax": Suite("envs.gymnax", ("gymnax",), "'rlx[gymnax]'"),
    "playground": Suite("envs.playground", ("mujoco_playground",), "'rlx[playground]'"),
}
"""Prefix of the name -> suite. A new suite is one file and one line here."""


def make(name: str, **options: Any) -> Env:
    """Makes the environment called `name`.

    Args:
      name: one of `names()`, such as `"hopper"`, `"probe/chain"` or `"brax/ant"`.
      **options: passed on to the suite's own `make`.

    Returns:
      One environment without a batch axis; `jax.vmap` makes many.

    Raises:
      ValueError: no such environment; the message suggests the nearest name.
      ModuleNotFoundError: the suite's library is missing; the message says how to
        install it.
    """
    prefix, local = _split(name)
    if prefix not in SUITES:
        raise ValueError(_unknown(name))
    suite = _load(name, SUITES[prefix])
    if local not in suite.names():
        raise ValueError(_unknown(name))
    return suite.make(local, **options)


def names() -> list[str]:
    """All names that `make` knows here; suites whose library is missing are left out.

    Imports the libraries of every suite that is installed.
    """
    found: list[str] = []
    for prefix, suite in SUITES.items():
        if not _missing(suite):
            local = importlib.import_module(suite.module).names()
            found += [f"{prefix}/{name}" if prefix else name for name in local]
    return sorted(found)


def missing() -> dict[str, str]:
    """The suites that cannot be imported here, each with the pip line that mends it."""
    return {
        prefix or "mujoco": f"pip install {suite.install}"
        for prefix, suite in SUITES.items()
        if _missing(suite)
    }


def _split(name: str) -> tuple[str, str]:
    prefix, slash, local = name.partition("/")
    return (prefix, local) if slash else ("", name)


def _missing(suite: Suite) -> list[str]:
    return [name for name in suite.requires if importlib.util.find_spec(name) is None]


def _load(name: str, suite: Suite) -> ModuleType:
    absent = _missing(suite)
    if absent:
        raise ModuleNotFoundError(
            f"{name!r} needs {' and '.join(absent)}: pip install {suite.install}"
        )
    return importlib.import_module(suite.module)


def _unknown(name: str) -> str:
    known = names()
    # "Hopper-v5" and "chain" should find "hopper" and "probe/chain".
    plain = name.lower().partition("-v")[0].replace("-", "_")
    local = {entry.rpartition("/")[2]: entry for entry in known}
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.6)
    near += [
        local[match]
        for match in difflib.get_close_matches(plain, local, n=3, cutoff=0.6)
        if local[match] not in near
    ]
    hint = f" Did you mean {' or '.join(map(repr, near[:3]))}?" if near else ""
    return f"No environment {name!r}.{hint} `rlx list` or envs.names() shows all."
