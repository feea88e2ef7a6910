"""Batches for tasks that observe contact forces.

`mujoco.batch.Batch` cannot call `mj_rnePostConstraint` after a step, which Gymnasium
does to fill `cfrc_ext`; a `DataPool` can. It has the part of `Batch`'s interface that
`physics.py` uses, on threads that each own one MjData.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from envs.mujoco.model import import_mujoco


class DataPool:
    """`size` simulations of one model, stepped by `threads` threads.

    Attributes:
      state: `float64[size, n]` integration states, read and written by every call.
      warning: `int32[size, W, 2]` warning counters; column 1 counts.
    """

    def __init__(self, model: Any, size: int, threads: int, fields: Sequence[str]):
        self._mujoco = import_mujoco()
        self._model = model
        self._spec = self._mujoco.mjtState.mjSTATE_INTEGRATION.value
        self._data = [self._mujoco.MjData(model) for _ in range(threads)]
        self._threads = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self.warning = np.zeros(
            (size, self._mujoco.mjtWarning.mjNWARNING.value, 2), np.int32
        )
        template, sizeof = self._data[0], self._mujoco.mj_stateSize
        initial = np.empty(sizeof(model, self._spec))
        self._mujoco.mj_getState(model, template, initial, self._spec)
        self.state = np.tile(initial, (size, 1))
        self._views = {}
        for name in ("qpos", "qvel", "ctrl"):
            bit = getattr(self._mujoco.mjtState, f"mjSTATE_{name.upper()}").value
            start = sizeof(model, bit - 1)  # components lie in the order of their bits
            self._views[name] = self.state[:, start : start + sizeof(model, bit)]
        self._fields = {
            name: np.zeros((size, *getattr(template, name).shape))
            for name in fields
            if name not in self._views
        }

    def bind(self, name: str) -> np.ndarray:
        """Return the live `[size, ...]` array of a state field or a derived field."""
        return self._views[name] if name in self._views else self._fields[name]

    def step(self, mask: np.ndarray | None = None, nstep: int = 1) -> None:
        """Advance the simulations in `mask` (all if None) by `nstep` physics steps."""
        mujoco, model = self._mujoco, self._model

        def advance(data: Any) -> None:
            mujoco.mj_step(model, data, nstep=nstep)
            mujoco.mj_rnePostConstraint(model, data)

        self._each(advance, mask)

    def forward(self) -> None:
        """Compute derived fields of every state, as after `mj_resetData`."""
        mujoco, model = self._mujoco, self._model

        def forward(data: Any) -> None:
            data.cfrc_ext[:] = 0  # what a forward pass leaves alone
            mujoco.mj_forward(model, data)

        self._each(forward, None)

    def _each(self, advance: Callable[[Any], None], mask: np.ndarray | None) -> None:
        todo = range(len(self.state)) if mask is None else np.flatnonzero(mask).tolist()
        rows = iter(todo)  # shared: each thread takes the next row when it is free
        waiting = [
            self._threads.submit(self._run, data, rows, advance)
            for data in self._data[1:]
            if self._threads is not None
        ]
        self._run(self._data[0], rows, advance)
        for future in waiting:
            future.result()

    def _run(
        self, data: Any, rows: Iterator[int], advance: Callable[[Any], None]
    ) -> None:
        mujoco, model, spec = self._mujoco, self._model, self._spec
        fields = [(getattr(data, name), out) for name, out in self._fields.items()]
        counts = data.warning.number
        for row in rows:
            state = self.state[row]
            counts[:] = 0
            mujoco.mj_setState(model, data, state, spec)
            advance(data)
            mujoco.mj_getState(model, data, state, spec)
            for field, out in fields:
                out[row] = field
            self.warning[row, :, 1] = counts
