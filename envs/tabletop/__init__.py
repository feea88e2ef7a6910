"""Table-top manipulation: one arm, and things with joints.

`make("button_press")` gives a task in the manner of Meta-World (Yu et al. 2019,
https://arxiv.org/abs/1910.10897) with physics of its own: an arm of four joints with
two jaws, made of primitive shapes, on every engine that `envs.mujoco` has.

    actions [4]      velocity of the fingertips along x, y, z (±1 is 0.4 m/s, in the
                     world's axes, forces up to 40 N); jaws closed at +1, open at -1
    observation [15] fingertips (3), jaws' opening in 0 ... 1, velocity of the
                     fingertips (3), target (3), target - fingertips (3), how much of
                     its way the joint has done (1 at the goal), its speed

Lengths are in metres and seconds; 25 steps are a second and an episode is 100. Rewards
lie in 0 ... 10 and are 10 where the task is solved, as `info["success"]` then says; an
episode goes on after that. The arm starts with its fingertips at (0.42, 0, 0.22), 22 cm
above the table and in front of the arm, whose base is at the origin; other things stand
where a reset draws them, uniformly:

    task           target, at the start      solved where
    reach          (0.5, 0, 0.18)            the fingertips are within 2 cm of it
                     ± (0.1, 0.2, 0.1)
    button_press   (0.591, 0, 0.11)          it is pressed in by 4 of its 5 cm, against
                     ± (0.03, 0.15, 0)       a spring
    drawer_close   (0.445, 0, 0.09)          it stands open by at most 2 cm, of 16
                     ± (0.02, 0.12, 0)
    drawer_open    (0.65, 0, 0.09)           it stands open by at least 13 cm
                     ± (0.02, 0.12, 0)
    door_open      (0.655, -0.07, 0.13)      it stands open by at least 0.95 rad
                     ± (0.02, 0.08, 0)

The fingers close a drawer and press a button from the front; they open things from
behind the handle. Nothing moves but by contact: the hand (jaws, palm and forearm)
touches the table and the things on it, nothing else touches anything. Derived
quantities in an observation are one physics step (5 ms) older than the joint, as in
Gymnasium's MuJoCo tasks.

`scripted.py` solves every task. Importing this package does not import mujoco.
"""

from __future__ import annotations

from typing import Any

from rlx.types import Env


def names() -> list[str]:
    """The names of all tasks."""
    from envs.tabletop.tasks import TASKS

    return sorted(TASKS)


def make(name: str, **options: Any) -> Env:
    """Makes the task called `name`, one of `names()`.

    Args:
      name: for instance `"door_open"`.
      **options: `engine`, `time_limit` and the other settings of `envs.mujoco.make`.

    Raises:
      ValueError: an unknown name or option (the nearest is suggested), or an engine
        that cannot run the task.
    """
    from envs import mujoco
    from envs.mujoco.naming import check_choice
    from envs.tabletop.tasks import TASKS

    check_choice("table-top task", name, TASKS)
    return mujoco.make(TASKS[name], **options)
