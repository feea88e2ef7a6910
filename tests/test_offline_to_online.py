"""Uni-O4's phases: nothing changes at a hand-over, resuming, bad budgets."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx import evaluate, learner, offline_to_online, train
from rlx.data.dataset_collect import collector, uniform_policy
from rlx.methods import ppo, uni_o4
from rlx.offline_to_online import Budget
from rlx.ops import normalization
from tests import fitting

ENV = probe.make("pendulum", time_limit=40)
CONFIG = uni_o4.Config(
    num_members=2,
    num_models=2,
    num_elites=1,
    hidden_sizes=(8,),
    model_hidden_sizes=(8,),
    gate_steps=5,
    num_minibatches=5,
    evaluation_starts=4,
    horizon=3,
    critic_learning_rate=1e-2,
)
BUDGET = Budget(
    foundation_steps=20,
    improvement_steps=10,
    online_steps=32,
    batch_size=16,
    holdout=20,
    num_envs=4,
    length=4,
)
ONLINE = offline_to_online.online_config(CONFIG, num_epochs=1, num_minibatches=2)
SETTINGS = train.Settings(evaluations=1, episodes=2)


@pytest.fixture(scope="module")
def data() -> Any:
    act = collector(
        ENV, lambda _: uniform_policy(ENV.spec.action), num_steps=400, num_envs=4
    )
    return act((), jax.random.key(0))


def fit(data: Any, **changes: Any) -> offline_to_online.Outcome:
    options = {"config": CONFIG, "online": ONLINE, "budget": BUDGET, "seeds": 2}
    return offline_to_online.fit(data, ENV, settings=SETTINGS, **{**options, **changes})


@pytest.fixture(scope="module")
def whole(data: Any, tmp_path_factory: Any) -> tuple[Any, pathlib.Path, list]:
    folder = tmp_path_factory.mktemp("uni_o4") / "run"
    rows: list = []
    outcome = fit(
        data, save_to=folder, on_row=lambda phase, row: rows.append((phase, row))
    )
    return outcome, folder, rows


def test_the_phases_follow_one_another(whole: Any):
    outcome, folder, rows = whole
    phases = list(dict.fromkeys(phase for phase, _ in rows))
    assert phases == ["foundation", "improvement", "online"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(phases)
    started = outcome.improvement.state.learner.target_params["members"]
    assert len(jax.tree.leaves(started)[0]) == 2
    assert int(outcome.improvement.state.learner.step[0]) == 10
    scores = np.asarray(outcome.improvement.state.learner.stats.score)
    np.testing.assert_array_equal(outcome.chosen, scores.argmax(axis=1))


@pytest.mark.parametrize("seed", [0, 1])
def test_online_learning_begins_with_the_improved_policy(
    whole: Any, data: Any, seed: int
):
    outcome = whole[0]
    learned = jax.tree.map(np.asarray, outcome.improvement.state.learner)
    start = offline_to_online.online_start(
        outcome.bases, learned.stats.acting, outcome.chosen, data, ONLINE, 4
    )
    params, stats = jax.tree.map(lambda x: x[seed], (start["params"], start["stats"]))
    online = ppo.make(ENV.spec, ONLINE)
    one = jax.tree.map(lambda x: x[seed], learned)
    base = jax.tree.map(lambda x: x[seed], outcome.bases)
    offline = uni_o4.improvement(ENV.spec, CONFIG, base)
    observation = jnp.asarray(data.transitions.observation[:50])
    mine = online.act(params, stats, observation, (), None)[0]
    theirs = offline.act(one.params, one.stats, observation, (), None)[0]
    # What is handed over is the member's own, to the bit; what two programs make of it,
    # one with a single member and one with all, is rounded as the machine does.
    member = jax.tree.map(lambda x: x[outcome.chosen[seed]], one.stats.acting)
    *torso, last = sorted(member)
    expected = {
        "policy": member[last],
        "policy_torso": {"MLP_0": {name: member[name] for name in torso}},
    }
    given = {name: params[name] for name in expected}
    jax.tree.map(np.testing.assert_array_equal, given, expected)
    jax.tree.map(np.testing.assert_array_equal, stats.observation, base.observation)
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


def test_offline_values_come_in_the_scale_of_the_online_rewards(whole: Any, data: Any):
    outcome = whole[0]
    learned = jax.tree.map(np.asarray, outcome.improvement.state.learner)
    options = (outcome.bases, learned.params["members"], outcome.chosen, data)
    scaled = offline_to_online.online_start(*options, ONLINE, 4)
    plain = offline_to_online.online_start(
        *options, dataclasses.replace(ONLINE, normalize_rewards=False), 4
    )
    assert plain["stats"].reward == ()
    # The deviation of the discounted returns, by a loop.
    total, totals = 0.0, []
    for reward, ended in zip(data.transitions.reward, data.ended, strict=True):
        total = float(reward) + ONLINE.gamma * total
        totals.append(total)
        total = 0.0 if ended else total
    deviation = np.std(totals)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            scaled["params"]["value"][name],
            plain["params"]["value"][name] / deviation,
            rtol=1e-4,
        )
    one = jax.tree.map(lambda x: x[0], scaled["stats"].reward.statistics)
    np.testing.assert_allclose(
        np.sqrt(normalization.variance(one)), deviation, rtol=1e-4
    )


def test_a_resumed_pipeline_is_the_unbroken_one(
    whole: Any, data: Any, tmp_path: pathlib.Path
):
    unbroken = whole[0]

    class BrokenError(Exception):
        pass

    def stop(phase: str, row: dict) -> None:
        if phase == "improvement" and row["step"]:
            raise BrokenError

    folder = tmp_path / "run"
    with pytest.raises(BrokenError):
        fit(data, save_to=folder, on_row=stop)
    resumed = fit(data, save_to=folder, resume=True)
    for name in ("foundation", "improvement", "online"):
        mine, theirs = getattr(resumed, name), getattr(unbroken, name)
        fitting.assert_same(mine.state.learner, theirs.state.learner)
        fitting.assert_same_rows(mine.rows, theirs.rows)


@pytest.mark.slow
def test_a_seed_does_not_depend_on_its_neighbours(whole: Any, data: Any):
    solo = fit(data, seeds=[1])
    for name in ("foundation", "improvement", "online"):
        both = jax.tree.map(lambda x: x[1:], getattr(whole[0], name).state.learner)
        fitting.assert_same(getattr(solo, name).state.learner, both)


def test_without_online_steps_there_is_no_third_phase(data: Any):
    budget = dataclasses.replace(BUDGET, online_steps=0)
    assert fit(data, budget=budget).online is None


def test_held_out_transitions_are_not_trained_on(data: Any):
    rest, out = offline_to_online.split(data, 30)
    assert rest.num_steps == 370 and len(out.reward) == 30
    both = np.concatenate([rest.transitions.observation, out.observation])
    given = data.transitions.observation
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(given, axis=0))
    assert len(offline_to_online.split(data, 1000)[1].reward) == 80  # a fifth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"foundation_steps": 12}, "choose 10 or 15"),
        ({"improvement_steps": 3}, "choose 5"),
    ],
)
def test_budgets_that_are_no_whole_batches_are_refused(
    data: Any, changes: dict, message: str
):
    with pytest.raises(ValueError, match=message):  # before anything is trained
        fit(data, budget=dataclasses.replace(BUDGET, **changes))


def test_a_budget_must_be_positive():
    with pytest.raises(ValueError, match="batch_size must be positive"):
        Budget(batch_size=0)


def test_the_policy_acts_in_the_environment(whole: Any):
    online = whole[0].online
    method = ppo.make(ENV.spec, ONLINE)
    state = jax.tree.map(lambda x: np.asarray(x)[0], online.state.learner)
    found = evaluate.episodes(
        ENV, learner.policy(method, state), jax.random.key(0), num_episodes=2
    )
    assert np.isfinite(found.returns).all()
