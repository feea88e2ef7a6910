"""The native engine: MuJoCo's C code as a pure function of the physics state.

The state that JAX carries is the head of MuJoCo's `mjSTATE_INTEGRATION` vector: time,
joint positions, velocities, activations *and the solver's warm start*, as float64 bits
(`bits.py`), plus the step count. Nothing else survives a step, so the next state is a
function of state and action alone, exactly that of a Gymnasium environment which never
stopped. After a reset the warm start is zero, as `mj_resetData` leaves it.

A whole batch (any number of `vmap`s) is one host call (`hostcall.py`) on the threads of
`mujoco.batch`; its results do not depend on the thread count. A state that is or
becomes non-finite, or that MuJoCo reports as diverged, and a non-finite action, give
NaN everywhere: rewards that training detects, where MuJoCo alone would reset the
simulation and go on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import queue
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.mujoco import bits, common, hostcall
from envs.mujoco.model import load
from envs.mujoco.physics import Simulator
from envs.mujoco.task import Context, Task
from rlx.types import Env, Step


@struct.dataclass
class State:
    """Everything that one environment is: arrays, to be saved and loaded whole."""

    physics: jax.Array
    """`uint32[n + P, 2]` float64 bits: the head of MuJoCo's integration state, then
    the task's position, from which the next step's velocity is measured."""
    step: jax.Array
    """`int32[]` steps since the reset."""


def make(
    task: Task, option: SimpleNamespace, time_limit: int | None, threads: int | None
) -> Env:
    """Return `task` with the resolved options `option` as an `Env`."""
    engine = Engine(task, option, threads)

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        """Draw an initial state: `(key) -> (state, observation)`."""
        physics, observation = engine.reset(key)
        return State(physics, jnp.int32(0)), observation

    def step(state: State, action: jax.Array, key: Any = None) -> tuple[State, Step]:
        """Advance by one control step; the physics is deterministic, no key used."""
        del key
        physics, values = engine.step(state.physics, action)
        count = state.step + 1
        cut = jnp.bool_(False) if time_limit is None else count >= time_limit
        return State(physics, count), engine.read(values, cut)

    spec = common.spec(task, engine.context, engine.observation_size, time_limit)
    return Env(reset, step, spec, engine.render)


class Engine:
    """A task with its model, and the simulators that run it.

    Several devices may call at once, each from a thread of its own: every call checks
    out a simulator that nobody uses, and a new one is made when all are busy.
    """

    def __init__(self, task: Task, option: SimpleNamespace, threads: int | None):
        self.task = task
        self._threads = threads
        self._idle: queue.SimpleQueue[Simulator] = queue.SimpleQueue()
        model = load(task.model_file)
        self.context = Context(
            option=option,
            model=model,
            dt=model.opt.timestep * task.frame_skip,
            qpos=model.qpos0.copy(),
            xp=np,
        )
        draws = jax.eval_shape(lambda: task.draw(self.context, jax.random.key(0)))
        rows, observation = Simulator(task, self.context, 1).reset(
            np.zeros((1, *draws.shape), np.float32)
        )
        self.observation_size = observation.shape[-1]
        self._physics = jax.ShapeDtypeStruct((rows.shape[-1], 2), jnp.uint32)

    @functools.cached_property
    def threads(self) -> int:
        """Physics threads of one call. Read while tracing, never in a callback."""
        if self._threads is not None:
            return self._threads
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return max(1, cores // jax.local_device_count())

    # ------------------------------------------------------------- seen by JAX

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return `(physics, observation)` of a new episode."""
        shape = jax.ShapeDtypeStruct((self.observation_size,), jnp.float32)
        physics, observation = hostcall.call(
            self._call_name("reset"),
            self._host_reset,
            (self._physics, shape),
            self.task.draw(self.context, key),
        )
        return physics, observation

    def _call_name(self, what: str) -> str:
        """Return a name that is the same wherever the same numbers are computed."""
        identity = repr((self.task.name, sorted(vars(self.context.option).items())))
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return f"rlx_mujoco_{self.task.name}_{what}_{digest}_{self.threads}"

    def step(
        self, physics: jax.Array, action: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return `(physics, values)` one control step later; `read` reads values."""
        common.check_action(self.task, self.context, action)
        action = jax.lax.bitcast_convert_type(
            jnp.asarray(action, jnp.float32), jnp.uint32
        )
        width = self.observation_size + 2 + len(self.task.info)
        # One argument: each has a price on its way to the host.
        physics, values = hostcall.call(
            self._call_name("step"),
            self._host_step,
            (self._physics, jax.ShapeDtypeStruct((width,), jnp.float32)),
            jnp.concatenate([physics.reshape(-1), action]),
        )
        return physics, values

    def read(self, values: jax.Array, truncated: jax.Array) -> Step:
        """Return the `Step` that `values` describe."""
        size = self.observation_size
        return Step(
            observation=values[:size],
            reward=values[size],
            terminated=values[size + 1] > 0,
            truncated=truncated,
            info=dict(zip(self.task.info, values[size + 2 :], strict=True)),
        )

    # ----------------------------------------- on the host: NumPy only, no JAX calls

    def _host_reset(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lead = draws.shape[:-1]
        with self._simulator() as simulator:
            rows, observation = simulator.reset(draws.reshape(-1, draws.shape[-1]))
        return bits.pack(rows).reshape(*lead, -1, 2), observation.reshape(*lead, -1)

    def _host_step(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lead = words.shape[:-1]
        words = words.reshape(-1, words.shape[-1])
        size = 2 * self._physics.shape[0]
        action = np.ascontiguousarray(words[:, size:]).view(np.float32)
        rows = np.ascontiguousarray(words[:, :size]).view(np.float64)
        with self._simulator() as simulator:
            rows, values = simulator.step(rows, action)
        return bits.pack(rows).reshape(*lead, -1, 2), values.reshape(*lead, -1)

    @contextlib.contextmanager
    def _simulator(self) -> Iterator[Simulator]:
        """Check out a simulator that no other thread uses."""
        try:
            simulator = self._idle.get_nowait()
        except queue.Empty:
            simulator = Simulator(self.task, self.context, self.threads)
        try:
            yield simulator
        finally:
            self._idle.put(simulator)

    # ----------------------------------------------------------------------- render

    def render(self, state: State, **options: Any) -> np.ndarray:
        """Draw one concrete state as `uint8[H, W, 3]`, without GPU or display."""
        nq = self.context.model.nq
        qpos = bits.unpack(np.asarray(state.physics))[1 : 1 + nq]
        return common.picture(self.task, self.context.model, qpos, **options)
