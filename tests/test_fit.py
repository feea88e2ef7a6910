"""`train.fit`: exact resumption, seeds and sweeps, interrupts, bad input."""

from __future__ import annotations

import errno
import math
import os
import pathlib
import signal
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import checkpoint, files, loop, program, record, sharding, train
from rlx.data import replay
from rlx.data.rollout import rollout
from rlx.fitting import slice_seconds
from rlx.record import RunFolder, RunFolderError
from rlx.step_folders import CheckpointError
from rlx.types import Env
from tests import fitting, toy
from tests.fit_process import problem, settings, stop_at

STEPS = 10 * 16
"""Ten batches of the toy's sixteen steps; rows at 0, 48, 112 and 160."""


METHOD, SOURCE = toy.method(), toy.source()
BUILD = program.build
BUILT: dict[Any, program.Programs] = {}


def build_once(make_method: Any, source: Any, runs: Any, **options: Any) -> Any:
    """`program.build`, which compiles the same programs only once for all tests."""
    env = options.pop("evaluation_env")
    seeds = jax.random.key_data(runs.train_key).tobytes()
    key = (seeds, env.step, env.spec, str(options))
    if source is not SOURCE:
        return BUILD(make_method, source, runs, evaluation_env=env, **options)
    if key not in BUILT:
        built = BUILD(make_method, source, runs, evaluation_env=env, **options)
        BUILT[key] = built
    return BUILT[key]


def fit(**options: Any) -> train.Result:
    """A fit of the toy; its programs come from the tests before where they can."""
    defaults = {"num_steps": STEPS, "seeds": 2, "settings": settings()}
    method, source = options.pop("method", METHOD), options.pop("source", SOURCE)
    build = options.pop("build", build_once)
    with pytest.MonkeyPatch.context() as patch:
        if method is METHOD:
            patch.setattr(program, "build", build)
        return train.fit(method, source, **{**defaults, **options})


@pytest.fixture(scope="module")
def whole() -> train.Result:
    """Seeds 0 and 1, never interrupted, without a folder."""
    return fit()


# --------------------------------------------------------------------------- exactness


@pytest.mark.parametrize(
    "name", ["toy", "ppo", pytest.param("mdpo", marks=pytest.mark.slow)]
)
def test_resumed_is_unbroken_across_processes(name: str, tmp_path: pathlib.Path):
    # Native MuJoCo with either method: physics, warm start and normalisers come back.
    method, source = problem(name)
    options = {"num_steps": STEPS, "seeds": [0, 3], "save_to": tmp_path / "run"}
    start = fitting.start(
        {**options, "save_to": str(tmp_path / "run"), "problem": name, "stop_at": 16}
    )
    unbroken = fit(
        method=method, source=source, **{**options, "save_to": tmp_path / "unbroken"}
    )
    (said,) = fitting.finish(start)
    assert "interrupted: stopped by SIGTERM at step 16" in said
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [16]
    resumed = fit(method=method, source=source, resume=True, **options)
    fitting.assert_same(unbroken.state, resumed.state)
    fitting.assert_same_rows(unbroken.rows, resumed.rows)
    with (
        RunFolder.open(tmp_path / "run") as a,
        RunFolder.open(tmp_path / "unbroken") as b,
    ):
        fitting.assert_same_rows(a.rows(), b.rows())
        fitting.assert_same_rows(a.rows(), unbroken.rows)


@pytest.mark.parametrize(
    ("step", "signum"),
    [
        (16, signal.SIGINT),
        (16, signal.SIGTERM),
        (48, signal.SIGINT),
        (160, signal.SIGTERM),
    ],
)
def test_an_interrupt_saves_and_the_rest_is_the_same(
    step: int, signum: int, tmp_path: pathlib.Path, whole: train.Result, monkeypatch
):
    # 16 is within an interval, 48 at the end of one, 160 at the end of all.
    monkeypatch.setattr("rlx.fitting.SLICE_SECONDS", 0.0)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    run = tmp_path / "run"
    with pytest.raises(train.Interrupted) as caught:
        fit(save_to=run, on_progress=stop_at(step, signum))
    assert caught.value.signum == signum
    message = str(caught.value)
    assert f"stopped by {signal.Signals(signum).name} at step {step}" in message
    assert f"rlx resume {run}" in message
    assert checkpoint.latest(run / "checkpoints") == step
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    resumed = fit(save_to=run, resume=True)
    fitting.assert_same(whole.state, resumed.state)
    fitting.assert_same_rows(whole.rows, resumed.rows)


def test_an_interrupt_without_a_folder_says_that_nothing_was_saved():
    with pytest.raises(train.Interrupted, match="nothing was saved.*save_to"):
        fit(on_progress=stop_at(16, signal.SIGINT))


def test_in_another_thread_signals_are_left_alone(whole: train.Result):
    found = []
    thread = threading.Thread(target=lambda: found.append(fit()))
    thread.start()
    thread.join()
    fitting.assert_same(whole.state, found[0].state)


@pytest.mark.parametrize("idle", [0.0, 0.02, 0.2, 3.0])
def test_calls_take_no_more_than_a_twentieth_of_their_slices(idle):
    assert slice_seconds(idle) == pytest.approx(max(2.0, 20 * idle))


def test_slices_are_as_long_as_what_a_call_costs_asks_for(whole, monkeypatch):
    counts = []

    def slow(*arguments: Any, **options: Any) -> Any:
        built = build_once(*arguments, **options)

        def advance(runs: Any, progress: Any, count: np.int32) -> Any:
            counts.append(int(count))
            time.sleep(0.05)
            return built.advance(runs, progress, count)

        return built._replace(advance=advance)

    measured = []
    for factor, most in ((0.0, 1), (20.0, 4)):  # rows are four batches apart at most

        def wanted(idle: float, factor: float = factor) -> float:
            measured.append(idle)
            return factor * idle

        monkeypatch.setattr("rlx.fitting.slice_seconds", wanted)
        counts.clear()
        found = fit(build=slow)
        assert counts[:2] == [0, 0] and sum(counts) == STEPS // 16
        assert max(counts) == most
        fitting.assert_same(whole.state, found.state)
    assert min(measured) >= 0.05


def test_the_length_of_slices_changes_nothing(whole: train.Result, monkeypatch):
    monkeypatch.setattr("rlx.fitting.SLICE_SECONDS", 0.0)
    steps = []
    sliced = fit(on_progress=lambda report: steps.append(report["step"]))
    assert steps == list(range(16, STEPS + 1, 16))
    fitting.assert_same(whole.state, sliced.state)
    fitting.assert_same_rows(whole.rows, sliced.rows)


def test_a_finished_run_can_be_lengthened(whole: train.Result, tmp_path: pathlib.Path):
    fit(save_to=tmp_path / "run", num_steps=112, settings=settings(evaluations=2))
    longer = fit(save_to=tmp_path / "run", resume=True)
    fitting.assert_same(whole.state, longer.state)
    with pytest.raises(ValueError, match="is at step 160 already"):
        fit(save_to=tmp_path / "run", resume=True, num_steps=48)


def test_resuming_what_is_finished_trains_no_further(
    whole: train.Result, tmp_path: pathlib.Path
):
    fit(save_to=tmp_path / "run")
    again = fit(save_to=tmp_path / "run", resume=True)
    fitting.assert_same(whole.state, again.state)
    fitting.assert_same_rows(whole.rows, again.rows)


# -------------------------------------------------------------------- seeds and sweeps


def test_each_run_is_the_run_of_its_seed_alone():
    together = fit(seeds=[5, 0, 2])
    assert together.runs == [{"seed": 5}, {"seed": 0}, {"seed": 2}]
    alone = fit(seeds=[0])
    fitting.assert_same(jax.tree.map(lambda x: x[1:2], together.state), alone.state)
    np.testing.assert_array_equal(together.returns[:, 1:2], alone.returns)
    # Vmapped, the same numbers are summed in another order.
    vmapped = fit(seeds=[5, 0, 2], settings=settings(group=3))
    fitting.assert_close(together.state, vmapped.state)
    in_groups = fit(seeds=[5, 0, 2], settings=settings(group=2))
    fitting.assert_close(together.state, in_groups.state)


def test_each_setting_of_a_sweep_is_the_run_with_it_alone():
    rates = [0.1, 0.02]
    swept = fit(
        method=lambda hyper: toy.method(hyper["learning_rate"], hyper["noise"]),
        hyper={"learning_rate": rates, "noise": [0.3, 0.1]},
        seeds=[0, 4],
    )
    assert swept.runs == [
        {"seed": seed, "learning_rate": rate, "noise": noise}
        for rate, noise in ((0.1, 0.3), (0.02, 0.1))
        for seed in (0, 4)
    ]
    alone = fit(method=toy.method(0.02, 0.1), seeds=[0, 4])
    fitting.assert_close(jax.tree.map(lambda x: x[2:], swept.state), alone.state)
    params = np.asarray(swept.state.learner.params["bias"])
    assert len(set(params.tolist())) == 4


def test_evaluation_leaves_training_alone(whole: train.Result):
    often = fit(settings=settings(evaluations=10, episodes=3))
    fitting.assert_same(whole.state, often.state)
    assert often.steps.tolist() == list(range(0, STEPS + 1, 16))


def test_the_result(whole: train.Result):
    assert whole.steps.tolist() == [0, 48, 112, 160]
    assert whole.returns.shape == (4, 2)
    assert whole.state.iteration.tolist() == [10, 10]
    assert whole.folder is None
    # Metrics are means over the interval: the toy reports its bias before each step.
    last = np.array(whole.rows[-1]["train"]["bias"])
    assert np.all(np.isfinite(last)) and last.shape == (2,)
    for row in whole.rows[1:]:
        assert row["train"]["batch_finite"] == [1.0, 1.0]
        assert row["episode_length"] == [5.0, 5.0]
    assert whole.rows[0]["train"] == {}


def test_metrics_are_means_over_the_iterations_of_an_interval():
    runs, _ = program.make_runs([1], None)
    state = loop.init(toy.method(), toy.source(), runs.train_key[0])
    _, metrics = jax.jit(lambda s: loop.run(toy.method(), toy.source(), s, 7))(state)
    rows = fit(seeds=[1]).rows
    for name in ("bias", "episode_return", "episodes"):
        steps = np.asarray(metrics[name])
        # Rows at the iterations 3 and 7: NaN (no episode ended) does not count.
        np.testing.assert_allclose(
            rows[1]["train"][name][0], np.nanmean(steps[:3]), rtol=1e-5
        )
        np.testing.assert_allclose(
            rows[2]["train"][name][0], np.nanmean(steps[3:]), rtol=1e-5
        )


# -------------------------------------------------------------------------- compiling


def test_every_program_compiles_once(monkeypatch, caplog):
    monkeypatch.setattr("rlx.fitting.SLICE_SECONDS", 0.0)
    marks: list[int] = []

    def count(row: Any) -> None:
        marks.append(len(compiled(caplog)))

    with jax.log_compiles(), caplog.at_level("WARNING"):
        train.fit(
            toy.method(),
            toy.source(),
            num_steps=STEPS,
            seeds=2,
            settings=settings(evaluations=5),
            on_row=count,
            on_progress=count,
        )
    names = compiled(caplog)
    for name in ("advance", "evaluate_all", "init", "zeros"):
        assert sum(name in line for line in names) == 1, (name, names)
    # Rows: the first, then five; after the second one nothing is compiled any more.
    assert len(marks) == 6 + 10 and marks[4] == marks[-1]


def compiled(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Messages of JAX that name a program it compiles."""
    messages = [record.getMessage() for record in caplog.records]
    return [m for m in messages if m.startswith("Compiling ")]


# -------------------------------------------------------------------------- bad numbers


def spoiled(env: Env, value: float = math.nan) -> Env:
    """The reward of each episode's seventh step is no number."""

    def step(state: Any, action: Any, key: Any) -> Any:
        state, new = env.step(state, action, key)
        return state, new.replace(
            reward=jnp.where(state.time == 7, jnp.float32(value), new.reward)
        )

    return env._replace(step=step)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number(value: float, tmp_path: pathlib.Path):
    source = rollout(spoiled(toy.env(time_limit=20), value), num_envs=4, length=2)
    with pytest.raises(train.DivergedError) as caught:
        fit(
            source=source,
            seeds=[7, 8],
            num_steps=80,
            settings=settings(evaluations=10),
            save_to=tmp_path / "run",
        )
    message = str(caught.value)
    # The seventh step is in the fourth batch of two steps in four environments.
    assert "diverged by step 32 in 2 of 2 runs (first: seed 7)" in message
    assert "the environment returned NaN" in message
    assert "last good checkpoint: step 24" in message
    like = jax.eval_shape(
        jax.vmap(lambda key: train.init(toy.method(), source, key)),
        jax.random.split(jax.random.key(0)),
    )
    good = checkpoint.load(tmp_path / "run" / "checkpoints", like, part=".state")
    assert good.iteration.tolist() == [3, 3]
    for leaf in fitting.leaves(good).values():
        assert np.isfinite(leaf).all()


def test_learning_that_diverges():
    def make(hyper):
        return toy.method(hyper["learning_rate"])

    sweep = {"method": make, "hyper": {"learning_rate": [0.1, 1e30]}, "seeds": [3]}
    with pytest.raises(train.DivergedError) as caught:
        fit(**sweep)
    message = str(caught.value)
    assert "1 of 2 runs (first: seed 3, learning_rate 1e+30)" in message
    assert "lower the learning rate" in message
    # Kept going, the other run learns as if it were alone.
    result = fit(**sweep, settings=settings(stop_on_nan=False))
    alone = fit(method=toy.method(0.1), seeds=[3])
    fitting.assert_close(jax.tree.map(lambda x: x[:1], result.state), alone.state)
    assert result.rows[-1]["train"]["learner_finite"][1] < 1


# ------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 100}, "96 or 112"),
        ({"num_steps": 7}, "ask for 16"),
        ({"seeds": [1, 2, 1]}, "distinct"),
        ({"seeds": []}, "at least one"),
        ({"seeds": 0}, "at least one"),
        ({"seeds": [2**32]}, "seeds must lie in"),
        ({"seeds": [-1]}, "seeds must lie in"),
        ({"hyper": {"learning_rate": [0.1]}}, "no effect on a finished method"),
        (
            {"hyper": {"a": [1.0], "b": [1.0, 2.0]}, "method": lambda hyper: None},
            "differ in length: {'a': 1, 'b': 2}",
        ),
        ({"hyper": {"a": []}, "method": lambda hyper: None}, "are empty"),
    ],
)
def test_requests_that_cannot_be_met(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        fit(**options)


def test_the_replay_of_all_runs_must_fit(monkeypatch):
    # A transition takes 29 bytes, so that 1008 of them fit three times, not four.
    monkeypatch.setattr(replay, "_memory_of_device", lambda: 100_000)
    sizes = {"num_envs": 4, "length": 4, "batch_size": 8, "warmup": 0}
    source = replay.replay(toy.env(), capacity=1_008, **sizes)
    options = {"num_steps": 32, "settings": settings(evaluations=1)}
    fit(source=source, method=toy.method(), seeds=3, **options)
    # Refused before anything is compiled.
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    words = r"replay of 1008 .* the 4 runs .* capacity well below 862, .* fewer than 4 "
    with pytest.raises(ValueError, match=words):
        fit(source=source, method=toy.method(), seeds=4, **options)


@pytest.mark.parametrize(
    "name", ["evaluations", "episodes", "episode_steps", "keep", "group"]
)
def test_settings_are_positive(name: str):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        train.Settings(**{name: 0})


def test_recipes_name_what_there_is():
    for recipe, message in (
        (train.Recipe("mdpi", "hopper"), "no method 'mdpi'"),
        (
            train.Recipe("mdpo", "hopper", config=3),
            "config must be a mdpo.Config, got 3",
        ),
    ):
        with pytest.raises(ValueError, match=f"recipe: {message}"):
            fit(settings=settings(recipe=recipe))


def test_an_environment_without_a_limit_needs_one_for_evaluation():
    source = rollout(toy.env(time_limit=None), num_envs=4, length=4)
    with pytest.raises(ValueError, match="has no time limit"):
        fit(source=source, settings=settings(episode_steps=None))
    assert fit(source=source).rows[-1]["episode_length"] == [7.0, 7.0]


def test_a_folder_in_use_is_never_overwritten(tmp_path: pathlib.Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is not empty.*resume=True.*save_to"):
        fit(save_to=run)
    with pytest.raises(RunFolderError, match=r"is not a run folder"):
        fit(save_to=run, resume=True)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_resume_wants_the_same_runs(tmp_path: pathlib.Path):
    run = tmp_path / "run"
    RunFolder.create(run, {"runs": [{"seed": 0, "a": 0.5}, {"seed": 1, "a": 0.5}]})
    for options, message in (
        (
            {"seeds": [0, 2], "hyper": {"a": [0.5]}},
            r"seed is \[0, 1\] there and \[0, 2",
        ),
        ({"seeds": [0], "hyper": {"a": [0.5]}}, r"seed is \[0, 1\] there and \[0\]"),
        ({"hyper": {"a": [0.25]}}, r"a is \[0.5, 0.5\] there and \[0.25, 0.25\] here"),
        ({"hyper": {"b": [0.5]}}, r"b is absent there.*a is .* there and absent here"),
        ({}, r"a is \[0.5, 0.5\] there and absent here"),
    ):
        with pytest.raises(RunFolderError, match=message) as caught:
            fit(method=lambda hyper: None, save_to=run, resume=True, **options)
        assert "own seeds and hyper-parameters" in str(caught.value)


def test_resume_wants_the_same_batches(tmp_path: pathlib.Path):
    run = tmp_path / "run"
    fit(save_to=run, num_steps=32, settings=settings(evaluations=1))
    with pytest.raises(ValueError, match="in batches of 16 steps, not 32"):
        fit(save_to=run, resume=True, source=toy.source(length=8))
    with pytest.raises(CheckpointError, match="of another run: state.state.source"):
        fit(save_to=run, resume=True, source=toy.source(num_envs=8))


def test_an_empty_folder_is_begun(tmp_path: pathlib.Path, whole: train.Result):
    result = fit(save_to=tmp_path, resume=True)
    fitting.assert_same(whole.state, result.state)
    assert result.folder == tmp_path


def test_a_run_that_was_killed_before_its_first_checkpoint(
    tmp_path: pathlib.Path, whole: train.Result
):
    with RunFolder.create(tmp_path / "run", {"runs": whole.runs}) as folder:
        folder.append(whole.rows[0])
    result = fit(save_to=tmp_path / "run", resume=True)
    fitting.assert_same_rows(whole.rows, RunFolder.open(tmp_path / "run").rows())
    fitting.assert_same(whole.state, result.state)


# ------------------------------------------------------------------- damage, full disk


def test_a_truncated_checkpoint_names_the_last_intact_one(
    tmp_path: pathlib.Path, whole: train.Result
):
    run = tmp_path / "run"
    fit(save_to=run, num_steps=112, settings=settings(evaluations=2))
    broken = run / "checkpoints" / "112"
    largest = max(broken.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="the last intact step is 64: delete"):
        fit(save_to=run, resume=True)
    assert [row["step"] for row in RunFolder.open(run).rows()] == [0, 64, 112]
    # The advice is good.
    for path in sorted(broken.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    broken.rmdir()
    resumed = fit(save_to=run, resume=True)
    fitting.assert_same(whole.state, resumed.state)


@pytest.mark.parametrize("where", ["checkpoint", "row"])
def test_a_full_disk_loses_nothing(
    where: str, tmp_path: pathlib.Path, whole: train.Result, monkeypatch
):
    run, calls = tmp_path / "run", []

    def full(original):
        def write(*arguments, **options):
            calls.append(arguments)
            # The first row is that of step 0, before there is a checkpoint.
            if len(calls) == (2 if where == "checkpoint" else 3):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **options)

        return write

    with monkeypatch.context() as patch:
        if where == "checkpoint":
            patch.setattr(checkpoint, "_write_arrays", full(checkpoint._write_arrays))
        else:
            patch.setattr(files, "cut_half_line", full(files.cut_half_line))
        with pytest.raises(
            CheckpointError if where == "checkpoint" else record.RunFolderError,
            match="no space left.*then resume",
        ):
            fit(save_to=run)
    assert checkpoint.steps(run / "checkpoints") == [48]
    resumed = fit(save_to=run, resume=True)
    fitting.assert_same(whole.state, resumed.state)
    fitting.assert_same_rows(whole.rows, resumed.rows)
    fitting.assert_same_rows(whole.rows, RunFolder.open(run).rows())


def test_a_folder_that_another_process_writes_is_refused(tmp_path: pathlib.Path):
    runs = [{"seed": 0}, {"seed": 1}]
    with (
        RunFolder.create(tmp_path / "run", {"runs": runs}),
        pytest.raises(RunFolderError, match="is writing it"),
    ):
        fit(save_to=tmp_path / "run", resume=True)


def test_one_device_is_enough_here():
    # What the tests above compare to the bit is the form "one after another".
    assert sharding.mesh_for(2).size == 1
    assert sharding.largest_group(lambda size: 0, 8) == 1
