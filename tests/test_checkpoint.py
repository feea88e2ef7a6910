from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlx import checkpoint, step_folders
from rlx.checkpoint import CheckpointError
from rlx.record import RunFolder
from rlx.types import LearnerState, PyTree, TrainState

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Moments(NamedTuple):
    count: jax.Array
    mean: Any


def make_state(seeds: int = 4, width: int = 3) -> TrainState:
    """A state with every kind of leaf that a run can have."""
    keys = jax.random.split(jax.random.key(7), seeds)
    normal = jax.random.normal(keys[0], (seeds, width, 2))
    return TrainState(
        learner=LearnerState(
            params={"a/b.c": {"kernel": normal, "bias": normal[..., 0] * 1e-30}},
            target_params=(),
            stats=Moments(jnp.zeros((), jnp.int32), normal.astype(jnp.bfloat16)),
            opt_state=(Moments(jnp.uint8(255), {}), None),
            step=jnp.arange(seeds, dtype=jnp.int32),
        ),
        source={
            "nothing": jnp.zeros((seeds, 0, 3), jnp.float16),
            "special": jnp.array([jnp.nan, -0.0, jnp.inf, -jnp.inf, 1e-45]),
            "flags": normal[..., 0] > 0,
            "bits": jnp.array([2**32 - 1], jnp.uint32),
            "host": np.arange(3, dtype=np.float64) / 3,
            "count": 12,
            "share": 0.1,
            "rbg": jax.random.key(3, impl="rbg"),
        },
        key=keys,
        iteration=jnp.int32(9),
    )


def assert_equal(left: PyTree, right: PyTree) -> None:
    """Structure, kind, dtype and every bit agree."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert isinstance(b, type(a))
        if not hasattr(a, "dtype"):
            assert a == b
            continue
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def fill(directory: pathlib.Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        checkpoint.save(directory, step, {"x": jnp.full((5, 7), step)}, keep=keep)


LIKE = {"x": jnp.zeros((5, 7), jnp.int32)}


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    files = [path for path in (folder / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


# --------------------------------------------------------------------------- exactness


def test_every_leaf_comes_back_to_the_bit(tmp_path: pathlib.Path) -> None:
    state = make_state()
    folder = checkpoint.save(tmp_path / "a", 3, state)
    assert folder == tmp_path / "a" / "3"
    assert_equal(state, checkpoint.load(tmp_path / "a", make_state()))


def test_an_abstract_state_is_enough(tmp_path: pathlib.Path) -> None:
    state = jax.tree.map(lambda x: x, make_state())
    state.source.update(host=jnp.ones(2), count=jnp.int32(1), share=jnp.float32(0.1))
    checkpoint.save(tmp_path, 0, state)
    assert_equal(state, checkpoint.load(tmp_path, jax.eval_shape(lambda: state)))


def test_a_restored_state_fits_the_program_compiled_before(
    tmp_path: pathlib.Path,
) -> None:
    traces = []

    @jax.jit
    def step(state: PyTree) -> PyTree:
        traces.append(1)
        return jax.tree.map(lambda x: x + 1, state)

    state = step({"x": jnp.zeros(3)})
    checkpoint.save(tmp_path, 1, state)
    restored = checkpoint.load(tmp_path, state)
    assert not restored["x"].committed
    step(restored)
    assert step._cache_size() == 1
    assert len(traces) == 1


def test_a_restored_array_can_be_donated(tmp_path: pathlib.Path) -> None:
    checkpoint.save(tmp_path, 1, {"x": jnp.zeros(1000)})
    restored = checkpoint.load(tmp_path, {"x": jnp.zeros(1000)})
    jax.jit(lambda state: state, donate_argnums=0)(restored)
    assert restored["x"].is_deleted()


def test_a_committed_sharding_is_kept(tmp_path: pathlib.Path) -> None:
    mesh = jax.make_mesh((1,), ("seed",))
    sharding = NamedSharding(mesh, PartitionSpec("seed"))
    keys = jax.random.split(jax.random.key(0), 4)
    state = jax.device_put({"x": jnp.arange(4.0), "key": keys}, sharding)
    checkpoint.save(tmp_path, 1, state)
    restored = checkpoint.load(tmp_path, state)
    assert_equal(state, restored)
    assert restored["x"].sharding == restored["key"].sharding == sharding


PROCESS = """
import sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rlx import checkpoint

mesh = jax.make_mesh((4,), ("seed",))
sharding = NamedSharding(mesh, PartitionSpec("seed"))

def make():
    keys = jax.random.split(jax.random.key(0), 8)
    x = jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys) / 2
    return {"x": x, "key": keys, "empty": x[:, :0], "count": jnp.arange(8)}

state = jax.jit(make, out_shardings=sharding)()
assert not state["x"].is_fully_addressable
for step in range(3):
    checkpoint.save(sys.argv[3], step, state, keep=2)
assert checkpoint.steps(sys.argv[3]) == [1, 2]
restored = checkpoint.load(sys.argv[3], state)
for name in state:
    a, b = state[name], restored[name]
    assert a.dtype == b.dtype and a.sharding == b.sharding, name
    if name == "key":
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    for left, right in zip(a.addressable_shards, b.addressable_shards, strict=True):
        assert left.index == right.index
        np.testing.assert_array_equal(left.data, right.data)
print("saved and loaded")
"""


def in_two_processes(code: str, path: pathlib.Path) -> list[str]:
    """What two joined processes of two devices print, given a port, a number, a path.

    Both must end well within two minutes.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, port, str(index), str(path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def test_two_processes_save_one_sharded_state_together(
    tmp_path: pathlib.Path,
) -> None:
    outputs = in_two_processes(PROCESS, tmp_path / "c")
    assert all("saved and loaded" in output for output in outputs)
    # One process, which knows nothing of that mesh, reads the same numbers.
    keys = jax.random.split(jax.random.key(0), 8)
    x = jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys) / 2  # exact
    like = {"x": x, "key": keys, "empty": x[:, :0], "count": jnp.arange(8)}
    assert_equal(like, checkpoint.load(tmp_path / "c", like))


def test_a_part_is_enough(tmp_path: pathlib.Path) -> None:
    state = make_state()
    checkpoint.save(tmp_path, 0, state)
    stats = checkpoint.load(tmp_path, state.learner.stats, part=".learner.stats")
    assert_equal(state.learner.stats, stats)
    kernel = {"kernel": state.learner.params["a/b.c"]["kernel"]}
    with pytest.raises(CheckpointError, match=r"state\['bias'\] is float32.* absent"):
        checkpoint.load(tmp_path, kernel, part=".learner.params['a/b.c']")


# ----------------------------------------------------------------------- which steps


def test_the_latest_steps_are_kept(tmp_path: pathlib.Path) -> None:
    assert checkpoint.steps(tmp_path / "none") == []
    assert checkpoint.latest(tmp_path / "none") is None
    fill(tmp_path, 1, 20, 3_000, keep=2)
    assert checkpoint.steps(tmp_path) == [20, 3_000]
    assert checkpoint.latest(tmp_path) == 3_000
    assert checkpoint.intact_steps(tmp_path) == [20, 3_000]
    assert checkpoint.load(tmp_path, LIKE)["x"][0, 0] == 3_000
    assert checkpoint.load(tmp_path, LIKE, step=20)["x"][0, 0] == 20


def test_a_step_can_be_saved_again(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, 1, 2)
    checkpoint.save(tmp_path, 2, {"x": jnp.full((5, 7), 99)})
    assert checkpoint.steps(tmp_path) == [1, 2]
    assert checkpoint.load(tmp_path, LIKE)["x"][0, 0] == 99
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_an_earlier_step_is_refused_until_later_ones_are_dropped(
    tmp_path: pathlib.Path,
) -> None:
    fill(tmp_path, 1, 2, 5)
    with pytest.raises(CheckpointError, match="step 3 would come before step 5"):
        fill(tmp_path, 3)
    assert checkpoint.steps(tmp_path) == [1, 2, 5]
    checkpoint.keep_steps_up_to(tmp_path, 2)
    fill(tmp_path, 3)
    assert checkpoint.steps(tmp_path) == [1, 2, 3]


def test_metadata_comes_back(tmp_path: pathlib.Path) -> None:
    checkpoint.save(tmp_path, 1, LIKE, metadata={"env_steps": 4096, "name": "é"})
    assert checkpoint.read_metadata(tmp_path) == {"env_steps": 4096, "name": "é"}


# ------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"x": jnp.zeros((5, 8))}, r"\['x'\] is int32\[5,7\] there and float32\[5,8\]"),
        ({"x": jnp.zeros((5, 7))}, r"is int32\[5,7\] there and float32\[5,7\] here"),
        ({"y": LIKE["x"]}, r"\['y'\] is absent there .*; .*\['x'\] is int32.* absent"),
        (LIKE | {"y": jnp.zeros(3)}, r"\['y'\] is absent there and float32\[3\] here"),
        (LIKE["x"], r"state is absent there and int32\[5,7\] here"),
        ({"x": jax.random.key(0)}, r"there and key<fry>\[\] here"),
    ],
)
def test_another_structure_is_named(
    tmp_path: pathlib.Path, like: PyTree, message: str
) -> None:
    fill(tmp_path, 1)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(tmp_path, like)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", ["cut", "gone", "changed", "manifest", "no manifest"]
)
def test_a_damaged_step_is_named_with_the_last_intact_one(
    tmp_path: pathlib.Path, damage: str
) -> None:
    fill(tmp_path, 1, 2, 3, 4)
    (tmp_path / "3" / "manifest.json").unlink()  # damaged too: not to be offered
    file = largest_file(tmp_path / "4")
    if "manifest" in damage:
        file = tmp_path / "4" / "manifest.json"
    content = file.read_bytes()
    if damage in ("cut", "manifest"):
        file.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 1])
        file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match="step 4 is damaged") as caught:
        checkpoint.load(tmp_path, LIKE)
    assert f"last intact step is 2: delete {tmp_path / '4'} to" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert checkpoint.intact_steps(tmp_path) == [1, 2]
    assert checkpoint.load(tmp_path, LIKE, step=2)["x"][0, 0] == 2


def test_orbax_errors_become_one_line(tmp_path: pathlib.Path) -> None:
    """Damage that the manifest does not see: it agrees with the broken files."""
    fill(tmp_path, 1)
    for file in (tmp_path / "1").rglob("d/*"):
        file.write_bytes(b"")
    path = tmp_path / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = step_folders.inventory(tmp_path / "1" / "state")
    manifest["files"] = {f"state/{k}": v for k, v in manifest["files"].items()}
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="be read .*no other step") as caught:
        checkpoint.load(tmp_path, LIKE)
    assert "\n" not in str(caught.value)


def test_another_format_is_refused(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, 1)
    path = tmp_path / "1" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match=r"format 2, this rlx reads 1: use"):
        checkpoint.load(tmp_path, LIKE)


def test_missing_things_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        checkpoint.load(tmp_path / "none", LIKE)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.load(tmp_path, LIKE)
    fill(tmp_path, 1, 2)
    with pytest.raises(CheckpointError, match=r"no step 3; there are \[1, 2\]"):
        checkpoint.load(tmp_path, LIKE, step=3)


def test_what_cannot_be_saved_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\['f'\] is a function"):
        checkpoint.save(tmp_path, 1, {"f": make_state})
    with pytest.raises(CheckpointError, match="step >= 0 and keep >= 1"):
        checkpoint.save(tmp_path, -1, LIKE)
    with pytest.raises(CheckpointError, match="step >= 0 and keep >= 1"):
        checkpoint.save(tmp_path, 1, LIKE, keep=0)
    with pytest.raises(CheckpointError, match="not JSON serializable"):
        checkpoint.save(tmp_path, 1, LIKE, metadata={"x": jnp.zeros(2)})
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file: step 1 cannot be saved"):
        checkpoint.save(tmp_path / "file", 1, LIKE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------ crashes, full disks


ALONE = """
import errno, os, sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from rlx import checkpoint, files, record, step_folders
from rlx.journal import Journal

def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def fails(action, error_type):
    try:
        action()
    except error_type as error:
        print("failed:", error)
    else:
        raise SystemExit("did not fail")

placed = NamedSharding(jax.make_mesh((4,), ("seed",)), PartitionSpec("seed"))
state = jax.jit(lambda: {"x": jnp.arange(8)}, out_shardings=placed)()
path = sys.argv[3]
with Journal(path, False, [{"seed": 0}]) as journal:
    journal.begin({})
    save = lambda step: checkpoint.save(journal.checkpoints, step, state)
    save(1)
    for module, name in (
        (checkpoint, "_require_space"), (step_folders, "inventory"),
        (step_folders, "commit"), (files, "cut_half_line"),
    ):
        kept = getattr(module, name)
        if jax.process_index() == 0:
            setattr(module, name, full)
        if module is files:
            fails(lambda: journal.append({"step": 1}), record.RunFolderError)
        else:
            fails(lambda: save(2), checkpoint.CheckpointError)
        setattr(module, name, kept)
    save(2)
    journal.append({"step": 2})
"""


def test_a_disk_that_is_full_for_one_process_stops_both(tmp_path: pathlib.Path) -> None:
    outputs = in_two_processes(ALONE, tmp_path / "run")
    for prefix, output in zip(("", "process 0: "), outputs, strict=True):
        assert output.count(f"failed: {prefix}{tmp_path}") == 4
        assert output.count("no space left on the disk for step 2; step 1 is st") == 3
        assert output.count("metrics.jsonl: no space left on device: free some") == 1
    assert checkpoint.intact_steps(tmp_path / "run" / "checkpoints") == [1, 2]
    assert [row["step"] for row in RunFolder.open(tmp_path / "run").rows()] == [2]


@pytest.mark.parametrize("call", ["inventory", "flush", "commit"])
def test_a_full_disk_loses_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    fill(tmp_path, 1, 2)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(step_folders, call, fail)
        with pytest.raises(
            CheckpointError, match="no space left .* for step 3"
        ) as caught:
            fill(tmp_path, 3)
    assert "step 2 is still there: free some, then resume" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert checkpoint.intact_steps(tmp_path) == [1, 2]
    fill(tmp_path, 3)
    assert checkpoint.latest(tmp_path) == 3


# Orbax's own: writes that fail later than the first find its event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("foreseen", [True, False])
def test_a_disk_that_is_really_full(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    foreseen: bool,
) -> None:
    if not shutil.which("mount"):
        pytest.skip("no mount command")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("not permitted to mount a small file system")
    try:
        noise = np.random.default_rng(0).integers(0, 2**32, 400_000, np.uint32)
        small = {"x": jnp.array(noise[:10_000])}
        checkpoint.save(tmp_path, 1, small)
        with monkeypatch.context() as patch:
            if not foreseen:  # a quota, or another process that fills the disk
                enough = types.SimpleNamespace(free=2**40)
                patch.setattr(checkpoint.shutil, "disk_usage", lambda path: enough)
            for size in (1, 3):
                state = {str(i): jnp.array(noise) + i for i in range(size)}
                with pytest.raises(CheckpointError, match="no space left on the disk"):
                    checkpoint.save(tmp_path, 2, state)
        assert checkpoint.intact_steps(tmp_path) == [1]
        assert_equal(small, checkpoint.load(tmp_path, small))
        checkpoint.save(tmp_path, 3, small)
        assert "Traceback" not in capfd.readouterr().err
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_space_needed_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = types.SimpleNamespace(free=2**20)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: little)
    checkpoint.save(tmp_path, 1, {"x": jnp.zeros(2**18)})
    with pytest.raises(CheckpointError, match=r"\(2.0 MiB are needed, 1.0 are free\)"):
        checkpoint.save(tmp_path, 2, {"x": jnp.zeros(2**19)})
    assert checkpoint.steps(tmp_path) == [1]


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from rlx import checkpoint, step_folders

point, replacement = sys.argv[2], jnp.full((5, 7), 99)
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if point == "rename":
    import pathlib
    rename = pathlib.Path.rename
    def renamed(self, target):
        result = rename(self, target)
        if self.name == "2":
            kill()
        return result
    pathlib.Path.rename = renamed
else:
    setattr(step_folders, point, kill)
checkpoint.save(sys.argv[1], int(sys.argv[3]), {"x": replacement}, keep=1)
"""


@pytest.mark.parametrize(
    ("point", "step", "left"),
    [
        ("inventory", 3, [1, 2]),  # the arrays are written, nothing else
        ("rename", 2, [1, 2]),  # between the two renames of a replacement
        ("prune", 3, [1, 2, 3]),  # the new step is in place, old ones not yet deleted
    ],
)
def test_a_kill_in_the_middle_loses_nothing(
    tmp_path: pathlib.Path, point: str, step: int, left: list[int]
) -> None:
    fill(tmp_path, 1, 2)
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), point, str(step)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert checkpoint.intact_steps(tmp_path) == left
    assert checkpoint.load(tmp_path, LIKE, step=2)["x"][0, 0] == 2
    fill(tmp_path, 4)
    assert checkpoint.latest(tmp_path) == 4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


def test_an_interrupted_deletion_is_no_step(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, 1, 2)
    (tmp_path / "1").rename(tmp_path / ".trash-1")
    (tmp_path / "notes").mkdir()
    assert checkpoint.steps(tmp_path) == [2]
    fill(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "notes"]


def test_no_thread_is_left(tmp_path: pathlib.Path) -> None:
    before = set(threading.enumerate())
    fill(tmp_path, 1)
    checkpoint.load(tmp_path, LIKE)
    left = {thread for thread in threading.enumerate() if not thread.daemon} - before
    for thread in left:  # executors that have been told to end
        thread.join(timeout=60)
    assert not [thread for thread in left if thread.is_alive()]
