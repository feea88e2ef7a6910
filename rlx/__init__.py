"""rlx: functional reinforcement learning in JAX.

Every method is a record of pure functions (`rlx.types.Method`), a data source is
where batches come from, and one loop joins them::

    import envs
    from rlx import train
    from rlx.data import rollout
    from rlx.methods import ppo

    env = envs.make("hopper")
    source = rollout.rollout(env, num_envs=64, length=128)
    result = train.fit(ppo.make(env.spec), source, seeds=8, num_steps=1_000_000)

Importing `rlx` imports nothing else: its modules load when first named.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

__version__ = "0.1.0"


def _submodules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def __getattr__(name: str) -> ModuleType:
    """Imports `rlx.<name>` when it is first asked for."""
    if name in _submodules():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'rlx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *_submodules()])
