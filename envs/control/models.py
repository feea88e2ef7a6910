"""The robots as tables of links, and the MJCF text that MuJoCo compiles from them.

Every number is that of the DeepMind Control suite's planar walker and cheetah (Tassa et
al. 2018, https://arxiv.org/abs/1801.00690; `walker.xml`, `cheetah.xml` of dm_control):
lengths, densities, gears, limits, springs, friction and time steps, in SI units with
angles in degrees. Links are capsules that move in the plane of x and z.
"""

from __future__ import annotations

import math
from typing import NamedTuple

Point = tuple[float, float, float]
_ORIGIN = (0.0, 0.0, 0.0)


class Capsule(NamedTuple):
    """The shape of a link, in the link's own frame."""

    radius: float
    half_length: float
    centre: Point = _ORIGIN
    pitch: float = 0.0
    """From the z axis towards the x axis."""

    @property
    def volume(self) -> float:
        """Cubic metres."""
        return math.pi * self.radius**2 * (2 * self.half_length + self.radius * 4 / 3)


class Hinge(NamedTuple):
    """How a link turns, and the motor that turns it."""

    low: float
    high: float
    gear: float
    """Newton metres of a control of 1."""
    anchor: Point = _ORIGIN
    damping: float = 0.1
    stiffness: float = 0.0


class Link(NamedTuple):
    """A link that hangs on another by a hinge."""

    name: str
    place: Point
    """Of its frame, in the frame of the link it hangs on."""
    shape: Capsule
    hinge: Hinge
    links: tuple[Link, ...] = ()
    """What hangs on it."""

    @property
    def shapes(self) -> list[Capsule]:
        """Its own capsule, and those of what hangs on it."""
        return [self.shape, *(shape for link in self.links for shape in link.shapes)]


class Robot(NamedTuple):
    """A torso that moves freely in its plane, and what hangs on it."""

    height: float
    """Of the torso's frame where all joints are at 0."""
    torso: tuple[Capsule, ...]
    links: tuple[Link, ...]
    slides: str
    """The root's two slides, in the order of the joint positions."""
    time_step: float
    joint: str
    """Attributes of all hinges."""
    friction: str
    """Sliding, torsional and rolling, of all links."""
    floor_friction: str
    """MuJoCo takes the greater of the floor's and a link's, each."""
    links_touch: bool
    """Whether links touch each other, and not the floor alone."""
    colour: str
    total_mass: float | None = None
    """Kilograms; None for the density of water."""

    @property
    def density(self) -> float:
        """Kilograms in a cubic metre, the same in all links."""
        if self.total_mass is None:
            return 1000.0
        return self.total_mass / sum(shape.volume for shape in self.shapes)

    @property
    def shapes(self) -> list[Capsule]:
        """Every capsule of the robot."""
        return [*self.torso, *(shape for link in self.links for shape in link.shapes)]


def _leg(side: str, y: float) -> Link:
    foot = Link(
        f"{side}_foot",
        (0.06, 0, -0.25),
        Capsule(0.05, 0.1, pitch=90),
        Hinge(-45, 45, gear=20, anchor=(-0.06, 0, 0)),
    )
    leg = Link(
        f"{side}_leg",
        (0, 0, -0.7),
        Capsule(0.04, 0.25),
        Hinge(-150, 0, gear=50, anchor=(0, 0, 0.25)),
        (foot,),
    )
    thigh = Capsule(0.05, 0.225, centre=(0, 0, -0.225))
    return Link(f"{side}_thigh", (0, y, -0.3), thigh, Hinge(-20, 100, gear=100), (leg,))


WALKER = Robot(
    height=1.3,
    torso=(Capsule(0.07, 0.3),),
    links=(_leg("right", -0.05), _leg("left", 0.05)),
    slides="zx",
    time_step=0.0025,
    joint='axis="0 -1 0" armature="0.01" solimplimit="0 .99 .01"',
    friction=".7 .1 .1",
    floor_friction=".7 .1 .1",
    links_touch=False,
    colour="0.85 0.55 0.3 1",
)

_RADIUS = 0.046
_BACK = Link(
    "back_thigh",
    (-0.5, 0, 0),
    Capsule(_RADIUS, 0.145, (0.1, 0, -0.13), pitch=-218),
    Hinge(-30, 60, gear=120, damping=6, stiffness=240),
    (
        Link(
            "back_shin",
            (0.16, 0, -0.25),
            Capsule(_RADIUS, 0.15, (-0.14, 0, -0.07), pitch=-116),
            Hinge(-50, 50, gear=90, damping=4.5, stiffness=180),
            (
                Link(
                    "back_foot",
                    (-0.28, 0, -0.14),
                    Capsule(_RADIUS, 0.094, (0.03, 0, -0.097), pitch=-15),
                    Hinge(-230, 50, gear=60, damping=3, stiffness=120),
                ),
            ),
        ),
    ),
)
_FRONT = Link(
    "front_thigh",
    (0.5, 0, 0),
    Capsule(_RADIUS, 0.133, (-0.07, 0, -0.12), pitch=30),
    Hinge(-57, 0.4, gear=90, damping=4.5, stiffness=180),
    (
        Link(
            "front_shin",
            (-0.14, 0, -0.24),
            Capsule(_RADIUS, 0.106, (0.065, 0, -0.09), pitch=-34),
            Hinge(-70, 50, gear=60, damping=3, stiffness=120),
            (
                Link(
                    "front_foot",
                    (0.13, 0, -0.18),
                    Capsule(_RADIUS, 0.07, (0.045, 0, -0.07), pitch=-34),
                    Hinge(-28, 28, gear=30, damping=1.5, stiffness=60),
                ),
            ),
        ),
    ),
)
CHEETAH = Robot(
    height=0.7,
    torso=(
        Capsule(_RADIUS, 0.5, pitch=-90),
        Capsule(_RADIUS, 0.15, (0.6, 0, 0.1), pitch=50),
    ),
    links=(_BACK, _FRONT),
    slides="xz",
    time_step=0.01,
    joint='axis="0 1 0" armature=".1"',
    friction=".4 .1 .1",
    floor_friction="1 .005 .0001",
    links_touch=True,
    colour="0.8 0.6 0.35 1",
    total_mass=14,
)


def mjcf(robot: Robot) -> str:
    """Return the text of the robot on a level floor, motors in the links' order."""
    axes = {"x": "1 0 0", "z": "0 0 1"}
    slides = "".join(
        f'<joint name="root{axis}" type="slide" axis="{axes[axis]}"/>'
        for axis in robot.slides
    )
    torso = "".join(_geom(robot, shape) for shape in robot.torso)
    return f"""<mujoco>
  <option timestep="{robot.time_step}"/>
  <worldbody>
    <geom type="plane" size="0 0 1" friction="{robot.floor_friction}"/>
    <body name="torso" pos="0 0 {robot.height}">
      {slides}<joint name="rooty" axis="0 1 0"/>{torso}
      {"".join(_body(robot, link) for link in robot.links)}
    </body>
  </worldbody>
  <actuator>{"".join(_motors(link) for link in robot.links)}</actuator>
</mujoco>"""


def _body(robot: Robot, link: Link) -> str:
    h = link.hinge
    return f"""<body name="{link.name}" pos="{_words(link.place)}">
      <joint name="{link.name}" range="{h.low} {h.high}" pos="{_words(h.anchor)}"
        limited="true" damping="{h.damping}" stiffness="{h.stiffness}" {robot.joint}/>
      {_geom(robot, link.shape)}
      {"".join(_body(robot, below) for below in link.links)}
    </body>"""


def _geom(robot: Robot, shape: Capsule) -> str:
    return (
        f'<geom type="capsule" size="{shape.radius} {shape.half_length}" '
        f'pos="{_words(shape.centre)}" euler="0 {shape.pitch} 0" '
        f'rgba="{robot.colour}" density="{robot.density}" friction="{robot.friction}" '
        f'contype="1" conaffinity="{int(robot.links_touch)}"/>'
    )


def _motors(link: Link) -> str:
    below = "".join(_motors(other) for other in link.links)
    return (
        f'<motor joint="{link.name}" gear="{link.hinge.gear}" '
        f'ctrllimited="true" ctrlrange="-1 1"/>{below}'
    )


def _words(point: Point) -> str:
    return " ".join(str(x) for x in point)
