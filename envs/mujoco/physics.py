"""Host side of the native engine: one simulator steps a batch of MuJoCo states."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from envs.mujoco.datapool import DataPool
from envs.mujoco.model import import_mujoco
from envs.mujoco.task import Context, Physics, Task


class _Buffers(NamedTuple):
    """A `mujoco.batch.Batch` or a `DataPool`, and live views of its rows."""

    batch: Any
    head: np.ndarray
    """`float64[B, n]` the part of the state that the caller carries."""
    ctrl: np.ndarray
    warning: np.ndarray
    """`int32[B, 3]` how often positions, velocities or accelerations went bad."""
    physics: Physics


def head_size(model: Any) -> int:
    """Return how many numbers of `mjSTATE_INTEGRATION` a state carries.

    They are its head: time, positions, velocities, activations, history, warm start.
    What follows (controls, applied forces, mocap bodies) is an input, or constant.
    """
    mujoco = import_mujoco()
    last = mujoco.mjtState.mjSTATE_WARMSTART.value  # components lie in order of bits
    return mujoco.mj_stateSize(model, 2 * last - 1)


class Simulator:
    """Steps batches of states of one task; used by one thread at a time.

    Nothing is kept between calls but buffers, for the last few batch sizes.
    """

    def __init__(self, task: Task, context: Context, threads: int):
        self._task = task
        self._context = context
        self._threads = threads
        self._buffers: dict[int, _Buffers] = {}
        self._head = head_size(context.model)

    def _get(self, size: int) -> _Buffers:
        if size not in self._buffers:
            if len(self._buffers) >= 4:  # training and evaluation need two
                self._buffers.pop(next(iter(self._buffers)))
            self._buffers[size] = self._make(size)
        return self._buffers[size]

    def _make(self, size: int) -> _Buffers:
        mujoco, model = import_mujoco(), self._context.model
        threads, fields = min(self._threads, size), self._task.fields
        if self._task.contact_forces:
            batch = DataPool(model, size, threads, fields)
        else:
            batch = mujoco.batch.Batch(model, size, threads)
            batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        warning = mujoco.mjtWarning
        first, last = warning.mjWARN_BADQPOS.value, warning.mjWARN_BADQACC.value
        names = ("qpos", "qvel", *fields)
        return _Buffers(
            batch=batch,
            head=batch.state[:, : self._head],
            ctrl=batch.bind("ctrl"),
            warning=batch.warning[:, first : last + 1, 1],
            physics=Physics(**{name: batch.bind(name) for name in names}),
        )

    def reset(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `(rows, observation)`, float64 `[B, n + P]` and float32 `[B, O]`.

        A row is the head of the integration state, then the task's position.

        Args:
          draws: `float32[B, D]`, from the task's `draw`.
        """
        task, c = self._task, self._context
        qpos, qvel = task.start(c, draws.astype(np.float64))
        # Time, activations and the warm start are zero, as `mj_resetData` leaves them.
        head = np.zeros((len(draws), self._head))
        head[:, 1 : 1 + c.model.nq] = qpos
        head[:, 1 + c.model.nq :][:, : c.model.nv] = qvel
        p = self._after_reset(qpos, qvel)
        if p is None:
            buffers = self._get(len(draws))
            buffers.head[:], buffers.ctrl[:] = head, 0
            if task.settle:
                buffers.batch.step(None, nstep=task.settle)
                head = buffers.head.copy()
                head[:, 0] = 0
            else:
                buffers.batch.forward()
            p = buffers.physics
        rows = np.concatenate([head, task.position(c, p)], axis=-1)
        return rows, task.observe(c, p).astype(np.float32)

    def _after_reset(self, qpos: np.ndarray, qvel: np.ndarray) -> Physics | None:
        """Return what a forward pass would give, where that is known without it."""
        task = self._task
        if task.settle:
            return None
        if not task.fields:
            return Physics(qpos=qpos, qvel=qvel)
        if task.after_reset is None:
            return None
        return task.after_reset(self._context, qpos, qvel)

    def step(
        self, rows: np.ndarray, action: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Advance every row by one control step.

        Args:
          rows: `float64[B, n + P]`, as `reset` gave them.
          action: `float32[B, A]`.

        Returns:
          `(rows, values)`: values are `float32[B, O + 2 + I]`, the observation, the
          reward, terminated (0 or 1) and the task's info. A row that diverged is NaN,
          but for terminated, which is 1.
        """
        task, c = self._task, self._context
        buffers = self._get(len(rows))
        head, p = buffers.head, buffers.physics
        before = rows[:, head.shape[-1] :]
        sane = np.isfinite(rows).all(-1) & np.isfinite(action).all(-1)
        head[:] = rows[:, : head.shape[-1]]
        buffers.ctrl[:] = action
        buffers.warning[:] = 0
        buffers.batch.step(None if sane.all() else sane, nstep=task.frame_skip)
        sane &= np.isfinite(head).all(-1) & ~buffers.warning.any(-1)
        with np.errstate(all="ignore"):  # rows that diverged are overwritten below
            observation = task.observe(c, p)
            reward, terminated, info = task.outcome(c, before, p, action)
            columns = [reward, terminated, *(info[name] for name in task.info)]
            rows = np.concatenate([head, task.position(c, p)], axis=-1)
            size = observation.shape[-1]
            values = np.empty((len(rows), size + len(columns)), np.float32)
            values[:, :size] = observation
            for i, column in enumerate(columns, size):
                values[:, i] = column
        if not sane.all():
            rows[~sane] = np.nan
            values[~sane] = np.nan
            values[~sane, size + 1] = 1
        return rows, values
