"""Pictures of the classic probes: flat shapes, drawn larger and then averaged.

Host code: one concrete state at a time, without a display.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.probe import classic

WIDTH, HEIGHT = 480, 360
_SAMPLES = 3  # per pixel and axis
_SKY, _GROUND, _LINE = "#e3eaf1", "#b9c4cf", "#8d9aa8"
_BODY, _DARK, _POLE, _GOAL = "#3b6ea5", "#26303a", "#d9822b", "#9fb4c7"


class Canvas:
    """A picture in metres: x to the right, y up, (0, 0) where one says."""

    def __init__(self, size: tuple[int, int], metres: float, floor: float) -> None:
        """Begin with an empty sky.

        Args:
          size: pixels, width and height.
          metres: what the width shows, (0, 0) in its middle.
          floor: the lower edge is so many metres below (0, 0).
        """
        from PIL import Image, ImageDraw

        self.size, self.box = size, Image.Resampling.BOX
        self.scale = _SAMPLES * size[0] / metres
        self.middle, self.bottom = _SAMPLES * size[0] / 2, _SAMPLES * size[1]
        self.floor = floor
        large = (_SAMPLES * size[0], _SAMPLES * size[1])
        self.picture = Image.new("RGB", large, _SKY)
        self.pen = ImageDraw.Draw(self.picture)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (
            self.middle + x * self.scale,
            self.bottom - (y + self.floor) * self.scale,
        )

    def box_at(self, x: float, y: float, half: tuple[float, float], fill: str) -> None:
        """A rectangle around (x, y), upright."""
        left, top = self._at(x - half[0], y + half[1])
        right, bottom = self._at(x + half[0], y - half[1])
        self.pen.rectangle((left, top, right, bottom), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: str) -> None:
        """A disc around (x, y)."""
        left, top = self._at(x - radius, y + radius)
        right, bottom = self._at(x + radius, y - radius)
        self.pen.ellipse((left, top, right, bottom), fill=fill)

    def ring(self, x: float, y: float, radius: float, fill: str) -> None:
        """A thin circle around (x, y)."""
        left, top = self._at(x - radius, y + radius)
        right, bottom = self._at(x + radius, y - radius)
        self.pen.ellipse((left, top, right, bottom), outline=fill, width=_SAMPLES)

    def rod(
        self, start: tuple[float, float], angle: float, length: float, fill: str
    ) -> tuple[float, float]:
        """A rod with round ends from `start`, `angle` to the right of upright.

        Returns:
          Where it ends.
        """
        radius = 0.05 * length
        end = (start[0] + length * np.sin(angle), start[1] + length * np.cos(angle))
        across = radius * np.array([np.cos(angle), -np.sin(angle)])
        corners = [start + across, end + across, end - across, start - across]
        self.pen.polygon([self._at(*corner) for corner in corners], fill=fill)
        for x, y in (start, end):
            self.disc(x, y, radius, fill)
        return end

    def image(self) -> np.ndarray:
        """`uint8[H, W, 3]`."""
        return np.asarray(self.picture.resize(self.size, self.box))


def pendulum(state: Any, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """The pendulum in front of the circle that it can reach, the goal at its top.

    As in Gymnasium, a positive angle leans to the left. A state that is not finite is
    drawn as an empty scene.

    Args:
      state: a `PendulumState`.
      width: pixels.
      height: pixels.

    Returns:
      `uint8[height, width, 3]`.
    """
    canvas = Canvas((width, height), 2.6 * width / height, floor=1.3)
    canvas.ring(0, 0, 1.0, _GOAL)
    canvas.disc(0, 1.0, 0.06, _GOAL)
    angle = float(state.angle)
    if np.isfinite(angle):
        tip = canvas.rod((0.0, 0.0), -angle, 1.0, _POLE)
        canvas.disc(*tip, 0.1, _BODY)
    canvas.disc(0, 0, 0.07, _DARK)
    return canvas.image()


def button(state: Any, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """The arm and its button, which darkens as it is pressed.

    A state that is not finite is drawn without an arm.

    Args:
      state: a `ButtonState`.
      width: pixels.
      height: pixels.

    Returns:
      `uint8[height, width, 3]`.
    """
    canvas = Canvas((width, height), 2.6 * width / height, floor=1.3)
    along = np.cumsum(np.asarray(state.angle, np.float64))
    x, y = (float(value) for value in np.asarray(state.button))
    pressed = float(state.depth) > 0
    canvas.disc(x, y, 0.05, _DARK if pressed else _GOAL)
    if np.all(np.isfinite(along)):
        joint = (0.0, 0.0)
        for angle in along:
            # `rod` counts from upright, clockwise: its angle is 90 degrees less ours.
            joint = canvas.rod(joint, np.pi / 2 - float(angle), 0.5, _POLE)
        canvas.disc(*joint, 0.04, _BODY)
    canvas.disc(0, 0, 0.07, _DARK)
    return canvas.image()


def cartpole(state: Any, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """The cart on its track between the two limits; positive angles lean right.

    A state that is not finite is drawn as an empty track.

    Args:
      state: a `CartPoleState`.
      width: pixels.
      height: pixels.

    Returns:
      `uint8[height, width, 3]`.
    """
    limit, wheel = classic.POSITION_LIMIT, 0.09
    canvas = Canvas((width, height), 2 * limit + 0.8, floor=1.2)
    canvas.box_at(0, -0.7, (limit + 0.4, 0.5), _GROUND)
    canvas.box_at(0, -0.2, (limit + 0.4, 0.02), _LINE)
    for end in (-limit, limit):
        canvas.box_at(end, -0.08, (0.03, 0.12), _DARK)
    position, _, angle, _ = np.asarray(state.physics, float)
    if np.isfinite(position) and np.isfinite(angle):
        canvas.box_at(position, 0.0, (0.32, 0.11), _BODY)
        for side in (-0.18, 0.18):
            canvas.disc(position + side, wheel - 0.2, wheel, _DARK)
        top = (position, 0.08)
        canvas.rod(top, angle, 2 * classic.HALF_POLE, _POLE)
        canvas.disc(*top, 0.04, _DARK)
    return canvas.image()
