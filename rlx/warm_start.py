"""Runs that begin with what was learned elsewhere: fine-tuning, phases, transfer."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rlx import sharding
from rlx.types import Method, PyTree


def checked(
    start: Mapping[str, PyTree], method: Method, num_envs: int, number: int
) -> dict[str, PyTree]:
    """What runs begin with, on the host, once it is known to fit the method.

    Args:
      start: `params`, `stats` or both, leaves `[N, ...]`, one for each run.
      method: says what they must look like.
      num_envs: streams of experience in a batch.
      number: N.

    Raises:
      ValueError: another name, or leaves that are not N of those of the method.
    """
    made = {
        "params": lambda: method.init(jax.random.key(0)),
        "stats": lambda: method.init_stats(num_envs),
    }
    for name, tree in start.items():
        if name not in made:
            raise ValueError(f"start: expected params or stats, got {name!r}")
        _require_leaves(f"start[{name!r}]", tree, jax.eval_shape(made[name]), number)
    # Off the mesh on which it was learned, which the next fit would refuse.
    return {name: sharding.gather(tree) for name, tree in start.items()}


def begun(method: Method, start: Mapping[str, PyTree]) -> Method:
    """The method of one run, which begins with `start` (leaves `[...]`) as it is."""
    if "params" in start:
        method = method._replace(init=lambda key: start["params"])
    if "stats" in start:
        method = method._replace(init_stats=lambda num_envs: start["stats"])
    return method


def _require_leaves(name: str, given: PyTree, wanted: PyTree, number: int) -> None:
    have, need = (str(jax.tree.structure(x)) for x in (given, wanted))
    if have != need:
        raise ValueError(f"{name}: the method has the structure {need}, got {have}")
    paths = jax.tree_util.tree_leaves_with_path(given)
    for (path, mine), leaf in zip(paths, jax.tree.leaves(wanted), strict=True):
        shape, dtype = jnp.shape(mine), jnp.result_type(mine)
        if shape != (number, *leaf.shape) or dtype != leaf.dtype:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: {number} runs of this method "
                f"need {leaf.dtype}{[number, *leaf.shape]}, got {dtype}{list(shape)}"
            )
