from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import pathlib
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import files, json_values, record, system
from rlx.record import RunFolder, RunFolderError

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Inner:
    widths: tuple[int, ...] = (64, 64)
    activation: Any = jax.nn.tanh


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 3e-4
    clip: float = math.inf
    network: Inner = Inner()
    max_grad_norm: float | None = None


CONFIG = {"method": "ppo", "config": Config(), "seeds": [0, 1], "steps": 4096}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Any:
    with RunFolder.create(tmp_path / "runs" / "a", CONFIG) as made:
        yield made


def strict(text: str) -> Any:
    """Parse JSON as the standard has it: NaN and Infinity are no numbers."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


# ------------------------------------------------------------------------------ config


def test_the_config_holds_every_resolved_value(folder: RunFolder) -> None:
    config = strict((folder.path / "config.json").read_text())
    assert config["config"] == {
        "learning_rate": 3e-4,
        "clip": "Infinity",
        "network": {"widths": [64, 64], "activation": "tanh"},
        "max_grad_norm": None,
    }
    assert config["format"] == record.FORMAT
    assert config["environment"]["packages"]["jax"] == jax.__version__
    assert RunFolder.open(folder.path).config()["config"]["clip"] == math.inf


def test_the_environment_is_described() -> None:
    found = system.describe()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["device_count"] == jax.device_count()
    assert found["device_kind"] == jax.devices()[0].device_kind
    assert found["backend"] == "cpu"
    assert found["enable_x64"] is False
    assert found["default_matmul_precision"] is None
    assert found["command"] == system.command()
    with jax.enable_x64(True), jax.default_matmul_precision("float32"):
        changed = system.describe()
    assert changed["enable_x64"] is True
    assert changed["default_matmul_precision"] == "float32"
    assert strict(json.dumps(json_values.to_json(found)))


@pytest.mark.parametrize(
    ("original", "argv", "expected"),
    [
        (
            ["/opt/bin/python3", "-W", "error", "-m", "some.module", "--seeds", "4"],
            ["/home/me/some/module.py", "--seeds", "4"],
            "python -m some.module --seeds 4",
        ),
        (
            ["/opt/bin/python3", "/opt/bin/rlx", "plot", "-m", "a b"],
            ["/opt/bin/rlx", "plot", "-m", "a b"],
            "rlx plot -m 'a b'",
        ),
    ],
)
def test_the_command_names_no_folder_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    original: list[str],
    argv: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", argv)
    assert system.command() == expected


def test_git_commit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert system.git_commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a"], check=True)
    commit = system.git_commit()
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert system.git_commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert system.git_commit() is None


def test_differences_are_named() -> None:
    saved = json_values.from_json(json_values.to_json(CONFIG))
    assert json_values.differences(saved, CONFIG) == []
    assert json_values.differences(saved, {"seeds": [0, 1]}) == []
    other = {"config": Config(learning_rate=1e-3), "steps": 8192, "env": "hopper"}
    assert json_values.differences(saved, other) == [
        "config.learning_rate is 0.0003 there and 0.001 here",
        "steps is 4096 there and 8192 here",
        "env is absent there and hopper here",
    ]


# -------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), 0.1),
        (jnp.float32(1e-45), 1e-45),
        (jnp.bfloat16(1.5), 1.5),
        (np.float64(0.1), 0.1),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (jnp.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([0.1, np.nan, -np.inf], np.float32), [0.1, "NaN", "-Infinity"]),
        (jnp.array([0.5, 1.0], jnp.bfloat16), [0.5, 1.0]),
        ({"a": (1, None, "x")}, {"a": [1, None, "x"]}),
        (Config, "Config"),
        (pathlib.Path("a/b"), "a/b"),
    ],
)
def test_values_become_strict_json(value: Any, expected: Any) -> None:
    found = json_values.to_json(value)
    assert found == expected
    assert type(found) is type(expected)
    strict(json.dumps(found))


def test_float32_round_trips_to_the_bit(generator: np.random.Generator) -> None:
    bits = generator.integers(0, 2**32, 5_000, np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    text = json.dumps(json_values.to_json(values))
    again = np.array(json_values.from_json(strict(text)), np.float32)
    np.testing.assert_array_equal(again.view(np.uint32), values.view(np.uint32))


# ----------------------------------------------------------------------------- metrics


def test_rows_come_back(folder: RunFolder) -> None:
    assert folder.rows() == []
    folder.append({"step": 0, "return": jnp.array([1.5, jnp.nan]), "time_s": 0.25})
    folder.append({"step": np.int64(64), "return": [2.0, -math.inf], "train": {"a": 1}})
    for line in (folder.path / "metrics.jsonl").read_text().splitlines():
        strict(line)
    first, second = folder.rows()
    assert first["step"] == 0
    assert first["return"][0] == 1.5
    assert math.isnan(first["return"][1])
    assert first["time_s"] == 0.25
    assert second == {"step": 64, "return": [2.0, -math.inf], "train": {"a": 1}}


def test_a_row_needs_a_step(folder: RunFolder) -> None:
    for row in ({"return": 1.0}, {"step": None}, {"step": "x"}):
        with pytest.raises(RunFolderError, match="needs an integer `step`"):
            folder.append(row)
    assert folder.rows() == []


def test_a_line_that_was_cut_off_is_dropped(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.append({"step": 0})
    folder.append({"step": 64})
    file = folder.path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-4])
    assert folder.rows() == [{"step": 0}]
    assert "dropped a last line that was cut off" in caplog.text
    folder.append({"step": 128})
    assert folder.rows() == [{"step": 0}, {"step": 128}]
    assert file.read_bytes() == b'{"step": 0}\n{"step": 128}\n'


def test_a_damaged_line_in_the_middle_is_named(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(RunFolderError, match=r"metrics.jsonl: line 2 is damaged"):
        folder.rows()


def test_rows_after_a_checkpoint_are_removed(folder: RunFolder) -> None:
    folder.keep_rows_up_to(10)
    for step in (0, 64, 128, 192):
        folder.append({"step": step, "return": [math.nan, 0.1]})
    folder.keep_rows_up_to(128)
    assert [row["step"] for row in folder.rows()] == [0, 64, 128]
    folder.append({"step": 129})
    folder.keep_rows_up_to(-1)
    assert folder.rows() == []


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_rows(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder.append({"step": 0})
    write = os.write

    def fail(handle: int, content: bytes = b"") -> int:
        if call == "write" and len(content) > 5:
            return write(handle, content[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, fail)
        with pytest.raises(RunFolderError, match="no space left .*then resume"):
            folder.append({"step": 64})
    assert (folder.path / "metrics.jsonl").read_bytes() == b'{"step": 0}\n'


# ------------------------------------------------------------------------------ folder


def test_an_existing_run_is_never_overwritten(folder: RunFolder) -> None:
    folder.close()
    before = (folder.path / "config.json").read_bytes()
    with pytest.raises(
        RunFolderError, match=r"not empty: .*--resume;.*--out;"
    ) as caught:
        RunFolder.create(folder.path, {"method": "other"})
    assert str(folder.path) in str(caught.value)
    assert (folder.path / "config.json").read_bytes() == before
    RunFolder.open(folder.path, write=True).close()


def test_an_empty_folder_is_as_good_as_none(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".lock").write_text("12345\n")  # of a process that was killed
    RunFolder.create(tmp_path, CONFIG).close()
    assert RunFolder.open(tmp_path).config()["method"] == "ppo"


def test_what_is_no_run_folder_is_named(
    folder: RunFolder, tmp_path: pathlib.Path
) -> None:
    runs = folder.path.parent
    with pytest.raises(RunFolderError, match=r"b: no such run folder; .* has a"):
        RunFolder.open(runs / "b")
    with pytest.raises(RunFolderError, match=r"not a run folder.*runs in it: a"):
        RunFolder.open(runs)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file/x: not a directory"):
        RunFolder.create(tmp_path / "file" / "x", CONFIG)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 99}', "format 99, this rlx reads 1"),
        ('{"format": ', "config.json is damaged"),
        ("{}", "config.json is damaged"),
        ("[]", "config.json is damaged"),
    ],
)
def test_a_config_that_cannot_be_read(
    folder: RunFolder, content: str, message: str
) -> None:
    (folder.path / "config.json").write_text(content)
    with pytest.raises(RunFolderError, match=message) as caught:
        RunFolder.open(folder.path)
    assert "\n" not in str(caught.value)


OTHER = """
import sys
from rlx.record import RunFolder, RunFolderError
try:
    RunFolder.open(sys.argv[1])  # reading is always allowed
    RunFolder.open(sys.argv[1], write=True)
except RunFolderError as error:
    print(error)
else:
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_one_process_writes_and_a_killed_one_leaves_no_lock(folder: RunFolder) -> None:
    def other() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", OTHER, str(folder.path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    with pytest.raises(
        RunFolderError, match=f"process {os.getpid()} is writing it.*save_to"
    ):
        RunFolder.open(folder.path, write=True)
    assert f"{folder.path}: process {os.getpid()} is writing it" in other().stdout
    folder.close()
    assert other().returncode == -9
    RunFolder.open(folder.path, write=True).close()


# ----------------------------------------------------------------------------- writers


def test_plain_functions_are_writers(tmp_path: pathlib.Path) -> None:
    rows: list[Any] = []
    with record.writers([rows.append], tmp_path) as write:
        write({"step": 1})
    assert rows == [{"step": 1}]


def test_tensorboard(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorboardX")
    row = {"step": 7, "return": [1.0, 3.0], "train": {"loss": 0.5}, "note": "text"}
    with record.writers(["tensorboard"], tmp_path) as write:
        write(row)
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    for tag in (b"return", b"return/0", b"return/1", b"train/loss"):
        assert tag in content
    assert b"note" not in content
    # Tag, then the value as a little-endian float32: a mean of 2, a seed of 3.
    assert content.count(np.float32(2).tobytes()) == 1
    assert content.count(np.float32(3).tobytes()) == 1


class FakeRun:
    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.finished = options, [], False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_wandb(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FakeRun] = []
    module = types.ModuleType("wandb")
    module.init = lambda **options: runs.append(FakeRun(**options)) or runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for _ in range(2):
        with record.writers(["wandb"], tmp_path / "hopper", CONFIG) as write:
            write({"step": 7, "return": [1.0, 3.0]})
    first, second = runs
    assert first.logged == [(7, {"return": 2.0, "return/0": 1.0, "return/1": 3.0})]
    assert first.finished
    assert first.options["name"] == "hopper"
    assert first.options["config"]["config"]["learning_rate"] == 3e-4
    assert first.options["id"] == second.options["id"]  # resumed, not doubled


def test_a_missing_writer_is_named_with_the_line_that_mends_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, library in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(RunFolderError, match=rf"pip install 'rlx\[{name}\]'"):
            record.writers([name], tmp_path)
    with pytest.raises(RunFolderError, match="unknown writer 'x': use 'tensorboard'"):
        record.writers(["x"], tmp_path)
