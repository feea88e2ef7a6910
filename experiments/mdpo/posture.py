"""How the trained cheetahs run: on their feet or on their backs.

    python -m experiments.mdpo.posture

Takes the HalfCheetah runs of `experiments.mdpo.on_policy` (training what is missing),
runs one episode of each seed's deterministic policy, and writes the return and the
median pitch of the torso after the first 200 steps to `results/posture.json`. A pitch
near 0 is upright, near pi is on the back.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from experiments.mdpo.on_policy import BUDGETS, RESULTS, train_one
from experiments.records import origin, write
from rlx import learner, sharding

TASK = "half_cheetah"
PITCH = 1
"""Index of the torso's pitch, in radians, in the observation."""


def main() -> None:
    """Runs the episodes and writes the table."""
    sharding.use_cpu_cores()
    rows = []
    for name in ("mdpo", "ppo"):
        env, method, result, _ = train_one(
            TASK, name, range(4), BUDGETS[TASK], Path("runs/experiments/mdpo")
        )

        @jax.jit
        def episode(state, key, env=env, method=method):
            policy = learner.policy(method, state)
            reset_key, key = jax.random.split(key)

            def step(carry, step_key):
                env_state, observation = carry
                action, _, _ = policy.act(observation, (), None)
                env_state, new = env.step(env_state, action, step_key)
                return (env_state, new.observation), (
                    new.observation[PITCH],
                    new.reward,
                )

            keys = jax.random.split(key, env.spec.time_limit)
            return jax.lax.scan(step, env.reset(reset_key), keys)[1]

        for i, run in enumerate(result.runs):
            state = jax.tree.map(lambda x, i=i: x[i], result.state.learner)
            pitch, reward = episode(state, jax.random.key(0))
            rows.append(
                {
                    "method": name,
                    "seed": int(run["seed"]),
                    "return": round(float(np.sum(reward)), 1),
                    "median_pitch": round(float(np.median(pitch[200:])), 3),
                }
            )
            print(rows[-1], flush=True)
    write(RESULTS / "posture.json", {"rows": rows, **origin("mdpo.posture")})


if __name__ == "__main__":
    main()
