from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import envs
import rlx
from rlx import checkpoint, system, train
from rlx.cli import (
    catalogue,
    errors,
    explain,
    fields,
    film,
    main,
    progress,
    saved,
    survey,
)
from rlx.data.rollout import rollout
from rlx.record import RunFolder
from tests import fitting

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Compiles in a fraction of the time of a real method, and is found by its file alone.
TOY = '''"""REINFORCE with a linear policy and no baseline (TOY).

Williams 1992.
"""
import dataclasses
import jax
import jax.numpy as jnp
import optax
from rlx.types import Method


@dataclasses.dataclass(frozen=True)
class Config:
    """Its fields."""

    learning_rate: float = 1e-3
    """Of plain gradient descent (own choice)."""
    scale: float = 0.5
    """Standard deviation of actions (own choice)."""
    anneal_steps: int = 0
    """Filled in."""
    hidden_sizes: tuple[int, ...] = ()
    """None of them."""


def make(spec, config=Config()):
    if isinstance(config.scale, float) and not config.scale > 0:
        raise ValueError(f"scale must be positive, got {config.scale}")
    (inputs,), (outputs,) = spec.observation.shape, spec.action.shape

    def init(key):
        return 0.3 * jax.random.normal(key, (inputs, outputs))

    def act(params, stats, observation, carry, key):
        mean = observation @ params
        if key is None:
            return mean, carry, {}
        return mean + config.scale * jax.random.normal(key, mean.shape), carry, {}

    def loss_fn(params, target_params, stats, batch, key):
        error = (batch.action - batch.observation @ params) / config.scale
        loss = jnp.mean(0.5 * jnp.sum(error**2, -1) * batch.reward)
        return loss, {"loss": loss}

    return Method(init, act, loss_fn, optax.sgd(config.learning_rate))
'''
SMALL = [
    *("--source-set", "num_envs=4", "length=8"),
    *("--evaluations", "4", "--episodes", "2"),
]
TRAIN = ["train", "toy", "--env", "probe/pendulum", "--seeds", "2", "--steps", "1024"]


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "toy.py").write_text(TOY)
    catalogue.methods_package.__path__.append(str(folder))
    yield
    catalogue.methods_package.__path__.remove(str(folder))


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Run a command line in this process: status, output, errors."""
    status = main(list(argv))
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run, which no test changes."""
    path = tmp_path_factory.mktemp("cli") / "pendulum"
    assert main([*TRAIN, *SMALL, "--out", str(path)]) == 0
    return path


def size(path: pathlib.Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def frames_of(path: pathlib.Path) -> tuple[list[np.ndarray], int]:
    """All frames of a film, and how many milliseconds each is shown."""
    with Image.open(path) as film:
        found = []
        for index in range(film.n_frames):
            film.seek(index)
            found.append(np.asarray(film.convert("RGB")))
        return found, film.info["duration"]


# ----------------------------------------------------------------------------- training


def test_train_leaves_a_run_folder(run: pathlib.Path) -> None:
    folder = RunFolder.open(run)
    config = folder.config()
    kept = config["experiment"]
    assert kept["config"] == {
        "learning_rate": 1e-3,
        "scale": 0.5,
        "anneal_steps": 1024 // 32,  # one for each batch
        "hidden_sizes": [],
    }
    assert kept["source_options"] == {"num_envs": 4, "length": 8, "reset_pool": 0}
    assert config["env_spec"]["time_limit"] == 200
    assert [row["step"] for row in folder.rows()] == [0, 256, 512, 768, 1024]
    assert checkpoint.steps(folder.checkpoints) == [512, 768, 1024]
    assert size(run / "curve.png") == (1080, 660)


def interrupted(
    monkeypatch: pytest.MonkeyPatch, number: int, step: int, *argv: str
) -> int:
    """Run a command that gets a signal once it has reached a step."""
    show = progress.Display.progress

    def stop(display: progress.Display, report: Any) -> None:
        show(display, report)
        if report["step"] >= step:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Display, "progress", stop)
        return main(list(argv))


def test_a_stopped_run_is_resumed_exactly(
    run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run"
    argv = [*TRAIN, *SMALL, "--out", str(path)]
    assert interrupted(monkeypatch, signal.SIGINT, 300, *argv) == 130
    assert f"`rlx resume {path}`" in capsys.readouterr().err
    assert interrupted(monkeypatch, signal.SIGTERM, 800, "resume", str(path)) == 143
    assert main([*argv, "--resume"]) == 0
    unbroken, resumed = (
        {row["step"]: (row["return"], row["train"]) for row in RunFolder.open(p).rows()}
        for p in (run, path)
    )
    assert resumed == unbroken
    states = [saved.load(str(p), None).learners for p in (run, path)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_run_is_never_overwritten_nor_continued_as_another(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    argv = [*TRAIN, *SMALL, "--out", str(run)]
    status, _, message = call(capsys, *argv)
    assert (status, message.count("\n")) == (1, 1)
    assert "is not empty: if it holds this run, go on with it (--resume" in message
    status, _, message = call(capsys, *argv, "--resume", "--set", "scale=0.9")
    assert status == 2
    assert "config.scale is 0.5 there and 0.9 here" in message
    assert f"`rlx resume {run}`" in message
    assert (run / "metrics.jsonl").read_bytes() == before


def test_sweep(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep"
    argv = ["sweep", *TRAIN[1:], *SMALL, "--out", str(path)]
    grid = ["--grid", "learning_rate=1e-4,3e-2", "scale=0.1,0.3"]
    status, output, _ = call(capsys, *argv, "--steps", "256", *grid)
    assert status == 0
    assert "4 settings x 2 seeds, 256 steps each" in output
    expected = [
        {"seed": seed, "learning_rate": rate, "scale": scale}
        for rate in (1e-4, 3e-2)
        for scale in (0.1, 0.3)
        for seed in (0, 1)
    ]
    folder = RunFolder.open(path)
    assert folder.config()["runs"] == expected
    last = np.array(folder.rows()[-1]["return"]).reshape(4, 2).mean(axis=1)
    ranked = [
        f"learning_rate {expected[2 * i]['learning_rate']:g}, scale "
        f"{expected[2 * i]['scale']:g}: return"
        for i in np.argsort(-last)
    ]
    places = [output.index(f"\n  {text}") for text in ranked]
    assert places == sorted(places)
    status, output, _ = call(capsys, "eval", str(path), "--episodes", "2")
    assert status == 0
    assert "seed 1, learning_rate 0.03, scale 0.3: return" in output
    assert "mean of 2 seeds at learning_rate 0.0001, scale 0.1" in output
    status, _, message = call(capsys, *argv, "--grid", "anneal_steps=1,2")
    assert status == 2
    assert "anneal_steps is no number that one compiled program can vary" in message


def test_eval_runs_the_saved_policy(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["eval", str(run), "--episodes", "3"]
    status, output, _ = call(capsys, *argv, "--json")
    assert status == 0
    found = json.loads(output)
    assert found["step"] == 1024
    returns = np.array([row["returns"] for row in found["runs"]])
    assert returns.shape == (2, 3)
    assert len(np.unique(returns)) == 6
    # By hand: the same policy in plain Python, from the same reset.
    policy = saved.load(str(run), None).policy(1)
    env = envs.make("probe/pendulum")
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0x65766C), 1)
    reset_key, loop_key = jax.random.split(key)
    state, observation = env.reset(jax.random.split(reset_key, 3)[2])
    step, act, total = jax.jit(env.step), jax.jit(policy.act), 0.0
    for t in range(200):
        action, _, _ = act(observation, (), None)
        step_key = jax.random.split(
            jax.random.split(jax.random.fold_in(loop_key, t))[1], 3
        )[2]
        state, result = step(state, action, step_key)
        observation, total = result.observation, total + float(result.reward)
    np.testing.assert_allclose(returns[1, 2], total, rtol=1e-4)
    status, output, _ = call(capsys, *argv)
    assert f"return {progress.number(returns[0].mean())} ±" in output
    assert "interquartile mean of 2 seeds" in output
    _, other, _ = call(capsys, *argv, "--seed", "1")
    _, sampled, _ = call(capsys, *argv, "--sample")
    _, earlier, _ = call(capsys, *argv, "--step", "512")
    assert len({output, other, sampled, earlier}) == 4


def test_a_value_is_learned_of_a_diffusion(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    argv = ["train", "martingale", "--env", "diffusion/ornstein_uhlenbeck"]
    argv += ["--env-set", "horizon=inf", "duration=2", "step_size=0.01"]
    argv += ["--set", "algorithm=clstd", "--steps", "256k", "--evaluations", "2"]
    assert main([*argv, "--out", str(out)]) == 0
    folder = RunFolder.open(out)
    # Whole episodes without being asked for.
    kept = folder.config()["experiment"]
    assert kept["source"] == "episodes"
    assert kept["source_options"] == {"num_envs": 64, "length": None}
    # J(x) = -(p x² + c) with p = 1 / 2.1, c = p / 4 / 0.1, and E x² = 1 + 1 / 8.
    found = folder.rows()[-1]["train"]["start_value"]
    np.testing.assert_allclose(found, [-(1.125 + 2.5) / 2.1], rtol=0.03)


# ------------------------------------------------------------------------ play and plot


def test_play_films_an_episode(
    run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["play", str(run), "--out", str(tmp_path / "film.gif")]
    make, drawn = envs.make, []

    def with_pictures(name: str, **options: Any) -> Any:
        env = make(name, **options)

        def render(state: Any) -> np.ndarray:
            drawn.append(state)
            picture = np.zeros((30, 40, 3), np.uint8)
            picture[:, len(drawn)] = 255
            return picture

        spec = dataclasses.replace(env.spec, control_frequency=50.0)
        return env._replace(render=render, spec=spec)

    monkeypatch.setattr(envs, "make", with_pictures)
    status, output, _ = call(capsys, *argv, "--index", "1", "--seconds", "1")
    assert status == 0
    assert "seed 1 at 1.02k steps: 200 steps, filmed 25 pictures" in output
    assert len(drawn) == 25
    pictures, milliseconds = frames_of(tmp_path / "film.gif")
    assert [int(picture[5, :, 0].argmax()) for picture in pictures] == [*range(1, 26)]
    assert milliseconds == 40
    assert size(tmp_path / "rollout.png") == (6 * 42 - 2, 30)
    status, _, message = call(capsys, *argv, "--index", "2")
    assert "holds the runs 0 to 1" in message
    blind = envs.make("probe/pendulum")._replace(render=None)
    monkeypatch.setattr(envs, "make", lambda name: blind)
    status, _, message = call(capsys, *argv)
    assert (status, "probe/pendulum has nothing to draw" in message) == (2, True)


def test_a_classic_probe_is_filmed(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = str(tmp_path / "film.gif")
    assert main(["play", str(run), "--max-steps", "40", "--out", out]) == 0
    pictures, milliseconds = frames_of(tmp_path / "film.gif")
    assert (len(pictures), milliseconds) == (41, 50)  # all 20 states of a second
    assert pictures[0].shape == (360, 480, 3)
    moved = [np.mean(pictures[0] != picture) for picture in pictures[1:]]
    assert max(moved) > 0.005


def test_films_run_in_real_time() -> None:
    assert film.select(101, frequency=100, fps=25, seconds=0) == [*range(0, 101, 4)]
    assert film.select(101, frequency=100, fps=25, seconds=0.5) == [*range(0, 48, 4)]
    assert film.select(4, frequency=10, fps=25, seconds=0) == [0, 1, 2, 3]
    thirds = film.select(126, frequency=125, fps=30, seconds=0)
    assert len(thirds) == 31
    assert set(np.diff(thirds)) == {4, 5}
    assert film.select(1, frequency=50, fps=25, seconds=9) == [0]


def test_a_gif_shows_the_frames(tmp_path: pathlib.Path) -> None:
    frames = [np.zeros((20, 20, 3), np.uint8) for _ in range(3)]
    for index, frame in enumerate(frames):
        frame[:, 5 * index : 5 * index + 5, index] = 250
    film.write(frames, tmp_path / "new" / "a.gif", fps=20)
    pictures, milliseconds = frames_of(tmp_path / "new" / "a.gif")
    np.testing.assert_allclose(pictures, frames, atol=6)
    assert milliseconds == 50


def test_film_names_are_checked_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.UsageError, match=r"end in .gif or .mp4"):
        film.check(tmp_path / "a.avi")
    monkeypatch.setattr(film.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.UsageError, match=r"pip install 'rlx\[video\]'"):
        film.check(tmp_path / "a.mp4")


def test_mp4(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    frames = [np.full((32, 32, 3), 50 * i, np.uint8) for i in range(4)]
    film.write(frames, tmp_path / "a.mp4", fps=10)
    assert (tmp_path / "a.mp4").stat().st_size > 500


def test_plot(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "curve.png").unlink()
    assert call(capsys, "plot", str(run))[:2] == (0, f"{run / 'curve.png'}\n")
    assert (run / "curve.png").exists()
    out = tmp_path / "both.png"
    both = ["plot", str(run), str(run), "--metric", "train/loss", "--out", str(out)]
    assert call(capsys, *both)[0] == 0
    assert size(out) == (1080, 660)
    _, _, message = call(capsys, "plot", str(run), "--metric", "retrun")
    assert "did you mean 'return'" in message
    assert call(capsys, "plot", str(run), "--out", "a.pdf")[0] == 2


@pytest.mark.slow
def test_the_main_job(tmp_path: pathlib.Path) -> None:
    """Hopper with PPO, as a person would run it, in processes of their own."""
    out = str(tmp_path / "hopper")
    for argv in (
        ["train", "ppo", "--env", "hopper", "--seeds", "2", "--steps", "20k"],
        ["plot"],
        ["eval", "--episodes", "2"],
        ["play", "--seconds", "1"],
    ):
        train = argv[0] == "train"
        argv += ["--out", out] if train else [out]
        command = [sys.executable, "-m", "rlx.cli", *argv]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert size(tmp_path / "hopper" / "curve.png") == (1080, 660)
    pictures, _ = frames_of(tmp_path / "hopper" / "episode.gif")
    assert len(pictures) > 5
    assert np.std(pictures) > 10


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: pathlib.Path) -> None:
    argv = ["train", "ppo", "--env", "probe/pendulum", "--seeds", "3", "--steps", "512"]
    argv += ["--set", "hidden_sizes=8", "num_epochs=1", "num_minibatches=1", *SMALL]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = f"localhost:{free.getsockname()[1]}"
    join = ["--distributed", "--coordinator", where, "--processes", "2", "--process"]
    together = [
        subprocess.Popen(
            [sys.executable, "-m", "rlx.cli", *argv, "--out", "run", *join, str(index)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in together]
    finally:
        for process in together:
            process.kill()
    assert [process.returncode for process in together] == [0, 0]
    assert ["512 steps" in text for text in said] == [True, False]
    assert main([*argv, "--out", str(tmp_path / "alone")]) == 0
    fitting.assert_close_rows(
        *(RunFolder.open(tmp_path / name).rows() for name in ("run", "alone"))
    )


# -------------------------------------------------------------------- bad command lines


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trane"], "invalid choice: 'trane'"),
        (["train"], "which method?"),
        (
            ["train", "pp", "--env", "hopper", "--steps", "1M"],
            "no method 'pp'; did you",
        ),
        (["train", "ppo", "--steps", "1M"], "--env is missing"),
        (["train", "ppo", "--env", "hopper"], "--steps is missing"),
        ([*TRAIN, "--env", "probe/pendulun"], "Did you mean 'probe/pendulum'"),
        ([*TRAIN, "--set", "scal=1"], "toy has no field 'scal'; did you mean 'scale'?"),
        ([*TRAIN, "--set", "scale=high"], "toy's scale: expected number, got 'high'"),
        ([*TRAIN, "--set", "scale"], "'scale' is no assignment: write name=value"),
        ([*TRAIN, "--set", "scale=1", "scale=0"], "scale is set twice"),
        ([*TRAIN, "--set", "scale=-1"], "scale must be positive"),
        ([*TRAIN, "--env-set", "limit=3"], "no option limit"),
        ([*TRAIN, "--source-set", "num_env=3"], "did you mean 'num_envs'"),
        ([*TRAIN, "--source-set", "num_envs=a"], "num_envs: expected integer, got 'a'"),
        ([*TRAIN, "--source-set", "num_envs=0"], "must be at least 1"),
        (
            [*TRAIN, "--source", "rolout"],
            "no data source 'rolout'; did you mean 'rollout'",
        ),
        ([*TRAIN, "--steps", "1001"], "1001 steps are no whole number of batches"),
        ([*TRAIN, "--steps", "1.5"], "a number such as 500k or 1M, got '1.5'"),
        ([*TRAIN, "--seeds", "0"], "how many (8) or which ones (0,3,5), got '0'"),
        (["sweep", *TRAIN[1:]], "--grid is missing"),
        (["sweep", *TRAIN[1:], "--grid", "scale=1,1"], "needs distinct values"),
        (["eval", "nothing/here"], "nothing/here: no such run folder"),
        (["resume", "nothing/here"], "nothing/here: no such run folder"),
    ],
)
def test_bad_command_lines_get_one_line(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output, error = call(capsys, *argv)
    assert status in (1, 2)
    assert message in error
    assert error.startswith("rlx: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_processes_join_where_they_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def initialize(*where: Any) -> None:
        asked.append(where)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    status, _, message = call(capsys, *TRAIN, "--distributed")
    assert (status, message.count("\n")) == (2, 1)
    assert "(coordinator_address should be defined): where JAX finds no" in message
    assert "--coordinator HOST:PORT" in message
    call(
        capsys, *TRAIN, "--coordinator", "here:1", "--processes", "2", "--process", "1"
    )
    assert asked == [(None, None, None), ("here:1", 2, 1)]


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLX_DEBUG", "1")
    with pytest.raises(errors.UsageError, match="no method"):
        main(["train", "pp", "--env", "hopper", "--steps", "1M"])


def test_a_run_made_from_python(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, path = catalogue.load_method("toy"), tmp_path / "run"
    config, options = module.Config(scale=0.3), {"time_limit": 20}
    env = envs.make("probe/pendulum", **options)

    def method(hyper: Any) -> Any:
        return module.make(env.spec, dataclasses.replace(config, **hyper))

    recipe = train.Recipe("toy", "probe/pendulum", config, options)
    train.fit(
        method,
        rollout(env, num_envs=4, length=8),
        num_steps=64,
        seeds=2,
        hyper={"learning_rate": [1e-3, 1e-2]},
        save_to=path,
        settings=train.Settings(evaluations=1, episodes=2, recipe=recipe),
    )
    status, output, _ = call(capsys, "eval", str(path), "--episodes", "3", "--json")
    assert status == 0
    found = json.loads(output)["runs"]
    assert [row["learning_rate"] for row in found] == [1e-3, 1e-3, 1e-2, 1e-2]
    assert {n for row in found for n in row["lengths"]} == {20}
    assert main(["play", str(path)]) == 0
    status, _, message = call(capsys, "resume", str(path))
    assert status == 2
    assert f"go on there, train.fit(..., save_to='{path}', resume=True)" in message
    # Without names it can only be evaluated from Python, by the call that is named.
    file = path / "config.json"
    kept = json.loads(file.read_text())
    assert kept.pop("experiment")["config"]["scale"] == 0.3
    file.write_text(json.dumps(kept))
    status, _, message = call(capsys, "eval", str(path))
    assert status == 2
    assert f"rlx.saved.load('{path}', method).evaluate(env)" in message
    episodes = rlx.saved.load(str(path), method).evaluate(env, num_episodes=3)
    kept = np.array([row["returns"] for row in found], np.float32)
    np.testing.assert_array_equal(episodes.returns, kept)


def test_a_run_without_a_checkpoint_or_with_a_damaged_one(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    RunFolder.create(tmp_path / "a", config).close()
    assert "nothing has been saved" in call(capsys, "eval", str(tmp_path / "a"))[2]
    (tmp_path / "a" / "checkpoints" / "64" / "state").mkdir(parents=True)
    _, _, message = call(capsys, "eval", str(tmp_path / "a"))
    assert "step 64 is damaged" in message
    config["experiment"]["config"].pop("scale")
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert (
        "another version of this method, the fields scale"
        in call(capsys, "eval", str(tmp_path / "a"))[2]
    )


# ----------------------------------------------------------------------- help and lists


def test_help_is_instant() -> None:
    """It imports neither jax nor anything that does."""
    code = (
        "import sys\nfrom rlx.cli import main\n"
        "for argv in (['--help'], ['play', '--help']):\n"
        "    try:\n        main(argv)\n"
        "    except SystemExit as status:\n        assert status.code == 0\n"
        "main(['train', '--help'])\n"
        "assert not {'jax', 'numpy', 'envs', 'rich'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--env-set" in result.stdout


@pytest.mark.parametrize("name", catalogue.methods())
def test_every_field_of_every_method_is_explained(name: str) -> None:
    config = catalogue.load_method(name).Config
    described = fields.describe(config)
    assert {field.name.partition(".")[0] for field in described} == {
        field.name for field in dataclasses.fields(config)
    }
    text = explain.method(name)
    for field in described:
        assert field.text, f"{name}.Config.{field.name} needs a docstring below it"
        assert f"\n  {field.name}" in text
    # What a run folder keeps gives the same config again.
    kept = json.loads(json.dumps(explain.experiment.to_json(config())))
    assert fields.from_json(config, kept, "here") == config()


def test_help_explains_fields_and_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = call(capsys, "train", "ppo", "--help")
    assert status == 0
    assert (
        "  clip = 0.2 (number)\n      epsilon: how far the ratio may leave 1" in output
    )
    assert "  value_clip = none (number or none)" in output
    assert (
        "  num_envs = 40 (integer)\n      B, environments stepped together." in output
    )


def test_a_new_file_is_a_new_method(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = '"""Does nothing (NOP).\n\nMore."""\nclass Config: ...\ndef make(): ...'
    (tmp_path / "nop.py").write_text(complete)
    (tmp_path / "_nop.py").write_text(complete)
    (tmp_path / "half.py").write_text("def make(): ...")
    (tmp_path / "slip.py").write_text("\ndef make(:")
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text('"""P."""\nfrom a import Config, make')
    monkeypatch.setattr(catalogue.methods_package, "__path__", [str(tmp_path)])
    assert catalogue.methods() == {
        "nop": "Does nothing (NOP).",
        "pack": "P.",
        "slip": "cannot be read: line 2, invalid syntax",
    }


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = call(capsys, "list")
    assert status == 0
    assert "  mdpo " in output
    assert "probe/pendulum" in output
    assert "rollout" in output
    _, output, _ = call(capsys, "list", "sources")
    assert "mdpo" not in output


def test_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output, _ = call(capsys, "doctor")
    assert status == 0
    assert f"jax {jax.__version__}" in output
    assert "cpu device(s)" in output
    assert "all that is needed is here" in output
    monkeypatch.setattr(system, "versions", lambda: {"jax": "1", "optax": None})
    monkeypatch.setattr(survey, "_has_nvidia", lambda: True)
    monkeypatch.setattr(survey.importlib.util, "find_spec", lambda name: None)
    status, output, _ = call(capsys, "doctor")
    assert status == 1
    assert "PROBLEM  optax is missing: pip install optax" in output
    assert "pip install -U 'jax[cuda13]'" in output
    assert "no MP4 films: pip install 'rlx[video]'" in output
