"""Success on table-top tasks: true reward, PEBBLE, SURF, A-PARL and its truncation.

    python -m experiments.parl.tabletop

The tasks of `envs.tabletop`, in the manner of Meta-World, on which the paper measures
too. A scripted teacher that is always right answers for the true reward, which no
learner of a reward sees. A piece is one task with one arm; the record is written
after each, and pieces that it holds are not trained again. Writes
`results/tabletop.json` and `results/tabletop.png`; with `--plot` summary and figure
alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.parl import arms
from experiments.parl.summary import COLOURS, NAMES
from experiments.records import describe, origin
from rlx.types import Array, Env, Key, Step

RESULTS = Path(__file__).parent / "results"
PATH = RESULTS / "tabletop.json"
TASKS = ("button_press", "drawer_close", "door_open")
ARMS = ("sac", "pebble", "surf", "ppo", "truncated", "likelihood")
PLAN = arms.Plan(
    budgets=(100,),
    queries=10,
    length=25,
    asking=0.7,
    reward={
        "reward_hidden_sizes": (64, 64),
        "reward_batch_size": 64,
        "reward_learning_rate": 1e-3,
    },
    on_policy={
        "gamma": 0.97,
        "learning_rate": 1e-3,
        "num_epochs": 10,
        "num_minibatches": 8,
    },
    rollout={"num_envs": 20, "length": 100},
    on_policy_batches=60,
    off_policy={
        "hidden_sizes": (64, 64),
        "num_minibatches": 8,
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "gamma": 0.97,
    },
    replay={
        "num_envs": 16,
        "capacity": 80_000,
        "warmup": 1_600,
        "batch_size": 128,
        "num_minibatches": 8,
    },
    off_policy_batches=1_500,
    pretraining=50,
    temperature=0.1,
    crop=3,
    oracle={"temperature": 0.1, "reward_scale": 0.1},
    candidates=5,
    evaluations=10,
    episodes=32,
)
"""PPO: 120,000 steps. SAC: 24,000, half a gradient step each."""
LONGER = {"door_open": 2}
"""How many times as long a task is trained."""
FINAL_EPISODES = 64
TINY = {"on_policy_batches": 2, "off_policy_batches": 40, "pretraining": 5}
TINY |= {"evaluations": 1, "episodes": 2}


def first_success(env: Env) -> Env:
    """The environment with a reward of 1 where it is solved for the first time.

    So the return of an episode says whether it was solved, at any time, as Meta-World
    counts (Yu et al. 2019, https://arxiv.org/abs/1910.10897).
    """

    def reset(key: Key) -> tuple[Any, Array]:
        state, observation = env.reset(key)
        return (state, jnp.bool_(False)), observation

    def step(state: Any, action: Array, key: Key) -> tuple[Any, Step]:
        inner, before = state
        inner, result = env.step(inner, action, key)
        solved = result.info["success"] > 0
        reward = (solved & ~before).astype(jnp.float32)
        return (inner, before | solved), result.replace(reward=reward)

    return env._replace(reset=reset, step=step)


def plan_of(task: str, plan: arms.Plan) -> arms.Plan:
    """The plan with the task's length of training."""
    times = LONGER.get(task, 1)
    return dataclasses.replace(
        plan,
        on_policy_batches=times * plan.on_policy_batches,
        off_policy_batches=times * plan.off_policy_batches,
    )


def train_arm(plan: arms.Plan, task: str, arm: str, seeds: list[int]) -> dict[str, Any]:
    """Trains one arm; success `[points][seeds]` on the way, returns at the end."""
    from envs import tabletop
    from rlx import evaluate, learner

    env = tabletop.make(task)
    began = time.perf_counter()
    method, hyper, result = arms.fit(
        plan_of(task, plan), arm, env, seeds, first_success(env)
    )
    if hyper:
        method = method({name: jnp.asarray(value[0]) for name, value in hyper.items()})

    def judge(state: Any, key: Key) -> tuple[Array, Array]:
        policy = learner.policy(method, state)
        returns, solved = (
            evaluate.episodes(e, policy, key, num_episodes=FINAL_EPISODES).returns
            for e in (env, first_success(env))
        )
        return returns.mean(), solved.mean()

    keys = jnp.stack([jax.random.fold_in(jax.random.key(7), seed) for seed in seeds])
    returns, solved = jax.jit(jax.vmap(judge))(result.state.learner, keys)
    return {
        "seeds": seeds,
        "steps": result.steps.tolist(),
        "success": np.round(result.returns, 4).tolist(),
        "final_success": np.asarray(solved, float).round(4).tolist(),
        "final_return": np.asarray(returns, float).round(1).tolist(),
        "metrics": arms.kept(result),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


def measure(arguments: argparse.Namespace, plan: arms.Plan, path: Path) -> None:
    """Trains the pieces that the record lacks."""
    record = json.loads(path.read_text()) if path.exists() else {}
    record |= {**origin("parl.tabletop", []), "plan": dataclasses.asdict(plan)}
    record |= {"longer": LONGER, "final_episodes": FINAL_EPISODES}
    pieces = record.setdefault("pieces", {})
    for arm in arguments.arms:
        for task in arguments.tasks:
            name = f"{task}/{arm}"
            if name in pieces:
                continue
            pieces[name] = found = train_arm(plan, task, arm, arguments.seeds)
            path.write_text(json.dumps(record) + "\n")
            print(name, found["final_success"], found["final_return"], flush=True)


def summarize(record: dict[str, Any]) -> dict[str, Any]:
    """Success and return at the end, over seeds."""
    found: dict[str, Any] = {}
    for task in TASKS:
        for arm in ARMS:
            piece = record["pieces"].get(f"{task}/{arm}")
            if piece:
                found.setdefault(task, {})[arm] = {
                    "success": describe(np.array(piece["final_success"])),
                    "return": describe(np.array(piece["final_return"])),
                }
    return found


def draw(record: dict[str, Any], path: Path) -> None:
    """Success against steps: SAC and what is built on it above, PPO below."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots(2, len(TASKS), sharey=True)
    for row, group in enumerate((ARMS[:3], ARMS[3:])):
        for axis, task in zip(axes[row], TASKS, strict=True):
            for arm in group:
                piece = record["pieces"].get(f"{task}/{arm}")
                if piece:
                    _band(axis, arm, piece)
            axis.set(ylim=(-0.03, 1.03), xlabel="thousand steps")
            if row == 0:
                axis.set_title(task.replace("_", " "))
            if not axis.lines:
                axis.set_axis_off()
        axes[row, 0].set_ylabel("share of episodes solved")
    shown = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        shown.values(), shown, loc="outside lower center", ncols=6, frameon=False
    )
    figure.savefig(path, dpi=110)


def _band(axis: Any, arm: str, piece: dict[str, Any]) -> None:
    """The mean over seeds, and from the least to the greatest."""
    steps = np.array(piece["steps"]) / 1000
    success = np.array(piece["success"])
    colour = COLOURS.get(arm, "#333333")
    label = NAMES.get(arm, f"{arm.upper()}, true reward")
    axis.plot(steps, success.mean(1), color=colour, label=label)
    low, high = success.min(1), success.max(1)
    axis.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)


def main() -> None:
    """Measures, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plot", action="store_true", help="draw, do not measure")
    parser.add_argument("--record", type=Path, default=PATH, help="where to")
    parser.add_argument("--tiny", action="store_true", help="only see that it runs")
    arguments = parser.parse_args()
    plan = dataclasses.replace(PLAN, **TINY) if arguments.tiny else PLAN
    if not arguments.plot:
        measure(arguments, plan, arguments.record)
    record = json.loads(arguments.record.read_text())
    record["summary"] = summarize(record)
    arguments.record.write_text(json.dumps(record) + "\n")
    print(json.dumps(record["summary"], indent=1))
    draw(record, arguments.record.with_suffix(".png"))


if __name__ == "__main__":
    main()
