"""Do several gradient steps per batch matter, and is the proximal term needed?

    python -m experiments.mdpo.ablation [--tasks probe/pendulum hopper] [--seeds 6]

The policy takes m full-batch steps of Adam on each batch, as in the authors' code; the
value function is then fitted by the same 5 epochs of minibatches in every arm, so that
the arms differ in the policy's steps alone:

- `m=1`, `m=5`, `m=10`, `m=20`: MDPO with that many steps;
- `m=10, no KL`, `m=20, no KL`: the same steps without the proximal term (t infinite).

`MDPO minibatches` and `PPO minibatches` are the library's methods with their own
settings, 10 epochs of 8 minibatches; `minibatches, no KL` is that MDPO with t infinite.
Writes `results/ablation_<task>.json` and `.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.mdpo._shared import RESULTS
from experiments.records import Curve, describe, origin, write

STEPS = {"probe/pendulum": 300_000, "hopper": 300_000}
"""Environment steps per seed."""
NUM_ENVS, LENGTH = 40, 50
VALUE_EPOCHS, VALUE_MINIBATCHES = 5, 8
LEARNING_RATE = 1e-3
"""Of full-batch steps; minibatch steps keep the methods' own 3e-4."""
ARMS = ("m=1", "m=5", "m=10", "m=20", "m=10, no KL", "m=20, no KL")
WHOLE = ("MDPO minibatches", "PPO minibatches", "minibatches, no KL")


def full_batch(spec: Any, steps: int, iterations: int, step_size: float) -> Any:
    """MDPO whose policy takes `steps` full-batch steps before its value is fitted.

    Two methods in one: each has its own optimiser, which sees its own half of the
    parameters.
    """
    from rlx import learner as learner_lib
    from rlx.methods import mdpo

    per_batch = steps + VALUE_EPOCHS * VALUE_MINIBATCHES
    common = mdpo.Config(
        learning_rate=LEARNING_RATE,
        step_size=step_size,
        anneal_steps=per_batch * iterations,
    )
    policy = mdpo.make(
        spec,
        dataclasses.replace(
            common, num_epochs=steps, num_minibatches=1, value_coefficient=0.0
        ),
    )
    value = mdpo.make(
        spec,
        dataclasses.replace(
            common, num_epochs=VALUE_EPOCHS, num_minibatches=VALUE_MINIBATCHES
        ),
    )

    def half(method: Any, wanted: Callable[[str], bool]) -> Any:
        def labels(params: Any) -> Any:
            return {name: "on" if wanted(name) else "off" for name in params}

        optimizer = optax.partition(
            {"on": method.optimizer, "off": optax.set_to_zero()}, labels
        )
        return method._replace(optimizer=optimizer, prepare=_prepared)

    halves = (
        half(policy, lambda name: not name.startswith("value")),
        half(value, lambda name: name.startswith("value")),
    )

    def init(params: Any) -> tuple[Any, ...]:
        return tuple(method.optimizer.init(params) for method in halves)

    def update(learner: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        states, metrics = list(learner.opt_state), {}
        for i, key_of_half in enumerate(jax.random.split(key)):
            learner = learner.replace(opt_state=states[i])
            learner, of_half = learner_lib.update(
                halves[i], learner, batch, key_of_half
            )
            states[i] = learner.opt_state
            name = ("policy", "value")[i]
            metrics |= {f"{name}/{k}": v for k, v in of_half.items()}
        return learner.replace(opt_state=tuple(states)), metrics

    optimizer = optax.GradientTransformation(init, policy.optimizer.update)
    return policy._replace(optimizer=optimizer, update=update)


def _prepared(learner: Any, batch: Any) -> tuple[Any, Any]:
    return learner.stats, batch


def make_method(spec: Any, arm: str, source: Any, num_steps: int) -> Any:
    """The method of an arm."""
    from rlx import train
    from rlx.methods import mdpo, ppo

    if arm in WHOLE:
        module = ppo if arm.startswith("PPO") else mdpo
        config = module.Config()
        schedule = train.gradient_steps(config, source, num_steps)
        config = dataclasses.replace(config, anneal_steps=schedule)
        if arm == "minibatches, no KL":
            config = dataclasses.replace(config, step_size=float("inf"))
        return module.make(spec, config)
    steps = int(arm.split(",")[0].removeprefix("m="))
    step_size = float("inf") if "no KL" in arm else 1.0
    iterations = num_steps // source.steps_per_batch
    return full_batch(spec, steps, iterations, step_size)


def run(task: str, arm: str, seeds: int, num_steps: int) -> dict[str, Any]:
    """Trains one arm; returns its curves and its mean KL per batch."""
    import envs
    from rlx import train
    from rlx.data.rollout import rollout

    env = envs.make(task)
    source = rollout(env, num_envs=NUM_ENVS, length=LENGTH)
    result = train.fit(
        make_method(env.spec, arm, source, num_steps),
        source,
        num_steps=num_steps,
        seeds=seeds,
        settings=train.Settings(evaluations=10, episodes=10),
    )
    name = "policy/kl" if arm in ARMS else "behaviour_kl"
    kl = [row["train"][name] for row in result.rows[1:]]
    final = describe(result.returns[-1])
    print(
        f"{task} {arm}: IQM {final['iqm']:.0f} [{final['low']:.0f}, "
        f"{final['high']:.0f}]",
        flush=True,
    )
    return {
        "arm": arm,
        "steps": result.steps.tolist(),
        "returns": result.returns.round(2).tolist(),
        "kl": np.asarray(kl, float).round(6).tolist(),
        "final": final,
    }


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--arms", nargs="+", default=[*ARMS, *WHOLE])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, help="instead of 300,000")
    arguments = parser.parse_args()
    from rlx import plot, sharding

    sharding.use_cpu_cores()
    for task in arguments.tasks:
        steps = arguments.steps or STEPS[task]
        arms = [run(task, arm, arguments.seeds, steps) for arm in arguments.arms]
        path = RESULTS / f"ablation_{Path(task).name}"
        content = {
            "study": "ablation",
            "env": task,
            "seeds": arguments.seeds,
            "arms": arms,
            "num_envs": NUM_ENVS,
            "length": LENGTH,
            **origin("mdpo.ablation"),
        }
        write(path.with_suffix(".json"), content)
        curves = {
            arm["arm"]: Curve(np.array(arm["steps"]), np.array(arm["returns"]))
            for arm in arms
        }
        plot.curve(curves, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
