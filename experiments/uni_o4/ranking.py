"""How well AM-Q ranks policies: its scores against true returns.

    python -m experiments.uni_o4.ranking --task hopper --kind medium --seeds 4

Needs the dataset, the PPO run behind it and the first phase of `uni_o4`
(`experiments.uni_o4.data`, `experiments.uni_o4.offline --arms uni_o4`). Two families
of policies: the checkpoints of that PPO run, from random to expert; and neighbours of
the cloned ensemble, members with noise on their parameters, which is what the gate has
to tell apart. Writes `results/ranking_<task>_<kind>.json`: for every horizon and both
ways of counting (`uni_o4.Config.score`), Spearman's correlation with the true returns,
the share of pairs in the right order, and how long the model lets policies live; and
the plot.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import envs
from experiments.records import describe, origin, write
from experiments.uni_o4.offline import RESULTS
from experiments.uni_o4.tasks import BUDGET, CONFIG, DATA, KINDS, TASKS, file_of
from rlx import checkpoint, evaluate, learner, offline_to_online, saved
from rlx.data import dataset
from rlx.methods import _offline, _uni_o4, ppo, uni_o4
from rlx.methods._model_evaluation import Evaluation
from rlx.methods._uni_o4_evaluation import model_step, smallest_value
from rlx.networks.ensemble import member
from rlx.ops import normalization
from rlx.record import RunFolder
from rlx.types import Array, Env, Key, Policy, PyTree

HORIZONS = (10, 30, 100, 300)
NOISES = (0.0, 0.02, 0.05, 0.1, 0.2)
"""Deviations of the noise, in units of the deviation of each parameter array."""
STARTS = 256
EPISODES = 16
"""Of a true return: deterministic, fresh."""


class Family(NamedTuple):
    """Policies of one kind."""

    states: PyTree
    """Leaves `[P, ...]`."""
    act: Callable[[PyTree, Array], Array]
    """`(state, observation) -> action`, observations as the environment gives them."""


class Score(NamedTuple):
    """AM-Q of policies at several horizons, `[H, P]` each."""

    horizon: np.ndarray
    visited: np.ndarray
    alive: np.ndarray
    """Share of the horizon that rollouts lasted."""


def checkpoints(task: str) -> Family:
    """Every policy that the PPO run behind the dataset saved, of its first seed."""
    path = DATA / f"{task}-ppo"
    folder = RunFolder.open(path)
    fields = folder.config()["experiment"]["config"]
    fields["hidden_sizes"] = tuple(fields["hidden_sizes"])
    method = ppo.make(envs.make(task).spec, ppo.Config(**fields))
    steps = checkpoint.intact_steps(folder.checkpoints)
    runs = [saved.load(path, method, step) for step in steps]
    first = [jax.tree.map(lambda x: np.asarray(x[0]), run.learners) for run in runs]
    states = jax.tree.map(lambda *x: np.stack(x), *first)

    def act(state: PyTree, observation: Array) -> Array:
        action, _, _ = learner.policy(method, state).act(observation, (), None)
        return action

    return Family(states, act)


def neighbours(env: Env, base: uni_o4.Foundation, key: Key) -> Family:
    """The cloned members, and each with noise on its parameters."""
    nets = _uni_o4.networks(env.spec, CONFIG)

    def noisy(params: PyTree, noise: float, key: Key) -> PyTree:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        moved = [
            leaf + noise * jnp.std(leaf) * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)

    def act(params: PyTree, observation: Array) -> Array:
        seen = _offline.normalize(base.observation, observation)
        return jnp.clip(nets.policy(params, seen).mode(), -1.0, 1.0)

    rows = [
        noisy(member(base.members, i), noise, jax.random.fold_in(key, 100 * j + i))
        for j, noise in enumerate(NOISES)
        for i in range(CONFIG.num_members)
    ]
    return Family(jax.tree.map(lambda *x: jnp.stack(x), *rows), act)


def true_returns(env: Env, family: Family) -> np.ndarray:
    """Mean return of every policy, `[P]`."""

    @jax.jit
    def one(state: PyTree) -> Array:
        policy = Policy(lambda x, carry, key: (family.act(state, x), carry, {}), tuple)
        key = jax.random.key(0)
        found = evaluate.episodes(env, policy, key, num_episodes=EPISODES)
        return jnp.mean(found.returns)

    count = len(jax.tree.leaves(family.states)[0])
    return np.array([one(member(family.states, i)) for i in range(count)])


def scores(
    env: Env, base: uni_o4.Foundation, family: Family, start: Array, task: str
) -> Score:
    """AM-Q of every policy at every horizon, the same starts and noise for all."""
    nets = _uni_o4.networks(env.spec, CONFIG)

    def restore(seen: Array) -> Array:
        return normalization.denormalize(base.observation, seen)

    def one(state: PyTree, horizon: int) -> Evaluation:
        ended = TASKS[task]
        return uni_o4.am_q(
            lambda x: family.act(state, restore(x)),
            lambda x, action: smallest_value(nets, base, x, action),
            lambda x, action, key: model_step(nets, base, x, action, key),
            _offline.normalize(base.observation, start),
            jax.random.key(1),
            horizon,
            None if ended is None else lambda x: ended(restore(x)),
        )

    rows = []
    for horizon in HORIZONS:
        each = functools.partial(one, horizon=horizon)
        found = jax.jit(lambda states, each=each: jax.lax.map(each, states))(
            family.states
        )
        total, visited = np.asarray(found.total), np.asarray(found.visited)
        length = total.shape[-1] * horizon
        alive = visited.sum(-1) / length
        rows.append((total.sum(-1) / length, total.sum(-1) / visited.sum(-1), alive))
    return Score(*(np.stack(x) for x in zip(*rows, strict=True)))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of ranks."""
    ranks = [np.argsort(np.argsort(x)) for x in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def in_order(score: np.ndarray, truth: np.ndarray) -> float:
    """Share of pairs in the right order."""
    i, j = np.triu_indices(len(truth), 1)
    return float(np.mean(np.sign(score[i] - score[j]) == np.sign(truth[i] - truth[j])))


def foundations(task: str, kind: str, seeds: range, runs: Path) -> Any:
    """The first phase's results as the improvement gets them, leaves `[N, ...]`."""
    data = dataset.load(file_of(task, kind))
    env = envs.make(task)
    method = uni_o4.make(env.spec, CONFIG, dataset.observation_statistics(data))
    found = saved.load(runs / f"{task}_{kind}_uni_o4" / "foundation", method)
    if len(found.labels) < len(seeds):
        raise SystemExit(f"the first phase has {len(found.labels)} seeds: --seeds")
    _, held_out = offline_to_online.split(data, BUDGET.holdout)

    def one(state: PyTree) -> uni_o4.Foundation:
        return uni_o4.foundation(env.spec, CONFIG, state, held_out)

    return data, env, jax.jit(jax.vmap(one))(found.learners)


def main() -> None:
    """Ranks both families with the models and values of every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="hopper", choices=list(TASKS))
    parser.add_argument("--kind", default="medium", choices=KINDS)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/uni_o4"))
    arguments = parser.parse_args()
    task, kind, seeds = arguments.task, arguments.kind, range(arguments.seeds)
    data, env, bases = foundations(task, kind, seeds, arguments.runs)
    rows = np.random.default_rng(0).choice(data.num_steps, STARTS, replace=False)
    start = jnp.asarray(data.transitions.observation)[rows]
    old = checkpoints(task)
    truth_of_old = true_returns(env, old)
    found: dict[str, list[dict[str, Any]]] = {"checkpoints": [], "neighbours": []}
    for seed in seeds:
        base = member(bases, seed)
        near = neighbours(env, base, jax.random.key(seed))
        truth = {"checkpoints": truth_of_old, "neighbours": true_returns(env, near)}
        for name, family in (("checkpoints", old), ("neighbours", near)):
            score = scores(env, base, family, start, task)
            row = {field: np.round(x, 4) for field, x in score._asdict().items()}
            found[name].append({"truth": np.round(truth[name], 2), **row})
            print(name, seed, table(found[name][-1:]), flush=True)
    record = {
        "task": task,
        "kind": kind,
        "seeds": list(seeds),
        "horizons": HORIZONS,
        "noises": NOISES,
        "table": {name: table(rows) for name, rows in found.items()},
        "policies": {
            name: [{k: x.tolist() for k, x in row.items()} for row in rows]
            for name, rows in found.items()
        },
        "budget": dataclasses.asdict(BUDGET),
        **origin("uni_o4.ranking"),
    }
    write(RESULTS / f"ranking_{task}_{kind}.json", record)


def table(rows: list[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """A line per way of counting and horizon, over seeds."""
    lines = []
    for way in ("horizon", "visited"):
        for index, horizon in enumerate(HORIZONS):
            pairs = [(row[way][index], row["truth"]) for row in rows]
            lines.append(
                {
                    "score": way,
                    "horizon": horizon,
                    "spearman": describe(np.array([spearman(*p) for p in pairs])),
                    "in_order": describe(np.array([in_order(*p) for p in pairs])),
                    "alive": float(np.mean([row["alive"][index] for row in rows])),
                }
            )
    return lines


if __name__ == "__main__":
    main()
