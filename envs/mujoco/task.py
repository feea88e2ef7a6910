"""What a MuJoCo task is, whichever engine runs it.

A `Task` is one record: model file, frame skip, and a few functions of arrays. They
receive a `Context` (constants and the array namespace: NumPy on the native engine,
`jax.numpy` elsewhere) and a `Physics` whose arrays have any leading axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from envs.mujoco.naming import check_choice

Physics = SimpleNamespace
"""`qpos [..., nq]`, `qvel [..., nv]` and the derived fields the task asks for.

After a step, derived fields describe the state *before* the last substep, as they do
in Gymnasium, which reads them from MjData without a forward pass.
"""


class Context(NamedTuple):
    """What stays constant while a task runs."""

    option: SimpleNamespace
    """The task's options, all resolved."""
    model: Any
    """The `mujoco.MjModel`."""
    dt: float
    """Seconds of simulated time per environment step."""
    qpos: Any
    """`float64[nq]` the model's initial joint positions."""
    xp: ModuleType
    """Array namespace: `numpy` or `jax.numpy`."""


class Outcome(NamedTuple):
    """What a step earned."""

    reward: Any
    """`[...]`."""
    terminated: Any
    """`[...]` bool."""
    info: Mapping[str, Any]
    """`[...]` each; scalars worth logging, under Gymnasium's names."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One MuJoCo task: everything that an engine must know."""

    name: str
    model_file: str
    """A file among the MuJoCo assets of the gymnasium package, a path, or MJCF text."""
    frame_skip: int
    time_limit: int
    options: Mapping[str, Any]
    """Default of every option."""
    draw: Callable[[Context, Any], Any]
    """`(context, key) -> draws [D]`: the randomness of a reset, in JAX."""
    start: Callable[[Context, Any], tuple[Any, Any]]
    """`(context, draws [..., D]) -> (qpos, qvel)`: the initial state."""
    observe: Callable[[Context, Physics], Any]
    """`(context, physics) -> observation [..., O]`."""
    position: Callable[[Context, Physics], Any]
    """`(context, physics) -> [..., P]`: what velocities are differences of."""
    outcome: Callable[[Context, Any, Physics, Any], Outcome]
    """`(context, position_before [..., P], physics, action [..., A]) -> outcome`."""
    info: tuple[str, ...] = ()
    """Names in `Outcome.info`, in their order."""
    fields: tuple[str, ...] = ()
    """Derived MjData fields that `observe`, `position` or `outcome` read."""
    after_reset: Callable[[Context, Any, Any], Physics | None] | None = None
    """`(context, qpos, qvel) -> physics` of a reset that needs no forward pass.

    None, or a function that returns None: the engine runs MuJoCo's forward pass. Tasks
    without derived fields never need one.
    """
    settle: int = 0
    """Steps of the physics after `start`, without control, before an episode."""
    contact_forces: bool = False
    """Whether Gymnasium calls `mj_rnePostConstraint` for this task's `cfrc_ext`."""
    camera: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Where `render` looks from: see `draw.Camera`."""

    def resolve(self, options: Mapping[str, Any]) -> SimpleNamespace:
        """Return all options, `options` replacing defaults.

        Raises:
          ValueError: an option that the task does not have; names the nearest.
        """
        for name in options:
            check_choice(f"option of {self.name!r}", name, tuple(self.options))
        return SimpleNamespace(**{**self.options, **options})


def joints(c: Context, qpos: Any, qvel: Any, skip: int) -> Any:
    """Positions (without the first `skip`, unless asked for) and velocities."""
    if c.option.exclude_current_positions_from_observation:
        qpos = qpos[..., skip:]
    return c.xp.concatenate([qpos, qvel], axis=-1)


def within(value: Any, bounds: tuple[float, float]) -> Any:
    """Whether `value` lies strictly between the bounds, elementwise."""
    return (bounds[0] < value) & (value < bounds[1])


def nowhere(c: Context, p: Physics) -> Any:
    """Return an empty position, for tasks whose reward contains no velocity."""
    return p.qpos[..., :0]
