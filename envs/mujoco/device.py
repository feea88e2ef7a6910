"""Loads MJX and Warp, when they are first needed, and without their announcements."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
from types import ModuleType
from typing import Any

from envs.mujoco.model import import_mujoco
from envs.mujoco.task import Task


@functools.cache
def import_mjx() -> ModuleType:
    """Return `mujoco.mjx`, which announces on stdout what it does not find.

    Raises:
      ImportError: mujoco-mjx is missing.
    """
    import_mujoco()
    try:
        with quiet():
            from mujoco import mjx
    except ImportError as error:
        raise ImportError(
            f"The MJX engines need mujoco-mjx: pip install mujoco-mjx ({error})."
        ) from error
    return mjx


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which libraries print nothing to stdout."""
    return contextlib.redirect_stdout(io.StringIO())


def reason(error: NotImplementedError) -> str:
    """What MJX lacks, in words: its own message may be a bare enum."""
    text = str(error).strip().rstrip(".")
    return text if " " in text else f"{text} is not implemented in MJX"


def prepare_for_warp(
    library: ModuleType, task: Task, model: Any, max_envs: int
) -> dict[str, int]:
    """Change the model where Warp asks for it; return the sizes of its buffers.

    Raises:
      ImportError: warp-lang is missing.
      NotImplementedError: the task reads what Warp does not compute.
    """
    if importlib.util.find_spec("warp") is None:
        raise ImportError("The warp engine needs warp-lang: pip install 'rlx[warp]'.")
    if task.contact_forces:
        raise NotImplementedError("MJX computes contact forces in JAX only")
    import warp

    warp.config.quiet = True  # it announces itself and every kernel that it loads
    # Warp knows no automatic resets, and refuses the flag that switches them off.
    model.opt.disableflags &= ~import_mujoco().mjtDisableBit.mjDSBL_AUTORESET.value
    most = library.make_data(model, impl="jax")._impl
    return {"naconmax": most.ncon * max_envs, "njmax": max(1, most.nefc)}
