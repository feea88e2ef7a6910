"""The benchmark for accelerators, made small enough for a CPU."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import accelerator, page

TINY = {
    "env": "probe/pendulum", "engine": "", "num-envs": 8, "num-minibatches": 2,
    "seeds": 2, "steps": 1280, "evaluations": 5, "episodes": 2, "target": -3300,
}  # fmt: skip
"""Five intervals of two batches, and a target that every policy reaches."""


def test_seconds_to_target_are_those_of_the_first_evaluation_that_reaches_it():
    returns = np.array([[0.0, 9.0, 1.0], [5.0, 1.0, 2.0], [4.0, 9.0, 3.0]])
    assert accelerator.reached(returns, [0.0, 2.0, 5.0], 4.5) == [2.0, 0.0, None]


def test_a_failed_row_says_what_it_wrote_last():
    options = argparse.Namespace(
        env="no_such_task", engine="", num_envs=2, length=2, num_epochs=1,
        num_minibatches=1, seeds=1, steps=8, evaluations=2, episodes=1, target=0.0,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="ppo ended with status 1: .*no_such_task"):
        accelerator.measure("ppo", options)


def test_the_page_shows_speed_memory_and_the_median_time_to_the_target():
    row = {
        "row": "ppo_seeds", "steps_per_second": 1234.4, "compile_seconds": 31.6,
        "peak_mib": None, "program_mib": 2048.0, "seconds_to_target": [4.0, None, 9.0],
    }  # fmt: skip
    content = {"rows": [row], "settings": {"target": 2500.0}}
    last = page.accelerator(content).splitlines()[-1]
    assert last == "| ppo seeds | 1,234 | 32 s | 2,048 MiB | 2 of 3, 6 s |"


@pytest.mark.slow
def test_every_row_trains_and_is_written(tmp_path):
    words = [sys.executable, "-m", "experiments.benchmarks.accelerator"]
    for name, value in TINY.items():
        words += [f"--{name}", str(value)]
    output = tmp_path / "accelerator.json"
    subprocess.run([*words, "--output", str(output)], check=True)
    content = json.loads(output.read_text())
    assert [row["row"] for row in content["rows"]] == list(accelerator.ROWS)
    for row in content["rows"]:
        seeds = 2 if row["row"].endswith("_seeds") else 1
        assert np.shape(row["returns"]) == (6, seeds)
        assert row["seconds_to_target"] == [0.0] * seeds
        assert row["steps_per_second"] > 0 and len(row["seconds_of_training"]) == 6
        # The worst return is 200 steps at a cost of about 16.3 each.
        assert np.all(np.array(row["returns"]) < 0)
        assert np.all(np.array(row["returns"]) > -3300)
