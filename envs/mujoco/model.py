"""Loads MuJoCo and the tasks' model files, when they are first needed."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from types import ModuleType
from typing import Any

_HINT = "pip install 'mujoco>=4' 'gymnasium>=1.1'"


@functools.cache
def import_mujoco() -> ModuleType:
    """Return the mujoco module, set up not to write `MUJOCO_LOG.TXT`.

    Raises:
      ImportError: mujoco is missing, or older than its `batch` module.
    """
    try:
        import mujoco
        import mujoco.batch
    except ImportError as error:
        raise ImportError(
            f"MuJoCo tasks need mujoco 4 or newer: {_HINT} ({error})."
        ) from error
    log = mujoco.MjLogConfig.get()
    log.logto_file = False
    log.set()
    return mujoco


def _assets() -> pathlib.Path:
    """Return the folder of model files in the installed gymnasium package."""
    spec = importlib.util.find_spec("gymnasium")  # finds it without importing it
    if spec is None or spec.origin is None:
        raise ImportError(f"MuJoCo tasks use gymnasium's model files: {_HINT}.")
    return pathlib.Path(spec.origin).parent / "envs" / "mujoco" / "assets"


def _find(file: str) -> pathlib.Path:
    path = pathlib.Path(file)
    if path.is_absolute():
        if not path.is_file():
            raise FileNotFoundError(f"There is no model file {file!r}.")
        return path
    path = _assets() / file
    if not path.is_file():
        raise FileNotFoundError(
            f"The installed gymnasium has no model {file!r}; update it: {_HINT}."
        )
    return path


def load(file: str) -> Any:
    """Return the `mujoco.MjModel` of a task's `model_file`.

    Automatic resets on divergence are switched off: a diverged simulation must show.

    Args:
      file: its name among gymnasium's MuJoCo assets, a path, or MJCF text.

    Raises:
      ImportError: mujoco or gymnasium is missing.
      FileNotFoundError: gymnasium lacks this file, or nothing is at this path.
    """
    mujoco = import_mujoco()
    log = mujoco.MjLogConfig.get()
    quiet = mujoco.MjLogConfig.get()
    quiet.logto_console = False  # gymnasium's files use deprecated attributes
    quiet.set()
    try:
        if file.lstrip().startswith("<"):
            model = mujoco.MjModel.from_xml_string(file)
        else:
            model = mujoco.MjModel.from_xml_path(str(_find(file)))
    finally:
        log.set()
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    return model
