"""Datasets: files round trip, foreign layouts, sampling, collection."""

from __future__ import annotations

import builtins
import json
import resource
import signal

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from envs import probe
from rlx import checkpoint, train
from rlx.data import dataset as datasets
from rlx.data.dataset import Dataset, DatasetError, Metadata
from rlx.data.dataset_collect import collector, metadata_of, uniform_policy
from rlx.data.dataset_record import from_arrays, to_arrays
from rlx.ops import normalization
from rlx.types import Box, EnvSpec, Method, Policy
from tests.data.test_rollout import counter

GAMMA = 0.5


def episode(
    length: int, start: float, terminal: bool = True, scale: float = 1.0
) -> dict[str, np.ndarray]:
    """One episode whose observations count up from `start`; row i has the reward i."""
    count = np.arange(length, dtype=np.float32)
    last = np.arange(length) == length - 1
    return {
        "observations": np.stack([start + count, -start - count], axis=1),
        "actions": scale * np.cos(np.stack([start + count] * 3, axis=1)),
        "rewards": count,
        "terminals": last & terminal,
        "timeouts": last & (not terminal),
        "next_observations": np.stack([start + count + 1, -start - count - 1], axis=1),
    }


def joined(*episodes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}


def three() -> dict[str, np.ndarray]:
    """Terminates after 3 steps, is cut after 4, terminates after 2."""
    return joined(episode(3, 0), episode(4, 100, terminal=False), episode(2, 200))


META = Metadata(
    env="hopper",
    env_options={"reset_noise_scale": 0.01},
    kind="medium",
    how="by hand",
    random_return=-1.5,
    expert_return=10.0,
    time_limit=4,
    action_minimum=(-1.0, -1.0, -2.0),
    action_maximum=(1.0, 1.0, 2.0),
    versions={"jax": "0"},
    notes=("one", "two"),
    details={"nested": {"a": [1, 2.5, None]}, "infinite": float("inf")},
)


def same(a: Dataset, b: Dataset) -> None:
    for (name, x), y in zip(to_arrays(a).items(), to_arrays(b).values(), strict=True):
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)


# ------------------------------------------------------------------------------- record


def test_episodes_and_returns():
    data = from_arrays(three(), META)
    np.testing.assert_array_equal(data.episode_starts, [0, 3, 7])
    np.testing.assert_array_equal(data.episode_ends, [3, 7, 9])
    np.testing.assert_array_equal(data.episode_lengths, [3, 4, 2])
    np.testing.assert_array_equal(data.episode_returns, [3, 6, 1])
    np.testing.assert_array_equal(
        data.transitions.discount, [1, 1, 0, 1, 1, 1, 1, 1, 0]
    )
    np.testing.assert_array_equal(np.flatnonzero(data.transitions.truncated), [6])
    np.testing.assert_array_equal(data.complete, [True, True, True])
    # With a limit of 6 the second one was cut by whoever recorded it.
    short = data.with_metadata(time_limit=6)
    np.testing.assert_array_equal(short.complete, [True, False, True])


def test_the_last_row_is_a_border():
    arrays = joined(episode(3, 0), episode(4, 100, terminal=False))
    arrays["timeouts"][:] = False
    assert from_arrays(arrays, META).episode_ends.tolist() == [3, 7]


def test_joining_keeps_borders_and_cuts_at_the_size_asked():
    data = from_arrays(three(), META)
    both = datasets.concatenate([data, data], META, num_steps=14)
    assert both.episode_ends.tolist() == [3, 7, 9, 12, 14]
    assert both.transitions.truncated[-1] and both.transitions.discount[-1] == 1
    other = {**three(), "actions": np.zeros((9, 2))}
    with pytest.raises(DatasetError, match=r"different tasks .* \(2,\), \(3,\)"):
        datasets.concatenate([data, from_arrays(other, META)], META)
    with pytest.raises(DatasetError, match="at least one"):
        datasets.concatenate([], META)


def test_normalized_score():
    # D4RL's hopper: random -20.272305, expert 3234.3; its medium's 1500 or so.
    score = datasets.normalized_score(np.array([-20.272305, 3234.3, 1607.013848]),
                                      -20.272305, 3234.3)  # fmt: skip
    np.testing.assert_allclose(score, [0, 100, 50], atol=1e-4)
    assert datasets.normalized_score(5.0, 0.0, 20.0) == 25.0
    with pytest.raises(DatasetError, match="expert above the random"):
        datasets.normalized_score(5.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((8, 3))}, "actions 8"),
        ({"rewards": np.zeros((9, 2))}, r"rewards must hold one number.*\(9, 2\)"),
        ({"next_observations": np.zeros((9, 3))}, "must agree"),
        ({name: x[:0] for name, x in three().items()}, "at least one"),
        ({"rewards": np.float32(0)}, "rewards 0"),
    ],
)
def test_arrays_that_do_not_belong_together(change, message):
    with pytest.raises(DatasetError, match=message):
        from_arrays({**three(), **change}, META)


def test_columns_images_and_integers():
    arrays = three()
    arrays["rewards"] = arrays["rewards"][:, None].astype(np.float64)
    arrays["observations"] = np.zeros((9, 2, 2, 3), np.uint8)
    arrays["next_observations"] = np.zeros((9, 2, 2, 3), np.uint8)
    arrays["actions"] = np.zeros(9, np.int64)
    data = from_arrays(arrays, META).transitions
    assert data.reward.shape == (9,) and data.reward.dtype == np.float32
    assert data.observation.dtype == np.uint8
    assert data.action.dtype == np.int32


# ---------------------------------------------------------------------------- own files


def test_round_trip_is_exact_and_files_are_reproducible(tmp_path):
    data = from_arrays(three(), META)
    one, two = (datasets.save(data, tmp_path / n / "data.h5") for n in "ab")
    loaded = datasets.load(one)
    same(loaded, data)
    assert loaded.metadata == META
    assert one.read_bytes() == two.read_bytes()
    assert [entry.name for entry in one.parent.iterdir()] == ["data.h5"]
    empty = from_arrays(three(), Metadata())
    again = datasets.load(datasets.save(empty, tmp_path / "empty.h5"))
    assert again.metadata == Metadata()
    # What knows D4RL alone finds its arrays.
    with h5py.File(one) as file:
        assert set(file) == set(three())
        assert file["terminals"].dtype == bool
        assert file.attrs["env"] == "hopper"


def test_a_file_is_never_overwritten(tmp_path):
    data = from_arrays(three(), META)
    path = datasets.save(data, tmp_path / "data.h5")
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="is there already: delete it"):
        datasets.save(data, path)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_nothing(tmp_path):
    long = from_arrays(episode(20_000, 0), Metadata())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(
            DatasetError, match="cannot be written: File too large; free"
        ) as error:
            datasets.save(long, tmp_path / "data.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert datasets.save(long, tmp_path / "data.h5").is_file()


def test_unsound_data_are_not_written(tmp_path):
    arrays = three()
    arrays["rewards"][4] = np.nan
    with pytest.raises(DatasetError, match="refused: finite: rewards"):
        datasets.save(from_arrays(arrays, META), tmp_path / "data.h5")
    assert list(tmp_path.iterdir()) == []


def test_damaged_files(tmp_path):
    whole = datasets.save(from_arrays(episode(3000, 0), Metadata()), tmp_path / "a.h5")
    content = whole.read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="cannot be read as HDF5.*is it whole"):
        datasets.load(cut)
    with h5py.File(whole) as file:
        place = file["rewards"].id.get_chunk_info(0).byte_offset
    changed = bytearray(content)
    changed[place + 100] ^= 1
    cut.write_bytes(changed)
    with pytest.raises(DatasetError, match="`rewards` is damaged"):
        datasets.load(cut)


def edited(tmp_path, edit):
    path = datasets.save(from_arrays(three(), META), tmp_path / "edited.h5")
    with h5py.File(path, "a") as file:
        edit(file)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f.attrs.update(format_version=9), "of format 9, this rlx reads 1"),
        (lambda f: f.pop("timeouts"), "no array `timeouts`; there are actions"),
        (lambda f: f.attrs.update(details="{"), "attribute details is damaged"),
        (lambda f: f.attrs.update(format="x") or [f.pop(n) for n in three()],
         "no dataset of rlx, D4RL or Minari: it holds nothing"),
    ],
)  # fmt: skip
def test_files_that_lack_something(tmp_path, edit, message):
    with pytest.raises(DatasetError, match=message):
        datasets.load(edited(tmp_path, edit))


def test_missing_files(tmp_path):
    datasets.save(from_arrays(three(), META), tmp_path / "hopper.h5")
    with pytest.raises(DatasetError, match="no such dataset; .* has hopper.h5"):
        datasets.load(tmp_path / "hoper.h5")
    with pytest.raises(DatasetError, match="is a folder, but not of a Minari"):
        datasets.load(tmp_path)
    with pytest.raises(DatasetError, match="no such dataset$"):
        datasets.load(tmp_path / "nowhere" / "a.npz")


def test_without_h5py(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DatasetError, match=r"pip install 'rlx\[data\]'"):
        datasets.save(from_arrays(three(), META), tmp_path / "a.h5")


# ------------------------------------------------------------------------------- D4RL


def write(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def test_d4rl_with_successors(tmp_path):
    path = write(tmp_path / "a.hdf5", {**three(), "infos/qpos": np.zeros((9, 2))})
    data = datasets.load(path)
    same(data, from_arrays(three(), META))
    assert data.metadata == Metadata()


def test_d4rl_without_successors_drops_the_steps_that_lead_nowhere_known(tmp_path):
    arrays = joined(
        episode(3, 0),
        episode(4, 100, terminal=False),
        episode(2, 200),
        episode(1, 300, terminal=False),
        episode(3, 400, terminal=False),
    )
    arrays["timeouts"][-1] = False  # a recording that just stops
    del arrays["next_observations"]
    data = datasets.load(write(tmp_path / "a.hdf5", arrays))
    kept = data.transitions
    start = [0, 1, 2, 100, 101, 102, 200, 201, 400, 401]
    np.testing.assert_array_equal(kept.observation[:, 0], start)
    # Terminal steps hold themselves, all others the true successor.
    after = [1, 2, 2, 101, 102, 103, 201, 201, 401, 402]
    np.testing.assert_array_equal(kept.next_observation[:, 0], after)
    np.testing.assert_array_equal(np.flatnonzero(data.terminal), [2, 7])
    np.testing.assert_array_equal(np.flatnonzero(kept.truncated), [5, 9])
    np.testing.assert_array_equal(kept.reward, [0, 1, 2, 0, 1, 2, 0, 1, 0, 1])
    assert data.metadata.last_steps_dropped == 3
    assert not data.metadata.terminal_successors_known
    dropped, placeholders = data.metadata.notes
    assert "3 last steps of cut episodes dropped" in dropped
    assert "2 terminal steps are unknown" in placeholders
    again = datasets.load(datasets.save(data, tmp_path / "own.h5"))
    assert again.metadata == data.metadata
    full = datasets.load(tmp_path / "a.hdf5", time_limit=4)
    assert full.complete.tolist() == [True, True, True, False]


def test_d4rl_agrees_with_its_own_reader(tmp_path, generator):
    """An independent loop, written from D4RL's `qlearning_dataset`."""
    lengths = [4, 7, 1, 5, 7, 2]
    arrays = joined(
        *(episode(n, 50.0 * i, terminal=i % 2 == 0) for i, n in enumerate(lengths))
    )
    arrays["rewards"] = generator.normal(size=26).astype(np.float32)
    del arrays["next_observations"]
    rows = [
        (i, i + 1) for i in range(25) if not arrays["timeouts"][i]
    ]  # fmt: skip
    data = datasets.load(write(tmp_path / "a.hdf5", arrays), check=False)
    now, after = (np.array(side) for side in zip(*rows, strict=True))
    kept = data.transitions
    np.testing.assert_array_equal(kept.observation, arrays["observations"][now])
    np.testing.assert_array_equal(kept.reward, arrays["rewards"][now])
    np.testing.assert_array_equal(data.terminal, arrays["terminals"][now])
    alive = ~data.terminal  # D4RL puts another episode's start after a terminal step
    np.testing.assert_array_equal(
        kept.next_observation[alive], arrays["observations"][after][alive]
    )


def test_d4rl_without_timeouts(tmp_path):
    arrays = joined(
        episode(3, 0), *(episode(4, 100 * i, terminal=False) for i in (1, 2))
    )
    full = from_arrays(arrays, META)
    del arrays["timeouts"]
    path = write(tmp_path / "a.hdf5", arrays)
    with pytest.raises(DatasetError, match="has no `timeouts`.*--time-limit 1000"):
        datasets.load(path)
    data = datasets.load(path, time_limit=4)
    same(data, full)
    assert "put after every 4 steps" in data.metadata.notes[0]
    with pytest.raises(DatasetError, match="borders: 1 of 8 steps inside.* row 6"):
        datasets.load(path, time_limit=5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rewards", None, "has no array `rewards`; there are actions, next_obs"),
        ("actions", np.zeros((8, 3)), "actions 8"),
        ("terminals", np.zeros((9, 4)), "terminals must hold one number"),
    ],
)
def test_d4rl_with_something_wrong(tmp_path, name, value, message):
    arrays = {**three(), name: value}
    if value is None:
        del arrays[name]
    with pytest.raises(DatasetError, match=message):
        datasets.load(write(tmp_path / "a.hdf5", arrays))


def test_d4rl_without_successors_and_with_rows_missing(tmp_path):
    arrays = {**three(), "actions": np.zeros((8, 3))}
    del arrays["next_observations"]
    with pytest.raises(DatasetError, match="actions 8"):
        datasets.load(write(tmp_path / "a.hdf5", arrays))
    arrays = joined(*(episode(1, i, terminal=False) for i in range(3)))
    del arrays["next_observations"]
    with pytest.raises(DatasetError, match="no step has a known successor"):
        datasets.load(write(tmp_path / "b.hdf5", arrays))


# ------------------------------------------------------------------------------ Minari


def minari(folder, parts, attributes=None, beside=True):
    """Write episodes as Minari does, and return the folder."""
    (folder / "data").mkdir(parents=True)
    attributes = attributes or {}
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for index, part in enumerate(parts):
            group = file.create_group(f"episode_{index}")
            last = part["next_observations"][-1:]
            every = np.concatenate([part["observations"], last])
            group["observations"] = every.astype(np.float64)
            group["actions"] = part["actions"]
            group["rewards"] = part["rewards"].astype(np.float64)
            group["terminations"] = part["terminals"]
            group["truncations"] = part["timeouts"]
            group["infos/x"] = np.zeros(len(every))
        if not beside:
            file.attrs.update(attributes)
    if beside:
        (folder / "data" / "metadata.json").write_text(json.dumps(attributes))
    return folder


SPEC = json.dumps({"id": "Hopper-v5", "max_episode_steps": 7, "kwargs": {"a": 1}})


@pytest.mark.parametrize("beside", [True, False])
def test_minari(tmp_path, beside):
    # Twelve episodes: as text, episode_10 would stand before episode_2.
    parts = [episode(3 + i % 5, 50 * i, terminal=i % 3 > 0) for i in range(12)]
    parts[5]["terminals"][-1] = parts[5]["timeouts"][-1] = False  # just stops
    about = {
        "env_spec": SPEC,
        "dataset_id": "mujoco/hopper/medium-v0",
        "ref_min_score": 1.0,
        "ref_max_score": 9.0,
        "minari_version": "0.5",
    }
    folder = minari(tmp_path / "set", parts, about, beside)
    data = datasets.load(folder)
    expected = joined(*parts)
    expected["timeouts"][data.episode_ends[5] - 1] = True
    same(data, from_arrays(expected, META))
    kept = data.metadata
    assert (kept.env, kept.time_limit, kept.env_options) == ("Hopper-v5", 7, {"a": 1})
    assert (kept.random_return, kept.expert_return) == (1.0, 9.0)
    assert kept.kind == "mujoco/hopper/medium-v0"
    same(datasets.load(folder / "data" / "main_data.hdf5"), data)


def test_minari_with_something_wrong(tmp_path):
    folder = minari(tmp_path / "a", [episode(3, 0), episode(4, 9)])
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/observations"]
        file["episode_1/observations"] = np.zeros((4, 2))
    with pytest.raises(DatasetError, match="episode_1: 4 steps need 5 observations"):
        datasets.load(folder)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/truncations"]
    with pytest.raises(DatasetError, match="episode_1: has no array `truncations`"):
        datasets.load(folder)
    (folder / "data" / "metadata.json").write_text("{")
    folder = minari(tmp_path / "b", [episode(3, 0)])
    (folder / "data" / "metadata.json").write_text("{")
    with pytest.raises(DatasetError, match="metadata.json: is damaged"):
        datasets.load(folder)


def test_minari_with_dictionary_observations(tmp_path):
    folder = minari(tmp_path / "a", [episode(3, 0)])
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        plain = file["episode_0/observations"][()]
        del file["episode_0/observations"]
        file["episode_0/observations/position"] = plain[:, :1]
        file["episode_0/observations/goal"] = 7 + plain
    with pytest.raises(DatasetError, match="dictionaries of goal, position.*--keys"):
        datasets.load(folder)
    data = datasets.load(folder, observation_keys=["position", "goal"])
    expected = np.concatenate([plain[:-1, :1], 7 + plain[:-1]], axis=1)
    np.testing.assert_array_equal(data.transitions.observation, expected)
    with pytest.raises(DatasetError, match="no array `speed`; there are goal, pos"):
        datasets.load(folder, observation_keys=["speed"])


# ------------------------------------------------------------------------------ OGBench


def ogbench(parts):
    """Rows of OGBench's files: trajectories end with a state and a void action."""
    rows = []
    for part in parts:
        last = part["next_observations"][-1:]
        rows.append({
            "observations": np.concatenate([part["observations"], last]),
            "actions": np.concatenate([part["actions"], np.full((1, 3), 0.123)]),
            "terminals": np.append(np.zeros(len(part["rewards"])), 1.0),
            "qpos": np.zeros((len(part["rewards"]) + 1, 4)),
        })  # fmt: skip
    return joined(*rows)


def test_ogbench(tmp_path):
    parts = [episode(n, 50 * n, terminal=False) for n in (3, 5, 1)]
    np.savez(tmp_path / "maze-v0.npz", **ogbench(parts))
    data = datasets.load(tmp_path / "maze-v0.npz")
    expected = {**joined(*parts), "rewards": np.zeros(9)}
    same(data, from_arrays(expected, META))
    assert data.metadata.kind == "maze-v0"
    assert "all are 0" in data.metadata.notes[0]
    assert [finding.severity for finding in datasets.report(data)] == ["warn"]


def test_ogbench_relabelled(tmp_path):
    parts = [episode(3, 0), episode(5, 50, terminal=False)]
    arrays = ogbench(parts)
    arrays["rewards"] = np.arange(10.0)
    arrays["masks"] = 1.0 - (np.arange(10) == 2)
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    data = datasets.load(tmp_path / "a.npz")
    expected = {**joined(*parts), "rewards": np.array([0, 1, 2, 4, 5, 6, 7, 8])}
    same(data, from_arrays(expected, META))


def test_ogbench_with_something_wrong(tmp_path):
    arrays = ogbench([episode(3, 0), episode(5, 50)])
    np.savez(tmp_path / "a.npz", **{**arrays, "terminals": np.zeros(10)})
    with pytest.raises(DatasetError, match="the last row with terminals = 1"):
        datasets.load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", observations=arrays["observations"])
    with pytest.raises(
        DatasetError, match="no array `actions`; there are observations"
    ):
        datasets.load(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", **{**arrays, "terminals": np.ones(10)})
    with pytest.raises(DatasetError, match="every row ends a trajectory"):
        datasets.load(tmp_path / "c.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="cannot be read as npz"):
        datasets.load(tmp_path / "d.npz")


# ----------------------------------------------------------------------------- sampling


def draw(source, key, num=1):
    @jax.jit
    def go(arrays, key):
        over = source.over(arrays)
        policy = Policy(lambda *_: ((), (), {}), lambda: ())
        state = over.init(key, policy)
        return over.next(state, policy, key)

    del num
    return go(source.arrays, key)


def test_samples_are_uniform_and_exact():
    data = from_arrays(three(), META)
    source = datasets.sample(data, batch_size=3000, num_minibatches=3)
    assert source.steps_per_batch == 0 and source.num_envs == 1
    state, batch, metrics = draw(source, jax.random.key(0))
    assert state == () and metrics == {}
    assert batch.reward.shape == (3, 3000)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(9000, *x.shape[2:]), batch)
    names = data.transitions.observation[:, 0]
    rows = np.searchsorted(names, flat.observation[:, 0])
    kept = jax.tree.map(lambda x: x[rows], data.transitions)
    jax.tree.map(np.testing.assert_array_equal, flat, kept)
    counts = np.bincount(rows, minlength=9)
    chi_squared = np.sum((counts - 1000) ** 2 / 1000)
    assert chi_squared < 26.1  # 99.9 % quantile of chi-squared with 8 degrees
    _, same_key, _ = draw(source, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, batch, same_key)
    _, other_key, _ = draw(source, jax.random.key(1))
    assert not np.array_equal(batch.reward, other_key.reward)


def test_n_step_stays_inside_its_episode():
    # Rewards 0 1 2 | 0 1 2 3 (cut) | 0 1, gamma 1/2, three steps:
    expected = {  # first observation: (reward, discount, cut, last observation)
        0: (1.0, 0.0, False, 3),
        1: (2.0, 0.0, False, 3),
        2: (2.0, 0.0, False, 3),
        100: (1.0, 0.25, False, 103),
        101: (1 + 1 + 3 / 4, 0.25, True, 104),
        102: (2 + 3 / 2, 0.5, True, 104),
        103: (3.0, 1.0, True, 104),
        200: (0.5, 0.0, False, 202),
        201: (1.0, 0.0, False, 202),
    }
    data = from_arrays(three(), META)
    source = datasets.sample(data, batch_size=200, n_step=3, gamma=GAMMA)
    _, batch, _ = draw(source, jax.random.key(0))
    first = np.asarray(batch.observation[0, :, 0]).astype(int)
    assert set(first) == set(expected)
    for row, (reward, discount, cut, successor) in expected.items():
        mine = jax.tree.map(lambda x, r=row: np.asarray(x[0])[first == r], batch)
        np.testing.assert_allclose(mine.reward, reward)
        np.testing.assert_allclose(mine.discount, discount * (reward is not None))
        np.testing.assert_array_equal(mine.truncated, cut)
        np.testing.assert_array_equal(mine.next_observation[:, 0], successor)


@pytest.mark.parametrize("name", ["batch_size", "num_minibatches", "n_step"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        datasets.sample(from_arrays(three(), META), **{name: 0})


def test_returns_to_go():
    data = datasets.with_returns_to_go(from_arrays(three(), META), GAMMA)
    expected = [0 + 1 / 2 + 2 / 4, 1 + 2 / 2, 2,
                0 + 1 / 2 + 2 / 4 + 3 / 8, 1 + 2 / 2 + 3 / 4, 2 + 3 / 2, 3,
                0 + 1 / 2, 1]  # fmt: skip
    to_go = data.transitions.extras["return_to_go"]
    np.testing.assert_allclose(to_go, expected)
    _, batch, _ = draw(datasets.sample(data, batch_size=64), jax.random.key(0))
    row = np.searchsorted(
        data.transitions.observation[:, 0], batch.observation[0, :, 0]
    )
    np.testing.assert_array_equal(batch.extras["return_to_go"][0], to_go[row])


def test_normalised_observations():
    data = from_arrays(three(), META)
    stats = datasets.observation_statistics(data)
    raw = data.transitions.observation.astype(np.float64)
    np.testing.assert_allclose(stats.mean, raw.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normalization.variance(stats), raw.var(0), rtol=1e-5)
    scaled = datasets.normalize_observations(data, stats, clip=None).transitions
    np.testing.assert_allclose(scaled.observation.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.observation.std(0), 1, rtol=1e-5)
    after = (data.transitions.next_observation - raw.mean(0)) / raw.std(0)
    np.testing.assert_allclose(scaled.next_observation, after, rtol=1e-4, atol=1e-5)


def imitation() -> Method:
    """Least squares on the dataset's actions: quick to compile."""

    def loss_fn(params, target_params, stats, batch, key):
        loss = jnp.mean((batch.observation @ params - batch.action) ** 2)
        return loss, {"loss": loss}

    return Method(
        init=lambda key: jax.random.normal(key, (3, 1)),
        act=lambda params, stats, observation, carry, key: (
            observation @ params, carry, {},
        ),
        loss_fn=loss_fn,
        optimizer=optax.sgd(0.05),
        num_minibatches=2,
    )  # fmt: skip


def test_fit_learns_from_a_dataset_that_no_checkpoint_holds(tmp_path):
    env = probe.pendulum(time_limit=20)
    collect = collector(env, lambda s: uniform_policy(env.spec.action), num_steps=3000)
    data = collect((), jax.random.key(0))
    wanted = np.array([[0.5], [-0.2], [0.3]], np.float32)
    taught = data.transitions.replace(action=data.transitions.observation @ wanted)
    data = Dataset(taught, data.metadata)
    path = datasets.save(data, tmp_path / "pendulum.h5")
    source = datasets.dataset(env, path=str(path), batch_size=32, num_minibatches=2)
    assert source.env is env
    settings = train.Settings(evaluations=2, episodes=1)

    def fit(seeds, steps, folder=None, **more):
        return train.fit(
            imitation(), source, num_steps=steps, seeds=seeds, settings=settings,
            save_to=folder and tmp_path / folder, **more,
        )  # fmt: skip

    both = fit(2, 400, "run")
    np.testing.assert_allclose(both.state.learner.params[1], wanted, atol=1e-3)
    assert int(both.state.learner.step[0]) == 800  # two minibatches in each batch
    assert both.steps.tolist() == [0, 200, 400]
    # The second run is the run of its seed alone; resuming changes nothing.
    alone = fit([1], 400)
    np.testing.assert_array_equal(
        alone.state.learner.params[0], both.state.learner.params[1]
    )
    fit(2, 200, "halves")
    resumed = fit(2, 400, "halves", resume=True)
    jax.tree.map(
        np.testing.assert_array_equal,
        resumed.state.learner.params,
        both.state.learner.params,
    )
    kept = checkpoint.steps(tmp_path / "run" / "checkpoints")[-1]
    size = sum(
        file.stat().st_size
        for file in (tmp_path / "run" / "checkpoints" / str(kept)).rglob("*")
        if file.is_file()
    )
    assert size < sum(x.nbytes for x in to_arrays(data).values()) / 2


def test_the_source_checks_its_environment(tmp_path):
    path = datasets.save(from_arrays(three(), Metadata()), tmp_path / "a.h5")
    with pytest.raises(DatasetError, match="observations have the shape .2,., but"):
        datasets.dataset(probe.pendulum(), path=str(path))
    with pytest.raises(DatasetError, match="which dataset.*path="):
        datasets.dataset(probe.pendulum())


# --------------------------------------------------------------------------- collection


def test_collection_is_exact_in_order_and_reproducible():
    env = probe.pendulum(time_limit=6)
    make = lambda scale: Policy(  # noqa: E731
        lambda observation, carry, key: (
            scale * jax.random.normal(key, (*observation.shape[:-1], 1)), carry, {},
        ),
        lambda: (),
    )  # fmt: skip
    collect = collector(env, make, num_steps=50, num_envs=3)  # 17 rows per stream
    data = collect(0.5, jax.random.key(0))
    assert data.num_steps == 50
    # Streams of 17, 17 and 16 steps: two whole episodes each, and a cut one.
    assert data.episode_lengths.tolist() == [6, 6, 5, 6, 6, 5, 6, 6, 4]
    assert data.complete.tolist() == [True, True, False] * 3
    assert not data.terminal.any()
    assert datasets.report(data, env.spec) == []
    assert data.metadata == metadata_of(env)
    assert data.metadata.action_maximum == (1.0,)
    same(data, collect(0.5, jax.random.key(0)))
    other = collect(0.5, jax.random.key(1)).transitions
    assert not np.array_equal(other.action, data.transitions.action)
    # Clipped before the step: the reward is for the action that is written.
    wild = collect(50.0, jax.random.key(0)).transitions
    assert np.abs(wild.action).max() == 1.0
    angle = np.arctan2(wild.observation[:, 1], wild.observation[:, 0])
    torque, speed = 2 * wild.action[:, 0], 8 * wild.observation[:, 2]
    cost = angle**2 + 0.1 * speed**2 + 0.001 * torque**2
    np.testing.assert_allclose(wild.reward, -cost, rtol=1e-4, atol=1e-4)


def test_terminal_steps_are_not_cuts():
    env = probe.cartpole(time_limit=500)
    collect = collector(
        env, lambda state: uniform_policy(env.spec.action), num_steps=700, num_envs=1
    )
    data = collect((), jax.random.key(3))
    ends = data.episode_ends - 1
    assert data.terminal[ends[:-1]].all()
    assert not data.transitions.truncated[ends[:-1]].any()
    assert data.transitions.action.dtype == np.int32
    assert set(np.unique(data.transitions.action)) == {0, 1}
    assert datasets.report(data, env.spec) == []
    np.testing.assert_allclose(data.episode_returns, data.episode_lengths)


def test_collection_needs_sizes_and_bounds():
    env = counter()
    with pytest.raises(ValueError, match="at least 1, got 0, 10"):
        collector(env, lambda state: None, num_steps=0)
    with pytest.raises(ValueError, match="need finite bounds"):
        uniform_policy(Box((2,)))
    assert metadata_of(
        env._replace(spec=EnvSpec("x", Box((1,)), Box((2,))))
    ) == Metadata(env="x", action_minimum=(-np.inf,) * 2, action_maximum=(np.inf,) * 2)
