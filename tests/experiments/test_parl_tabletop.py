"""The table-top comparison: what counts as success, and what a record says."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from envs import tabletop as suite
from envs.tabletop import scripted
from experiments.parl import tabletop
from rlx import evaluate
from rlx.types import Policy


def judged(env, act):
    policy = Policy(
        lambda observation, carry, key: (act(observation), carry, {}), tuple
    )
    evaluation = jax.jit(
        lambda key: evaluate.episodes(env, policy, key, num_episodes=32).returns
    )
    return np.asarray(evaluation(jax.random.key(0)))


def test_an_episode_counts_once_if_it_was_ever_solved():
    """The controller solves all of them for most of their steps; idle hands none."""
    env = tabletop.first_success(suite.make("drawer_close"))
    np.testing.assert_array_equal(judged(env, scripted.policy("drawer_close")), 1)

    def idle(observation):
        return jnp.zeros((*observation.shape[:-1], 4))

    np.testing.assert_array_equal(judged(env, idle), 0)


def test_only_the_door_is_trained_for_longer():
    plans = [tabletop.plan_of(task, tabletop.PLAN) for task in tabletop.TASKS]
    assert [p.off_policy_batches for p in plans] == [1500, 1500, 3000]
    assert [p.on_policy_batches for p in plans] == [60, 60, 120]


def test_the_summary_and_the_figure_are_made_of_the_record(tmp_path):
    piece = {
        "seeds": [0, 1, 2],
        "steps": [0, 1000],
        "success": [[0.0, 0.0, 0.0], [0.5, 1.0, 0.75]],
        "final_success": [0.5, 1.0, 0.75],
        "final_return": [500.0, 900.0, 700.0],
    }
    record = {"pieces": {"door_open/sac": piece, "button_press/truncated": piece}}
    found = tabletop.summarize(record)
    assert set(found) == {"door_open", "button_press"}
    assert found["door_open"]["sac"]["success"]["mean"] == 0.75
    assert found["door_open"]["sac"]["return"]["min"] == 500
    json.dumps(found)
    tabletop.draw(record, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
