"""The native engine: MuJoCo's C code as a pure function of the physics state.

The state that JAX carries is the head of MuJoCo's `mjSTATE_INTEGRATION` vector: time,
joint positions, velocities, activations *and the solver's warm start*, as float64 bits
(`bits.py`), plus the step count. Nothing else survives a step, so the next state is a
function of state and action alone, exactly that of a Gymnasium environment which never
stopped. After a reset the warm start is zero, as `mj_resetData` leaves it.

A whole batch (any number of `vmap`s) is one host call on `mujoco.batch`'s threads; its
results do not depend on the thread count. A state that is or becomes non-finite, or
that MuJoCo reports as diverged, and a non-finite action, give NaN everywhere: rewards
that training detects, where MuJoCo alone would reset the simulation and go on.
"""

from __future__ import annotations

import functools
import os
import queue
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.mujoco import bits
from envs.mujoco.model import load
from envs.mujoco.physics import Simulator
from envs.mujoco.task import Context, Physics, Task
from rlx.types import Box, Env, EnvSpec, Step


@struct.dataclass
class State:
    """Everything that one environment is: arrays, to be saved and loaded whole."""

    physics: jax.Array
    """`uint32[n, 2]` float64 bits: the head of MuJoCo's integration state."""
    position: jax.Array
    """`uint32[P, 2]` float64 bits: what the next step's velocity is measured from."""
    step: jax.Array
    """`int32[]` steps since the reset."""


def make(
    task: Task, option: SimpleNamespace, time_limit: int | None, threads: int | None
) -> Env:
    """Return `task` with the resolved options `option` as an `Env`."""
    engine = Engine(task, option, threads)

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        """Draw an initial state: `(key) -> (state, observation)`."""
        physics, position, observation = engine.reset(key)
        return State(physics, position, jnp.int32(0)), observation

    def step(state: State, action: jax.Array, key: Any = None) -> tuple[State, Step]:
        """Advance by one control step; the physics is deterministic, no key used."""
        del key
        physics, position, values = engine.step(state, action)
        count = state.step + 1
        cut = jnp.bool_(False) if time_limit is None else count >= time_limit
        return State(physics, position, count), Step(truncated=cut, **values)

    return Env(reset, step, _spec(engine, time_limit), engine.render)


def _spec(engine: Engine, time_limit: int | None) -> EnvSpec:
    limits = engine.context.model.actuator_ctrlrange.astype(np.float32)
    low, high = (tuple(float(x) for x in limits[:, i]) for i in (0, 1))
    return EnvSpec(
        name=engine.task.name,
        observation=Box((engine.observation_size,)),
        action=Box((engine.context.model.nu,), low, high),
        time_limit=time_limit,
        control_frequency=1.0 / engine.context.dt,
    )


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
        simulator = Simulator(task, self.context, 1)
        physics, position, observation = simulator.reset(
            model.qpos0[None], np.zeros((1, model.nv))
        )
        self._physics = jax.ShapeDtypeStruct((*physics.shape[1:], 2), jnp.uint32)
        self._position = jax.ShapeDtypeStruct((*position.shape[1:], 2), jnp.uint32)
        self.observation_size = observation.shape[-1]

    @functools.cached_property
    def threads(self) -> int:
        """Physics threads of one call. Read while tracing, never in a callback."""
        if self._threads is not None:
            return self._threads
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        return max(1, cores // jax.local_device_count())

    # ------------------------------------------------------------- seen by JAX

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return `(physics, position, observation)` of a new episode."""
        c = self.context._replace(xp=jnp)
        qpos, qvel = self.task.reset(c, key)
        if self.task.fields:
            return self._call_reset(qpos, qvel)
        # Nothing here needs MuJoCo: time, activations and warm start are zero.
        rest = self._physics.shape[0] - 1 - qpos.shape[0] - qvel.shape[0]
        row = jnp.concatenate([jnp.zeros(1), qpos, qvel, jnp.zeros(rest)])
        p = Physics(qpos=qpos, qvel=qvel)
        position = bits.widen(self.task.position(c, p))
        return bits.widen(row), position, self.task.observe(c, p)

    def _call_reset(self, qpos: jax.Array, qvel: jax.Array) -> tuple[jax.Array, ...]:
        _ = self.threads
        observation = jax.ShapeDtypeStruct((self.observation_size,), jnp.float32)
        return jax.pure_callback(
            self._host_reset,
            (self._physics, self._position, observation),
            qpos,
            qvel,
            vmap_method="broadcast_all",
        )

    def step(
        self, state: State, action: jax.Array
    ) -> tuple[jax.Array, jax.Array, Mapping[str, Any]]:
        """Return `(physics, position, fields of Step)` after one control step."""
        _ = self.threads
        size = self.context.model.nu
        if jnp.shape(action) != (size,):
            raise ValueError(
                f"{self.task.name!r} takes actions of shape ({size},), got "
                f"{jnp.shape(action)}; use jax.vmap for a batch of environments."
            )
        width = self.observation_size + 2 + len(self.task.info)
        values = jax.ShapeDtypeStruct((width,), jnp.float32)
        physics, position, values = jax.pure_callback(
            self._host_step,
            (self._physics, self._position, values),
            state.physics,
            state.position,
            jnp.asarray(action, jnp.float32),
            vmap_method="broadcast_all",
        )
        observation = values[: self.observation_size]
        reward, terminated, *rest = values[self.observation_size :]
        info = dict(zip(self.task.info, rest, strict=True))
        return (
            physics,
            position,
            {
                "observation": observation,
                "reward": reward,
                "terminated": terminated > 0,
                "info": info,
            },
        )

    # ----------------------------------------- on the host: NumPy only, no JAX calls

    def _host_reset(self, qpos: Any, qvel: Any) -> tuple[np.ndarray, ...]:
        qpos, qvel = np.asarray(qpos, np.float64), np.asarray(qvel, np.float64)
        lead = qpos.shape[:-1]
        simulator = self._check_out()
        try:
            physics, position, observation = simulator.reset(
                qpos.reshape(-1, qpos.shape[-1]), qvel.reshape(-1, qvel.shape[-1])
            )
        finally:
            self._idle.put(simulator)
        return (
            bits.pack(physics).reshape(*lead, -1, 2),
            bits.pack(position).reshape(*lead, -1, 2),
            observation.astype(np.float32).reshape(*lead, -1),
        )

    def _host_step(
        self, physics: Any, position: Any, action: Any
    ) -> tuple[np.ndarray, ...]:
        action = np.asarray(action)
        lead = action.shape[:-1]
        rows = bits.unpack(np.asarray(physics)).reshape(-1, self._physics.shape[0])
        before = bits.unpack(np.asarray(position)).reshape(-1, self._position.shape[0])
        simulator = self._check_out()
        try:
            rows, before, values = simulator.step(
                rows, before, action.reshape(-1, action.shape[-1])
            )
        finally:
            self._idle.put(simulator)
        return (
            bits.pack(rows).reshape(*lead, -1, 2),
            bits.pack(before).reshape(*lead, -1, 2),
            values.reshape(*lead, -1),
        )

    def _check_out(self) -> Simulator:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return Simulator(self.task, self.context, self.threads)

    # ----------------------------------------------------------------------- render

    def render(self, state: State, **options: Any) -> np.ndarray:
        """Draw one concrete state as `uint8[H, W, 3]`, without GPU or display."""
        from envs.mujoco import draw

        nq = self.context.model.nq
        qpos = bits.unpack(np.asarray(state.physics))[1 : 1 + nq]
        return draw.render(self.context.model, qpos, **self.task.camera, **options)
