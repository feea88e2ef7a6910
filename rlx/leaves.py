"""The leaves of a state: their names, what identifies them, to the host and back.

What `rlx.checkpoint` knows of each array, without the library that stores it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.step_folders import CheckpointError
from rlx.types import PyTree


def named(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by their paths, such as `.learner.params['bias']`.

    Raises:
      CheckpointError: a leaf is neither an array nor a number.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path)
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float):
            raise CheckpointError(
                f"state{name} is a {type(leaf).__name__}, which no checkpoint holds: "
                "a state is made of arrays"
            )
        found[name] = leaf
    return found


def dtype(leaf: Any) -> np.dtype:
    """Return the dtype of an array or of a Python number."""
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def is_key(leaf: Any) -> bool:
    """Return whether a leaf holds typed PRNG keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def signature(leaf: Any) -> str:
    """Return what must agree between a checkpoint and a run: `float32[8,3]`."""
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def describe(leaves: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a checkpoint says of its leaves, as JSON values.

    `is` is the signature; `shape` is that of the raw array, which for keys has one
    axis more; `prng` names the generator of keys.
    """
    entries = []
    for index, (name, leaf) in enumerate(leaves.items()):
        raw = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        entries.append(
            {
                "name": name,
                "key": str(index),
                "is": signature(leaf),
                "prng": str(jax.random.key_impl(leaf)) if is_key(leaf) else None,
                "shape": list(np.shape(raw)),
            }
        )
    return entries


def below(part: str, entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the described leaves of a subtree by their paths within it."""
    return {
        entry["name"].removeprefix(part): entry
        for entry in entries
        if not part or entry["name"].startswith((part + ".", part + "["))
    }


def misfit(saved: dict[str, dict[str, Any]], targets: dict[str, Any]) -> str:
    """Return the first differences between a checkpoint and a run in words, or ''."""
    there = {name: entry["is"] for name, entry in saved.items()}
    here = {name: signature(leaf) for name, leaf in targets.items()}
    wrong = [
        f"state{name} is {there.get(name, 'absent')} there and "
        f"{here.get(name, 'absent')} here"
        for name in [*here, *(name for name in there if name not in here)]
        if there.get(name) != here.get(name)
    ]
    more = f" (and {len(wrong) - 2} more)" if len(wrong) > 2 else ""
    return "; ".join(wrong[:2]) + more


def to_host(leaf: Any) -> Any:
    """Return key data for keys, host arrays for all that this process holds whole."""
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf
    return np.asarray(leaf)


def place(value: Any, entry: dict[str, Any], target: Any) -> Any:
    """Turn what was read into a leaf of the kind, and at the place, of `target`."""
    if value is None:  # an empty array, which needs no file
        kind = np.uint32 if entry["prng"] else dtype(target)
        value = np.empty(tuple(entry["shape"]), kind)
    if not hasattr(target, "dtype"):
        return type(target)(value.item())
    if isinstance(target, np.ndarray | np.generic):
        return value if isinstance(target, np.ndarray) else value[()]
    # A copy: memory shared with NumPy could not be donated.
    array = value if isinstance(value, jax.Array) else jnp.array(value)
    if entry["prng"]:
        array = jax.random.wrap_key_data(array, impl=entry["prng"])
    sharding = getattr(target, "sharding", None)
    if sharding is None or not getattr(target, "committed", True):
        return array
    return jax.device_put(array, sharding)
