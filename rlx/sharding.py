"""Many runs at once: over devices, and over groups of runs on each device.

A *run* is one seed with one setting of the hyper-parameters. Runs share nothing, so
they are spread over devices by `shard_map`, without any communication, and inside a
device in groups: the runs of a group are vmapped, groups follow one another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlx.types import Array, PyTree

AXIS = "runs"


def use_cpu_cores(count: int | None = None) -> int:
    """Makes one JAX device of each processor core, so that runs train side by side.

    Call it before anything is computed: JAX reads the number once. Has no effect on
    machines with an accelerator.

    Args:
      count: devices to make; the cores this process may use unless given.

    Returns:
      The number of CPU devices there are now.

    Raises:
      RuntimeError: JAX has already started with another number.
    """
    wanted = count or available_cores()
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError as error:
        existing = jax.local_device_count("cpu")
        if existing == wanted:
            return existing
        raise RuntimeError(
            f"JAX already runs with {existing} CPU device(s): call use_cpu_cores "
            "before the first computation (in a notebook, restart the kernel)"
        ) from error
    return wanted


def available_cores() -> int:
    """Processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def mesh_for(num_runs: int) -> Mesh:
    """A mesh of the fewest devices on which the runs take the least time.

    The busiest of D devices has ⌈N/D⌉ of N runs; where fewer devices have no more than
    that each, the others would only repeat work: 11 runs on 8 devices are two each for
    6 of them, one of the twelve a repetition (see `pad`). With several processes
    (`jax.distributed`) every device of every process takes part.
    """
    devices = jax.devices()
    count = len(devices)
    if jax.process_count() == 1:
        busiest = -(-num_runs // count)
        count = -(-num_runs // busiest)
    return Mesh(np.asarray(devices[:count]), (AXIS,))


def memories(mesh: Mesh) -> int:
    """How many memories share the runs: a device has its own, but CPUs their host's."""
    if mesh.devices.flat[0].platform == "cpu":
        return jax.process_count()
    return mesh.size


def pad(runs: PyTree, mesh: Mesh) -> PyTree:
    """Repeats the last run until every device has as many; see `unpad`."""
    missing = -jax.tree.leaves(runs)[0].shape[0] % mesh.size
    return _repeat_last(runs, missing) if missing else runs


def _repeat_last(runs: PyTree, times: int) -> PyTree:
    def leaf(x: Any) -> Any:
        # Keys can only be joined by JAX; what was read from a disk stays on the host.
        library = np if isinstance(x, np.ndarray) else jnp
        return library.concatenate([x, *[x[-1:]] * times])

    return jax.tree.map(leaf, runs)


def unpad(tree: PyTree, num_runs: int) -> PyTree:
    """The first `num_runs` runs; the tree as it is where nothing was repeated.

    What had to be cut comes back on the host, as NumPy arrays (keys as local arrays):
    runs that no number of devices divides evenly have no sharding, and one device may
    be too small for all of them. Every process gets all runs.
    """

    def leaf(x: Array) -> Any:
        if x.shape[0] == num_runs:
            return x
        if not _is_key(x):
            return gather(x)[:num_runs]
        data = gather(jax.random.key_data(x))[:num_runs]
        return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(x))

    return jax.tree.map(leaf, tree)


def unpadded_like(abstract: PyTree, num_runs: int) -> PyTree:
    """What `unpad` makes of a tree of these shapes: what its checkpoint is read into.

    Args:
      abstract: leaves `jax.ShapeDtypeStruct` with a sharding.
      num_runs: as for `unpad`.
    """

    def leaf(x: jax.ShapeDtypeStruct) -> Any:
        if x.shape[0] == num_runs:
            return x
        shape = (num_runs, *x.shape[1:])
        if _is_key(x):
            return jax.ShapeDtypeStruct(shape, x.dtype)
        return np.empty(shape, x.dtype)

    return jax.tree.map(leaf, abstract)


def repad(tree: PyTree, abstract: PyTree) -> PyTree:
    """Undoes `unpad`: `tree` in the shapes and shardings of `abstract`."""

    def leaf(x: Any, wanted: jax.ShapeDtypeStruct) -> Any:
        missing = wanted.shape[0] - x.shape[0]
        return place(_repeat_last(x, missing), wanted.sharding) if missing else x

    return jax.tree.map(leaf, tree, abstract)


def per_run(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that lead with the axis of runs."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device has whole, the same for all runs."""
    return NamedSharding(mesh, PartitionSpec())


def over_runs(
    function: Callable[..., Any], mesh: Mesh, group: int
) -> Callable[..., Any]:
    """`function(run, *shared)` of one run as `(runs, *shared)` of all of them.

    Args:
      function: pure; its first argument is a pytree that leads with the axis of runs
        in the mapped version, the others are the same for every run.
      mesh: from `mesh_for`.
      group: runs vmapped together on a device; 1: one after another, which on a CPU
        is faster than a vmap over small matrix products.
    """

    def local(runs: PyTree, *shared: Any) -> Any:
        size = jax.tree.leaves(runs)[0].shape[0]

        def one(run: PyTree) -> Any:
            return function(run, *shared)

        if group >= size and group > 1:
            return jax.vmap(one)(runs)
        # batch_size=1 would still vmap, and turn every `cond` into a `select`.
        return jax.lax.map(one, runs, batch_size=group if group > 1 else None)

    def mapped(runs: PyTree, *shared: Any) -> Any:
        specs = (PartitionSpec(AXIS), *(PartitionSpec() for _ in shared))
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )(runs, *shared)

    return mapped


def largest_group(memory_of: Callable[[int], int | None], runs: int) -> int:
    """The most runs that can be vmapped together on one device.

    One after another on a CPU, where that is faster. On an accelerator as many as
    fit, by halving until the estimate is under nine tenths of the device's memory.

    Args:
      memory_of: bytes that a program for a group of the given size needs, by its
        compiled memory analysis; None if unknown.
      runs: runs on one device.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        return 1
    limit = (device.memory_stats() or {}).get("bytes_limit")
    group = runs
    while limit and group > 1:
        needed = memory_of(group)
        if needed is None or needed < 0.9 * limit:
            break
        group = (group + 1) // 2
    return group


def place(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """What every process knows whole, as arrays spread over all their devices."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def leaf(x: Any) -> Array:
        host = np.asarray(jax.random.key_data(x) if _is_key(x) else x)
        array = jax.make_array_from_callback(host.shape, sharding, host.__getitem__)
        if _is_key(x):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(x))
        return array

    return jax.tree.map(leaf, tree)


def agree(value: float) -> float:
    """The largest of the processes' values, on every process, once all are here.

    What only one process knows (its clock, a signal it got) must be agreed upon before
    it decides what all of them do next. Single precision.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(np.max(multihost_utils.process_allgather(np.float32(value))))


@contextlib.contextmanager
def together(error_type: type[Exception]) -> Iterator[None]:
    """A block that fails on every process if it fails on one of them.

    Whoever fails alone (a full disk that only the first process writes to) would leave
    the others waiting for it. Every process enters, and at the end all wait for all.

    Args:
      error_type: of the error that the other processes raise, with the message of the
        one that failed.
    """
    if jax.process_count() == 1:
        yield
        return
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    said = _texts("" if problem is None else str(problem) or type(problem).__name__)
    if problem is not None:
        raise problem
    for process, text in enumerate(said):
        if text:
            raise error_type(f"process {process}: {text}")


def _texts(text: str) -> list[str]:
    """The texts of all processes, in their order, on every process."""
    from jax.experimental import multihost_utils

    letters = np.zeros(1000, np.uint8)
    code = np.frombuffer(text.encode()[: len(letters)], np.uint8)
    letters[: len(code)] = code
    rows = np.asarray(multihost_utils.process_allgather(letters))
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def gather(tree: PyTree) -> PyTree:
    """Arrays of all runs as NumPy, on every process; keys must be given as raw data.

    What every process has whole already is not gathered again.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def leaf(x: Any) -> Any:
        if getattr(x, "is_fully_addressable", True):
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(leaf, tree)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
