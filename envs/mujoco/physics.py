"""Host side of the native engine: one simulator steps a batch of MuJoCo states."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from envs.mujoco.model import import_mujoco
from envs.mujoco.task import Context, Physics, Task


class _Buffers(NamedTuple):
    """A `mujoco.batch.Batch` and live views of its rows."""

    batch: Any
    head: np.ndarray
    """`float64[B, n]` the part of the state that the caller carries."""
    ctrl: np.ndarray
    warning: np.ndarray
    """`int32[B, 3]` how often positions, velocities or accelerations went bad."""
    physics: Physics


class Simulator:
    """Steps batches of states of one task; used by one thread at a time.

    Nothing is kept between calls but buffers, for the last few batch sizes.
    """

    def __init__(self, task: Task, context: Context, threads: int):
        self._task = task
        self._context = context
        self._threads = threads
        self._buffers: dict[int, _Buffers] = {}

    def _get(self, size: int) -> _Buffers:
        if size not in self._buffers:
            if len(self._buffers) >= 4:  # training and evaluation need two
                self._buffers.pop(next(iter(self._buffers)))
            self._buffers[size] = self._make(size)
        return self._buffers[size]

    def _make(self, size: int) -> _Buffers:
        mujoco, model = import_mujoco(), self._context.model
        batch = mujoco.batch.Batch(model, size, min(self._threads, size))
        batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        state, warning = mujoco.mjtState, mujoco.mjtWarning
        head = mujoco.mj_stateSize(
            model,
            state.mjSTATE_TIME.value
            | state.mjSTATE_QPOS.value
            | state.mjSTATE_QVEL.value
            | state.mjSTATE_ACT.value
            | state.mjSTATE_HISTORY.value
            | state.mjSTATE_WARMSTART.value,
        )
        first, last = warning.mjWARN_BADQPOS.value, warning.mjWARN_BADQACC.value
        names = ("qpos", "qvel", *self._task.fields)
        return _Buffers(
            batch=batch,
            head=batch.state[:, :head],
            ctrl=batch.bind("ctrl"),
            warning=batch.warning[:, first : last + 1, 1],
            physics=Physics(**{name: batch.bind(name) for name in names}),
        )

    def reset(
        self, qpos: np.ndarray, qvel: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `(physics [B, n], position [B, P], observation [B, O])`, float64."""
        task, c = self._task, self._context
        buffers = self._get(len(qpos))
        p = buffers.physics
        buffers.head[:] = 0
        buffers.ctrl[:] = 0
        p.qpos[:], p.qvel[:] = qpos, qvel
        buffers.batch.forward()
        return buffers.head.copy(), task.position(c, p).copy(), task.observe(c, p)

    def step(
        self, physics: np.ndarray, position: np.ndarray, action: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Advance every row by one control step.

        Args:
          physics: `float64[B, n]`.
          position: `float64[B, P]`.
          action: `float32[B, A]`.

        Returns:
          `(physics, position, values)`: values are `float32[B, O + 2 + I]`, the
          observation, the reward, terminated (0 or 1) and the task's info.
        """
        task, c = self._task, self._context
        buffers = self._get(len(physics))
        head, p = buffers.head, buffers.physics
        sane = np.isfinite(physics).all(-1) & np.isfinite(action).all(-1)
        head[:] = physics
        buffers.ctrl[:] = action
        buffers.warning[:] = 0
        buffers.batch.step(None if sane.all() else sane, nstep=task.frame_skip)
        sane &= np.isfinite(head).all(-1) & ~buffers.warning.any(-1)
        with np.errstate(all="ignore"):  # rows that diverged are overwritten below
            observation = task.observe(c, p)
            reward, terminated, info = task.outcome(c, position, p, action)
            position = task.position(c, p)
        size = observation.shape[-1]
        values = np.empty((len(head), size + 2 + len(task.info)), np.float32)
        values[:, :size] = observation
        values[:, size], values[:, size + 1] = reward, terminated
        for i, name in enumerate(task.info, size + 2):
            values[:, i] = info[name]
        return _blank(~sane, head, position, values, terminated=size + 1)


def _blank(
    bad: np.ndarray, *arrays: np.ndarray, terminated: int
) -> tuple[np.ndarray, ...]:
    """Copy the arrays; NaN in the rows that are `bad`, which also end the episode."""
    arrays = tuple(array.copy() for array in arrays)
    if bad.any():
        for array in arrays:
            array[bad] = np.nan
        arrays[-1][bad, terminated] = 1
    return arrays
