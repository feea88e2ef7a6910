"""The MJX engines: the physics inside the compiled program, on any device.

`mjx` is MuJoCo's JAX implementation, in float32. A state is joint positions,
velocities, activations and the solver's warm start, as on the native engine, so that a
step is a function of state and action alone.

Parity, measured on the CPU: from one state, one control step differs from the native
engine's by float32 rounding and by where the solver stops (`tests/envs/test_mjx.py`
states and checks the tolerance of each task). Contacts then amplify the difference as
they do any other. One difference is MJX's own: where a capsule within 30 degrees of
upright touches the floor, it turns the pyramid that stands for the friction cone by
another angle about the contact's normal. Of these tasks Ant alone feels it, in half of
the states of a random policy, where it pushes the legs another way.

Derived fields describe the last evaluation of the dynamics inside the last substep (its
start under Euler integration, its fourth stage under Runge-Kutta), as in MuJoCo's C
code, which Gymnasium reads without a forward pass.

Derivatives: `jax.jvp` and `jax.jacfwd` work for every task. `jax.grad` needs
`solver_iterations=1`, for the solver's loop has no fixed length: one Newton step from
the warm start, which changes contact forces, and minutes of compilation.

`warp` runs the same tasks on MuJoCo Warp's kernels, without derivatives. On a GPU they
add forces in the order in which threads finish, so equal runs need not agree.

A state that is or becomes non-finite, or grows beyond 1e10 as MuJoCo's own check has
it, and a non-finite action, give NaN everywhere, as on the native engine.

Not verified: no accelerator has run this module yet. On an NVIDIA GPU XLA itself is
deterministic only under `XLA_FLAGS=--xla_gpu_deterministic_ops=true`.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.mujoco import common, device, integrate
from envs.mujoco.model import import_mujoco, load
from envs.mujoco.task import Context, Outcome, Physics, Task
from rlx.types import Array, Env, Key, Step

_LARGEST = 1e10  # mjMAXVAL: beyond it MuJoCo calls a state diverged
_FULL_BUFFERS = 0b1111
"""Warp's flags for constraints, their entries, and contacts that found no room."""


class Settings(NamedTuple):
    """What an MJX engine can be told."""

    engine: str = "mjx"
    """`"mjx"` or `"warp"`."""
    solver_iterations: int | None = None
    """Iterations of the constraint solver; None for the model's own limit."""
    max_envs: int = 8192
    """Warp only: environments stepped at once, which sizes its contact buffer."""


@struct.dataclass
class State:
    """Everything that one environment is: arrays, to be saved and loaded whole."""

    qpos: Array
    """`[nq]` joint positions."""
    qvel: Array
    """`[nv]` joint velocities."""
    activation: Array
    """`[na]` of actuators that have any."""
    warm_start: Array
    """`[nv]` accelerations from which the next step's solver starts."""
    position: Array
    """`[P]` the task's position, from which the next step's velocity is measured."""
    step: Array
    """`int32[]` steps since the reset."""


def make(
    task: Task, option: SimpleNamespace, time_limit: int | None, settings: Settings
) -> Env:
    """Return `task` with the resolved options `option` as an `Env`."""
    engine = Engine(task, option, settings)

    def step(state: State, action: Array, key: Any = None) -> tuple[State, Step]:
        """Advance by one control step; the physics is deterministic, no key used."""
        del key
        common.check_action(task, engine.context, action)
        state, result = engine.step(state, jnp.asarray(action, jnp.float32))
        if time_limit is not None:
            result = result.replace(truncated=state.step >= time_limit)
        return state, result

    spec = common.spec(task, engine.context, engine.observation_size, time_limit)
    return Env(engine.reset, step, spec, engine.render)


class Engine:
    """A task with its model on the device."""

    def __init__(self, task: Task, option: SimpleNamespace, settings: Settings):
        self.task = task
        model = load(task.model_file)
        if settings.solver_iterations is not None:
            model.opt.iterations = settings.solver_iterations
        self.context = Context(
            option=option,
            model=model,
            dt=float(model.opt.timestep * task.frame_skip),
            qpos=jnp.asarray(model.qpos0, jnp.float32),
            xp=jnp,
        )
        self._warp = settings.engine == "warp"
        self._library = device.import_mjx()
        self._model, self._data = self._put(model, settings)
        # Compiled once for callers without a jit of their own; inlined into others.
        self.reset = jax.jit(self._reset)
        self.step = jax.jit(self._step)
        shape = jax.eval_shape(self.reset, jax.random.key(0))[1].shape
        self.observation_size = shape[-1]

    def _put(self, model: Any, settings: Settings) -> tuple[Any, Any]:
        """Return the model and the data of an unmoved simulation, on no one device.

        Raises:
          ValueError: MJX lacks something that the task's model needs.
        """
        library, name, sizes = self._library, self.task.name, {}
        implementation = {"mjx": "jax", "warp": "warp"}[settings.engine]
        try:
            with device.quiet():
                if settings.engine == "warp":
                    sizes = device.prepare_for_warp(
                        library, self.task, model, settings.max_envs
                    )
                device_model = library.put_model(model, impl=implementation)
                data = library.make_data(model, impl=implementation, **sizes)
        except NotImplementedError as error:
            raise ValueError(
                f"{name!r} does not run on engine {settings.engine!r}: "
                f"{device.reason(error)}. Use engine='native'."
            ) from error
        # As put there they would belong to the first device alone.
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), (device_model, data))

    # ------------------------------------------------------------- seen by JAX

    def _reset(self, key: Key) -> tuple[State, Array]:
        """Draw an initial state: `(key) -> (state, observation)`."""
        task, c = self.task, self.context
        qpos, qvel = task.start(c, task.draw(c, key))
        data = self._data.replace(qpos=_float(qpos), qvel=_float(qvel))
        data = self._repeat(data, task.settle)
        physics = self._after_reset(data)
        state = State(
            qpos=data.qpos,
            qvel=data.qvel,
            activation=data.act,
            warm_start=data.qacc_warmstart,
            position=_float(task.position(c, physics)),
            step=jnp.int32(0),
        )
        return state, _float(task.observe(c, physics))

    def _after_reset(self, data: Any) -> Physics:
        """Return what describes a state from which an episode begins."""
        if not self.task.fields:
            return Physics(qpos=data.qpos, qvel=data.qvel)
        if self.task.after_reset is not None:
            physics = self.task.after_reset(self.context, data.qpos, data.qvel)
            if physics is not None:
                return physics
        with jax.numpy_rank_promotion("allow"):
            return self._read(self._library.forward(self._model, data))

    def _step(self, state: State, action: Array) -> tuple[State, Step]:
        """Advance every joint, then ask the task what that earned."""
        task, c = self.task, self.context
        sane = _sane(state.qpos, state.qvel, state.warm_start) & _sane(action)
        data = self._advance(state, action, sane)
        sane &= _sane(data.qpos, data.qvel, data.qacc) & ~self._overflowed(data)
        physics = self._read(data)
        outcome = task.outcome(c, state.position, physics, action)
        after = State(
            qpos=data.qpos,
            qvel=data.qvel,
            activation=data.act,
            warm_start=data.qacc_warmstart,
            position=_float(task.position(c, physics)),
            step=state.step,
        )
        after = jax.tree.map(lambda x: _mark(sane, x), after)
        step = self._result(task.observe(c, physics), outcome, sane)
        return after.replace(step=state.step + 1), step

    def _result(self, observation: Array, outcome: Outcome, sane: Array) -> Step:
        return Step(
            observation=_mark(sane, observation),
            reward=_mark(sane, outcome.reward),
            terminated=outcome.terminated | ~sane,
            truncated=jnp.bool_(False),
            info={name: _mark(sane, outcome.info[name]) for name in self.task.info},
        )

    def _advance(self, state: State, action: Array, sane: Array) -> Any:
        """Return the data one control step later; of the initial state if not sane."""
        start = self._data
        data = start.replace(
            qpos=jnp.where(sane, state.qpos, start.qpos),
            qvel=jnp.where(sane, state.qvel, start.qvel),
            act=jnp.where(sane, state.activation, start.act),
            qacc_warmstart=jnp.where(sane, state.warm_start, start.qacc_warmstart),
            ctrl=jnp.where(sane, action, start.ctrl),
        )
        data = self._repeat(data, self.task.frame_skip)
        if self.task.contact_forces:
            with jax.numpy_rank_promotion("allow"):
                data = self._library.rne_postconstraint(self._model, data)
        return data

    def _repeat(self, data: Any, count: int) -> Any:
        """Advance by `count` steps of the physics."""
        if not count:
            return data
        with jax.numpy_rank_promotion("allow"):
            return jax.lax.fori_loop(
                0, count, lambda _, data: self._substep(data), data
            )

    def _substep(self, data: Any) -> Any:
        """Advance by one step of the physics."""
        model = self.context.model
        fourth_order = import_mujoco().mjtIntegrator.mjINT_RK4.value
        if self._warp or model.opt.integrator != fourth_order or model.na:
            return self._library.step(self._model, data)
        forward = functools.partial(self._library.forward, self._model)
        return integrate.runge_kutta(forward, model, data)

    def _overflowed(self, data: Any) -> Array:
        """Whether a buffer was too small for this environment's contacts (warp)."""
        if self._warp:
            return (data._impl.overflow & _FULL_BUFFERS != 0).any()
        return jnp.bool_(False)

    def _read(self, data: Any) -> Physics:
        """Return the fields that the task asks for, wherever MJX keeps them."""
        names = ("qpos", "qvel", *self.task.fields)
        public = {field.name for field in data.fields()}
        return Physics(
            **{
                name: getattr(data if name in public else data._impl, name)
                for name in names
            }
        )

    # ----------------------------------------------------------------------- render

    def render(self, state: State, **options: Any) -> np.ndarray:
        """Draw one concrete state as `uint8[H, W, 3]`, without GPU or display."""
        qpos = np.asarray(state.qpos, np.float64)
        return common.picture(self.task, self.context.model, qpos, **options)


def _sane(*values: Array) -> Array:
    """Whether every number is finite and below MuJoCo's limit."""
    return jnp.stack([jnp.all(jnp.abs(x) < _LARGEST) for x in values]).all()


def _float(value: Any) -> Array:
    return jnp.asarray(value, jnp.float32)


def _mark(sane: Array, value: Any) -> Array:
    """Return `value`, NaN unless `sane`."""
    return jnp.where(sane, _float(value), jnp.nan)
