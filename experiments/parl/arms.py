"""The arms of the comparisons on continuous control, and how one is trained.

Three share PPO as their lower level (κ = 0, A-PARL with either upper level), two share
SAC (PEBBLE, SURF); PPO and SAC on the true reward are what they are held against.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from rlx.types import DataSource, Env, Method

ON_POLICY = ("ppo", "truncated", "likelihood", "utility")
OFF_POLICY = ("sac", "pebble", "surf")
Maker = Callable[[Mapping[str, jax.Array]], Method]
Hyper = dict[str, list[float]]
KEPT = ("agreement", "direct_norm", "implicit_norm", "cosine", "implicit_scale")
"""What a record keeps of the last session."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one comparison trains: budgets, lengths, and settings of all its arms."""

    budgets: tuple[int, ...]
    """Labels."""
    queries: int
    """Asked in a session."""
    length: int
    """Steps of a segment."""
    reward: Mapping[str, Any]
    """Of the learned reward, for every arm that has one."""
    on_policy: Mapping[str, Any]
    """Of PPO."""
    rollout: Mapping[str, int]
    """Of PPO's data."""
    on_policy_batches: int
    off_policy: Mapping[str, Any]
    """Of SAC."""
    replay: Mapping[str, int]
    """Of SAC's data."""
    off_policy_batches: int
    pretraining: int
    """Batches."""
    temperature: float
    """Of PEBBLE and SURF."""
    crop: int
    """Of SURF."""
    oracle: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of SAC on the true reward."""
    bilevel: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of A-PARL with the implicit term."""
    semi: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More of SURF's."""
    asking: float = 1.0
    """Sessions are spread evenly over this part of a run."""
    candidates: int = 10
    """PEBBLE's and SURF's, for each query."""
    evaluations: int = 15
    episodes: int = 16
    """In each of them."""

    def sessions(self, batches: int) -> Hyper:
        """Budgets, and the batches between sessions that spread each evenly."""
        over = int(batches * self.asking)
        every = [float(over * self.queries // budget) for budget in self.budgets]
        return {"num_labels": list(self.budgets), "session_interval": every}

    def labelled(self, **fields: Any) -> dict[str, Any]:
        """Fields of a method that learns a reward."""
        sizes = {"segment_length": self.length, "queries_per_session": self.queries}
        return {"label_capacity": max(self.budgets), **self.reward, **sizes, **fields}


def on_policy(
    plan: Plan, arm: str, env: Env
) -> tuple[Method | Maker, DataSource, Hyper | None]:
    """Method or its maker, source and settings."""
    from rlx.data.rollout import rollout
    from rlx.methods import parl, ppo

    source = rollout(env, **plan.rollout)
    fields = dict(plan.on_policy)
    steps = fields["num_epochs"] * fields["num_minibatches"]
    fields["anneal_steps"] = steps * plan.on_policy_batches
    if arm == "ppo":
        return ppo.make(env.spec, ppo.Config(**fields)), source, None
    own = {"upper": arm, "kappa": 1.0, **plan.bilevel}
    if arm == "truncated":
        own = {"upper": "likelihood", "kappa": 0.0, "solver": "none"}
    fields |= plan.labelled(num_candidates=plan.queries, **own)

    def make(hyper: Mapping[str, jax.Array]) -> Method:
        return parl.make(env.spec, parl.Config(**fields, **hyper))

    return make, source, plan.sessions(plan.on_policy_batches)


def off_policy(
    plan: Plan, arm: str, env: Env
) -> tuple[Method | Maker, DataSource, Hyper | None]:
    """Method or its maker, source and settings."""
    from rlx.data.replay import replay
    from rlx.data.segments import segments
    from rlx.methods import pebble, sac, surf

    if arm == "sac":
        config = sac.Config(**plan.off_policy, **plan.oracle)
        return sac.make(env.spec, config), replay(env, **plan.replay), None
    module: ModuleType = {"pebble": pebble, "surf": surf}[arm]
    own: dict[str, Any] = {"temperature": plan.temperature}
    own["pretraining_batches"] = plan.pretraining
    length = plan.length
    if arm == "surf":
        own |= {"crop": plan.crop, **plan.semi}
        length += 2 * plan.crop
    fields = {**plan.off_policy, **plan.labelled(**own)}

    def make(hyper: Mapping[str, jax.Array]) -> Method:
        return module.make(env.spec, module.Config(**fields, **hyper))

    source = segments(
        env,
        segment_length=length,
        num_candidates=plan.candidates * plan.queries,
        **plan.replay,
    )
    return make, source, plan.sessions(plan.off_policy_batches - plan.pretraining)


class Fitted(NamedTuple):
    """An arm after training."""

    method: Method | Maker
    hyper: Hyper | None
    """What a `Maker` was given, for all settings together; None for a method."""
    result: Any
    """What `rlx.train.fit` returned."""


def fit(
    plan: Plan,
    arm: str,
    env: Env,
    seeds: int | Sequence[int],
    evaluation_env: Env | None = None,
) -> Fitted:
    """Trains one arm with all budgets and seeds."""
    from rlx import train

    build, batches = on_policy, plan.on_policy_batches
    if arm in OFF_POLICY:
        build, batches = off_policy, plan.off_policy_batches
    method, source, hyper = build(plan, arm, env)
    settings = train.Settings(
        evaluations=plan.evaluations,
        episodes=plan.episodes,
        evaluation_env=evaluation_env,
    )
    steps = batches * source.steps_per_batch
    result = train.fit(
        method, source, num_steps=steps, seeds=seeds, hyper=hyper, settings=settings
    )
    return Fitted(method, hyper, result)


def kept(result: Any, shape: tuple[int, ...] = (-1,)) -> dict[str, Any]:
    """What a record keeps of a fit's last session, as lists of a shape."""
    last = result.rows[-1]["train"]
    return {
        name: np.round(np.reshape(last[name], shape), 4).tolist()
        for name in KEPT
        if name in last
    }


def train(plan: Plan, arm: str, env: Env, seeds: int | Sequence[int]) -> dict[str, Any]:
    """Trains one arm with all budgets and seeds; returns `[points, budgets, seeds]`."""
    began = time.perf_counter()
    _, hyper, result = fit(plan, arm, env, seeds)
    shape = (len(plan.budgets) if hyper else 1, -1)
    returns = result.returns.reshape(len(result.steps), *shape)
    return {
        "steps": result.steps.tolist(),
        "returns": np.round(returns, 2).tolist(),
        "labels": _asked(result).reshape(shape).tolist() if hyper else None,
        "metrics": kept(result, shape),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


def _asked(result: Any) -> np.ndarray:
    """Queries of every run, at its end."""
    return np.asarray(result.state.learner.stats.labels.asked)
