"""What the conformance suite runs a method on.

A test module `tests/methods/test_<method>.py` may define

    def conformance_cases() -> dict[str, tuple[Method, DataSource]]: ...

where the defaults below do not fit (offline data, other environments, several
variants). Without it a method is run on a continuous and on a discrete probe.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from types import ModuleType

import jax

import rlx.methods
from envs import probe
from rlx import learner, train
from rlx.data.rollout import rollout
from rlx.types import DataSource, LearnerState, Method, PyTree

Case = tuple[Method, DataSource]


def method_modules() -> dict[str, ModuleType]:
    """Every method: the public modules of `rlx.methods`."""
    names = [m.name for m in pkgutil.iter_modules(rlx.methods.__path__)]
    return {
        name: importlib.import_module(f"rlx.methods.{name}")
        for name in names
        if not name.startswith("_")
    }


def cases(name: str, module: ModuleType) -> dict[str, Case]:
    """The method on its own cases, or on the default ones."""
    test_module = f"tests.methods.test_{name}"
    if importlib.util.find_spec(test_module) is not None:
        own = getattr(importlib.import_module(test_module), "conformance_cases", None)
        if own is not None:
            return own()
    return {
        env_name: on_policy_case(module, env_name) for env_name in ("lqr", "cartpole")
    }


def on_policy_case(module: ModuleType, env_name: str, **fields: object) -> Case:
    """A small on-policy method and its rollout on one of the probes."""
    env = probe.make(env_name)
    small = {
        "num_epochs": 2,
        "num_minibatches": 2,
        "hidden_sizes": (8,),
        "anneal_steps": 100,
    }
    known = {field.name for field in dataclasses.fields(module.Config)}
    fields = {k: v for k, v in small.items() if k in known} | fields
    config = module.Config(**fields)
    return module.make(env.spec, config), rollout(env, num_envs=4, length=8)


def all_cases() -> dict[str, Case]:
    """Every case of every method, by `method-case`."""
    return {
        f"{name}-{case}": value
        for name, module in method_modules().items()
        for case, value in cases(name, module).items()
    }


def first_batch(method: Method, source: DataSource) -> tuple[LearnerState, PyTree]:
    """A fresh learner and its first batch, prepared. Compiled: eager init is slow."""

    @jax.jit
    def make():
        state = train.init(method, source, jax.random.key(0))
        policy = learner.policy(method, state.learner)
        _, batch, _ = source.next(state.source, policy, jax.random.key(1))
        stats, batch = method.prepare(state.learner, batch)
        return state.learner.replace(stats=stats), batch

    return make()
