"""The compiled programs behind `train.fit`: many runs, one compilation each."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx import evaluate, learner, loop, sharding, warm_start
from rlx.data import replay
from rlx.types import (
    Array,
    DataSource,
    Env,
    Key,
    Method,
    Metrics,
    PyTree,
    TrainState,
)

MethodMaker = Callable[[Mapping[str, Array]], Method]


@struct.dataclass
class Run:
    """What distinguishes one run from the others."""

    train_key: Key
    evaluation_key: Key
    hyper: Mapping[str, Array]
    """Hyper-parameters of a sweep; empty where only seeds differ."""
    start: Mapping[str, PyTree] = struct.field(default_factory=dict)
    """Learned elsewhere, to begin with: `params`, `stats`, or neither."""


@struct.dataclass
class Progress:
    """A run in progress: its state, and the metrics since the last row."""

    state: TrainState
    sums: Mapping[str, Array]
    counts: Mapping[str, Array]
    bad_iteration: Array
    """`int32[]` first iteration with NaN or infinity, -1 while there is none."""
    bad_data: Array
    """bool: that iteration's data was at fault, not the learning."""


class Programs(NamedTuple):
    """Compiled functions over all runs; every array leads with the axis of runs.

    Where the devices do not divide the runs, the last one is repeated at the end of
    that axis (see `rlx.sharding.pad`); `sharding.unpad` takes the repetitions off.
    """

    runs: Run
    """What the runs are, on the devices where they train."""
    init: Callable[[Run], Progress]
    advance: Callable[[Run, Progress, np.int32], Progress]
    """`(runs, progress, iterations) -> progress`; donates `progress`."""
    reset_metrics: Callable[[Progress], Progress]
    evaluate: Callable[[Run, Progress], evaluate.Episodes] | None
    abstract: PyTree
    """Shapes, dtypes and shardings of `Progress`: what a checkpoint is loaded into."""
    compile_seconds: float
    memory_bytes: int | None


def make_runs(
    seeds: Sequence[int], hyper: Mapping[str, Sequence[float]] | None
) -> tuple[Run, list[dict[str, float]]]:
    """All runs: every seed with every setting, settings outermost.

    Each `hyper` array has length K; setting k takes the k-th entry of every array.

    Returns:
      The runs, stacked, `K * S` of them, and a label for each.

    Raises:
      ValueError: no seeds, a seed twice or out of range, arrays that are empty or of
        different lengths.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be distinct and at least one, got {seeds}")
    # Beyond 32 bits JAX folds seeds together: 2**32 would be seed 0 once more.
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"seeds must lie in 0 ... 2**32 - 1, got {seeds}")
    hyper = dict(hyper or {})
    lengths = {name: len(values) for name, values in hyper.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"hyper-parameter arrays differ in length: {lengths}")
    settings = next(iter(lengths.values()), 1)
    if not settings:
        raise ValueError(f"hyper-parameter arrays are empty: {list(lengths)}")
    keys = jnp.stack([jax.random.split(jax.random.key(seed)) for seed in seeds])
    keys = jnp.concatenate([keys] * settings)
    values = {
        name: jnp.repeat(jnp.asarray(array, jnp.float32), len(seeds))
        for name, array in hyper.items()
    }
    labels = [
        {"seed": int(seed), **{name: float(hyper[name][k]) for name in hyper}}
        for k in range(settings)
        for seed in seeds
    ]
    return Run(keys[:, 0], keys[:, 1], values), labels


Step = Callable[[Run, TrainState, PyTree], tuple[TrainState, Metrics]]


def _make_step(make_method: MethodMaker, source: DataSource) -> Step:
    """`loop.step` of a run; under `jit`, so that two programs trace it only once."""

    @jax.jit
    def step(run: Run, state: TrainState, arrays: PyTree) -> tuple[TrainState, Metrics]:
        return loop.step(make_method(run.hyper), _over(source, arrays), state)

    return step


def _over(source: DataSource, arrays: PyTree) -> DataSource:
    return source if source.over is None else source.over(arrays)


def _init_run(
    make_method: MethodMaker,
    source: DataSource,
    step: Step,
    run: Run,
    arrays: PyTree,
) -> Progress:
    method = warm_start.begun(make_method(run.hyper), run.start)
    state = loop.init(method, _over(source, arrays), run.train_key)
    _, metrics = jax.eval_shape(step, run, state, arrays)
    return Progress(
        state=state,
        sums={name: jnp.zeros(()) for name in metrics},
        counts={name: jnp.zeros(()) for name in metrics},
        bad_iteration=jnp.full((), -1, jnp.int32),
        bad_data=jnp.zeros((), bool),
    )


def _advance(step: Step, run: Run, progress: Progress, arrays: PyTree) -> Progress:
    state, metrics = step(run, progress.state, arrays)
    bad_data = metrics["batch_finite"] < 1
    bad = bad_data | (metrics["learner_finite"] < 1)
    first = bad & (progress.bad_iteration < 0)
    # NaN in a metric means "nothing to report", e.g. no episode ended.
    present = {name: ~jnp.isnan(value) for name, value in metrics.items()}
    return Progress(
        state=state,
        sums={
            name: progress.sums[name] + jnp.where(present[name], value, 0.0)
            for name, value in metrics.items()
        },
        counts={n: progress.counts[n] + present[n] for n in metrics},
        bad_iteration=jnp.where(first, state.iteration, progress.bad_iteration),
        bad_data=jnp.where(first, bad_data, progress.bad_data),
    )


def _advance_run(
    step: Step, pair: tuple[Run, Progress], iterations: Array, arrays: PyTree
) -> Progress:
    run, progress = pair
    return jax.lax.fori_loop(
        0, iterations, lambda _, p: _advance(step, run, p, arrays), progress
    )


def _evaluate_run(
    make_method: MethodMaker, env: Env, num_episodes: int, pair: tuple[Run, Progress]
) -> evaluate.Episodes:
    run, progress = pair
    method = make_method(run.hyper)
    policy = learner.policy(method, progress.state.learner)
    key = jax.random.fold_in(run.evaluation_key, progress.state.iteration)
    return evaluate.episodes(env, policy, key, num_episodes=num_episodes)


def build(
    make_method: MethodMaker,
    source: DataSource,
    runs: Run,
    *,
    evaluation_env: Env | None,
    num_episodes: int,
    group: int | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Programs:
    """Compiles what a fit needs, for all runs at once.

    Args:
      make_method: the method of a run, from its hyper-parameters.
      source: where batches come from.
      runs: from `make_runs`.
      evaluation_env: environment of evaluations; None: no evaluation.
      num_episodes: episodes per evaluation and run.
      group: runs vmapped together; chosen by backend and memory unless given.
      compiler_options: passed to XLA.

    Raises:
      ValueError: the memory cannot hold the replay of all runs.
    """
    options: dict[str, Any] | None = dict(compiler_options or {}) or None
    mesh = sharding.mesh_for(runs.train_key.shape[0])
    placed = sharding.per_run(mesh)
    runs = sharding.pad(runs, mesh)
    each = runs.train_key.shape[0] // mesh.size

    step = _make_step(make_method, source)
    init_one = functools.partial(_init_run, make_method, source, step)
    advance_one = functools.partial(_advance_run, step)
    runs_shape = _abstract(runs, placed)
    arrays = sharding.place(source.arrays, sharding.everywhere(mesh))
    arrays_shape = _abstract(arrays, sharding.everywhere(mesh))
    count = jax.ShapeDtypeStruct((), jnp.int32)

    @functools.cache
    def trace_init(size: int) -> jax.stages.Traced:
        mapped = sharding.over_runs(init_one, mesh, size)

        def init(runs: Run, arrays: PyTree) -> Progress:
            return mapped(runs, arrays)

        return jax.jit(init, out_shardings=placed).trace(runs_shape, arrays_shape)

    started = time.perf_counter()
    abstract = _abstract(trace_init(group or 1).out_info, placed)
    replay.require_memory(abstract, sharding.memories(mesh))

    @functools.cache
    def compile_advance(size: int) -> jax.stages.Compiled:
        mapped = sharding.over_runs(advance_one, mesh, size)

        def advance(
            runs: Run, progress: Progress, iterations: Array, arrays: PyTree
        ) -> Progress:
            return mapped((runs, progress), iterations, arrays)

        jitted = jax.jit(advance, donate_argnums=1, out_shardings=placed)
        lowered = jitted.lower(runs_shape, abstract, count, arrays_shape)
        return lowered.compile(options)

    def compile_evaluate(env: Env, size: int) -> jax.stages.Compiled:
        one = functools.partial(_evaluate_run, make_method, env, num_episodes)
        mapped = sharding.over_runs(one, mesh, size)

        def evaluate_all(runs: Run, progress: Progress) -> evaluate.Episodes:
            return mapped((runs, progress))

        return jax.jit(evaluate_all).lower(runs_shape, abstract).compile(options)

    if group is None:
        group = sharding.largest_group(
            lambda size: _memory(compile_advance(size)), each
        )
    advance = compile_advance(group)
    evaluation = None
    if evaluation_env is not None:
        evaluation = compile_evaluate(evaluation_env, group)
    traced = trace_init(group)

    def init(runs: Run) -> Progress:
        # Not at all in a resumed fit.
        return traced.lower().compile(options)(runs, arrays)

    return Programs(
        runs=sharding.place(runs, placed),
        init=init,
        advance=lambda *given: advance(*given, arrays),
        reset_metrics=_reset_metrics(placed),
        evaluate=evaluation,
        abstract=abstract,
        compile_seconds=time.perf_counter() - started,
        memory_bytes=_memory(advance),
    )


def _reset_metrics(
    placed: jax.sharding.Sharding,
) -> Callable[[Progress], Progress]:
    @functools.partial(jax.jit, out_shardings=placed)
    def zeros(tree: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, tree)

    def reset(progress: Progress) -> Progress:
        sums, counts = zeros((progress.sums, progress.counts))
        return progress.replace(sums=sums, counts=counts)

    return reset


def _abstract(tree: PyTree, placed: jax.sharding.Sharding) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), tree
    )


def _memory(compiled: jax.stages.Compiled) -> int | None:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return int(analysis.temp_size_in_bytes + analysis.argument_size_in_bytes)
