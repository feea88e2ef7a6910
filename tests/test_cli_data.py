"""`rlx data`: collection from a small run, and what the commands say."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from rlx import evaluate
from rlx.cli import catalogue, main, saved
from rlx.data import dataset as datasets
from tests.data.test_dataset import episode, joined, write
from tests.test_cli import call

# Balances the cart-pole the better the more gradient steps it has made, whatever the
# data: so that checkpoints have known ranks.
PUSH = '''"""Pushes towards where the pole falls; one weight, which grows (PUSH)."""
import dataclasses
import jax
import jax.numpy as jnp
import optax
from rlx.types import Method


@dataclasses.dataclass(frozen=True)
class Config:
    """Its fields."""

    sign: float = 1.0
    """Which way the weight goes."""


def make(spec, config=Config()):
    def act(params, stats, observation, carry, key):
        falls = observation[..., 2] + params * observation[..., 3] > 0
        action = falls.astype(jnp.int32)
        if key is not None:
            wrong = jax.random.bernoulli(key, 0.1, action.shape)
            action = jnp.where(wrong, 1 - action, action)
        return action, carry, {}

    def loss_fn(params, target_params, stats, batch, key):
        return -params, {"weight": params}

    return Method(
        lambda key: jnp.float32(-0.01), act, loss_fn, optax.sgd(0.0025 * config.sign)
    )
'''
LIMIT, STEPS, LAST = 100, 900, 320
KEPT = [64, 128, 192, 256, 320]
COLLECT = ["--steps", str(STEPS), "--episodes", "16"]


@pytest.fixture(scope="module", autouse=True)
def push(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "push.py").write_text(PUSH)
    catalogue.methods_package.__path__.append(str(folder))
    yield
    catalogue.methods_package.__path__.remove(str(folder))


def trained(path: pathlib.Path, *more: str) -> pathlib.Path:
    argv = [
        *("train", "push", "--env", "probe/cartpole"),
        *("--env-set", f"time_limit={LIMIT}", "--seeds", "2", "--steps", str(LAST)),
        *("--source-set", "num_envs=4", "length=8", "--keep", "5"),
        *("--evaluations", "5", "--episodes", "1", "--out", str(path), *more),
    ]
    assert main(argv) == 0
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run that kept the checkpoints `KEPT`."""
    return trained(tmp_path_factory.mktemp("cli") / "cartpole")


def mean_return(run: pathlib.Path, step: int) -> float:
    """What the command should find, with the key that it uses."""
    kept = saved.load(str(run), step)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0x64617461), 1)
    found = evaluate.episodes(kept.parts.env, kept.policy(0), key, num_episodes=16)
    return float(found.returns.mean())


def collected(
    run: pathlib.Path, out: pathlib.Path, kind: str, *more: str
) -> datasets.Dataset:
    argv = ["data", "collect", kind, str(run), *COLLECT, *more, "--out", str(out)]
    assert main(argv) == 0
    return datasets.load(out)


def share_wrong(data: datasets.Dataset, weight: float) -> float:
    """How often the action is not the one of a weight's deterministic policy."""
    seen = data.transitions.observation
    right = seen[:, 2] + np.float32(weight) * seen[:, 3] > 0
    return float(np.mean(right != data.transitions.action))


def test_random(run, tmp_path, capsys):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    data = collected(run, one, "random")
    output = capsys.readouterr().out
    assert "probe/cartpole random: 900 steps in" in output
    assert f"wrote {one}" in output
    assert data.num_steps == STEPS
    kept = data.metadata
    assert (kept.env, kept.kind, kept.time_limit) == ("probe/cartpole", "random", LIMIT)
    assert kept.env_options == {"time_limit": LIMIT}
    assert kept.versions["jax"] == jax.__version__
    assert kept.expert_return == mean_return(run, LAST)
    assert kept.details["run"] == "cartpole"
    assert kept.details["label"] == {"seed": 0}
    assert kept.details["actors"] == [{"checkpoint": None, "score": 0, "steps": STEPS}]
    # Two equal actions, within five standard errors; a random policy's known return.
    assert abs(data.transitions.action.mean() - 0.5) < 5 * 0.5 / np.sqrt(STEPS)
    assert 15 < kept.random_return < 30
    assert data.terminal.sum() > 20
    collected(run, two, "random")
    assert one.read_bytes() == two.read_bytes()
    other = collected(run, tmp_path / "three.h5", "random", "--seed", "1")
    assert not np.array_equal(other.transitions.action, data.transitions.action)


def test_a_dataset_is_never_overwritten(run, tmp_path, capsys):
    out = tmp_path / "a.h5"
    out.write_text("mine")
    argv = ["data", "collect", "random", str(run), "--out", str(out)]
    status, _, message = call(capsys, *argv)
    assert (status, message.count("\n")) == (1, 1)
    assert "is there already: delete it, or give another name" in message
    assert out.read_text() == "mine"


def test_expert(run, tmp_path):
    data = collected(run, tmp_path / "a.h5", "expert")
    # Actions are sampled: a tenth of them is flipped.
    assert abs(share_wrong(data, 0.015) - 0.1) < 5 * 0.3 / np.sqrt(STEPS)
    assert data.metadata.details["actors"][0]["checkpoint"] == LAST
    first = collected(run, tmp_path / "b.h5", "expert", "--expert-step", "192")
    assert first.metadata.expert_return == mean_return(run, 192)
    other = collected(run, tmp_path / "c.h5", "expert", "--index", "1")
    assert other.metadata.details["label"] == {"seed": 1}


def test_medium_replay_and_medium_expert(run, tmp_path, capsys):
    between = ["--band", "40,70"]
    data = collected(run, tmp_path / "a.h5", "medium", *between)
    kept = data.metadata
    low, high = kept.random_return, kept.expert_return
    (actor,) = kept.details["actors"]
    assert actor["checkpoint"] == 192 and actor["steps"] == STEPS
    expected = 100 * (mean_return(run, 192) - low) / (high - low)
    np.testing.assert_allclose(actor["score"], expected)
    assert abs(share_wrong(data, 0.005) - 0.1) < 5 * 0.3 / np.sqrt(STEPS)
    output = capsys.readouterr().out
    assert "checkpoint 192: 900 steps, score" in output

    replay = collected(run, tmp_path / "b.h5", "medium-replay", *between)
    actors = replay.metadata.details["actors"]
    assert [actor["checkpoint"] for actor in actors] == [64, 128, 192]
    assert [actor["steps"] for actor in actors] == [300, 300, 300]
    assert "not the replay buffer of the training" in replay.metadata.how
    assert replay.num_steps == STEPS

    half = collected(run, tmp_path / "c.h5", "medium-expert", *between)
    actors = half.metadata.details["actors"]
    assert [actor["checkpoint"] for actor in actors] == [192, LAST]
    assert half.ended[449] and half.ended[-1]
    assert half.transitions.reward[450:].sum() == 450
    # The same keys: the medium half is the beginning of the medium set.
    assert half.metadata.random_return == low and half.metadata.expert_return == high

    odd = collected(
        run, tmp_path / "d.h5", "medium-replay", "--medium-step", "128",
        "--steps", "301",
    )  # fmt: skip
    assert [a["steps"] for a in odd.metadata.details["actors"]] == [151, 150]
    assert odd.num_steps == 301


@pytest.mark.parametrize(
    ("status", "argv", "words"),
    [
        (2, ["medium"], "no kept checkpoint has a normalised score in 35 to 50, they"),
        (
            2,
            ["medium", "--medium-step", "100"],
            "kept the steps 64, 128, 192, 256, 320",
        ),
        (
            2,
            ["expert", "--medium-step", "64"],
            "--medium-step means nothing for expert",
        ),
        (1, ["expert", "--expert-step", "100"], "no step 100; there are [64, 128"),
        (2, ["random", "--index", "2"], "holds the runs 0 to 1"),
        (2, ["medium", "--band", "50,35"], "two numbers such as 35,50"),
        (2, ["best"], "invalid choice: 'best'"),
        (2, ["medium-expert", "--steps", "1", "--band", "40,70"], "2 policies act"),
    ],
)
def test_what_cannot_be_collected(run, tmp_path, capsys, status, argv, words):
    kind, *more = argv
    argv = ["data", "collect", kind, str(run), "--episodes", "16"]
    found, output, message = call(capsys, *argv, *more, "--out", str(tmp_path / "a.h5"))
    assert (found, output, message.count("\n")) == (status, "", 1)
    assert words in message
    assert list(tmp_path.iterdir()) == []


def test_an_expert_below_random_is_refused(tmp_path, capsys):
    run = trained(tmp_path / "worse", "--set", "sign=-4")
    capsys.readouterr()
    argv = ["data", "collect", "random", str(run), "--out", str(tmp_path / "a.h5")]
    status, _, message = call(capsys, *argv, "--episodes", "4")
    assert status == 2
    assert "is not above random actions" in message
    assert "--expert-step" in message


# ---------------------------------------------------------------------- check and info


@pytest.fixture
def foreign(tmp_path: pathlib.Path) -> pathlib.Path:
    """D4RL's layout, sound."""
    parts = [episode(20, 50.0 * i, terminal=i % 2 > 0) for i in range(4)]
    return write(tmp_path / "foreign.hdf5", joined(*parts))


def test_check(foreign, capsys):
    status, output, _ = call(capsys, "data", "check", str(foreign))
    assert (status, output) == (0, f"{foreign}: sound\n")
    argv = ["data", "check", str(foreign), "--env", "probe/cartpole"]
    status, output, _ = call(capsys, *argv)
    assert status == 1
    assert "ERROR  task: observations have the shape (2,), but those of probe" in output
    assert output.endswith(f"{foreign}: refused\n")
    status, output, _ = call(capsys, *argv, "--json")
    found = json.loads(output)
    assert status == 1 and found["sound"] is False
    assert [item["check"] for item in found["findings"]][:2] == ["task", "task"]
    status, output, _ = call(capsys, "data", "check", str(foreign) + "x")
    assert status == 1
    assert "ERROR  reading:" in output and "no such dataset" in output
    status, _, message = call(capsys, "data", "check", str(foreign), "--env", "cartpol")
    assert status == 2 and "probe/cartpole" in message


def test_check_with_a_time_limit(tmp_path, capsys):
    parts = [episode(20, 50.0 * i) for i in range(3)]
    path = write(tmp_path / "a.hdf5", joined(*parts, episode(7, 900)))
    status, output, _ = call(capsys, "data", "check", str(path))
    assert status == 0
    assert output.startswith("WARN   timeouts: 3 of 4 episodes end as terminal")
    assert output.endswith(f"{path}: sound, 1 warnings\n")
    argv = ["data", "check", str(path), "--time-limit", "20"]
    status, output, _ = call(capsys, *argv)
    assert status == 1 and "ERROR  timeouts: all 3 episodes" in output


def test_info(run, foreign, tmp_path, capsys):
    status, output, _ = call(capsys, "data", "info", str(foreign))
    assert status == 0
    assert output == (
        "unnamed: 80 steps in 4 episodes, 2 terminal, 0 cut by the recording, the "
        "longest 20\n"
        "observations (2,), actions (3,)\n"
        "return 190 ± 0 of 4 complete episodes\n"
    )
    path = tmp_path / "own.h5"
    data = collected(run, path, "expert")
    capsys.readouterr()
    status, output, _ = call(capsys, "data", "info", str(path), "--json")
    found = json.loads(output)
    assert status == 0
    assert found["steps"] == STEPS
    assert found["metadata"]["kind"] == "expert"
    low, high = data.metadata.random_return, data.metadata.expert_return
    mean = data.episode_returns[data.complete].mean()
    expected = 100 * (mean - low) / (high - low)
    np.testing.assert_allclose(found["normalized_score"], expected)
    status, _, message = call(capsys, "data", "info", str(tmp_path / "no.h5"))
    assert (status, message.count("\n")) == (1, 1)
    assert "no such dataset; " in message and "has foreign.hdf5, own.h5" in message


def test_training_on_a_dataset_from_the_command_line(run, tmp_path, capsys):
    path = tmp_path / "expert.h5"
    collected(run, path, "expert")
    argv = ["train", "push", "--env", "probe/cartpole", "--steps", "4"]
    argv += ["--source", "dataset", "--evaluations", "1", "--episodes", "1"]
    capsys.readouterr()
    status, _, message = call(capsys, *argv, "--out", str(tmp_path / "a"))
    assert status == 2 and "which dataset?" in message
    options = ["--source-set", f"path={path}", "batch_size=8"]
    other = [*argv, *options, "--out", str(tmp_path / "b")]
    other[other.index("probe/cartpole")] = "probe/pendulum"
    status, _, message = call(capsys, *other)
    assert status == 2 and "refused: " in message and "not of probe/pend" in message
    status, output, message = call(
        capsys, *argv, *options, "--out", str(tmp_path / "c")
    )
    assert status == 0, message
    found = saved.load(str(tmp_path / "c"), None)
    assert found.step == 4
    np.testing.assert_allclose(found.learners.params, [0.0], atol=1e-6)
