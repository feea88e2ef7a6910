"""Films and strips of pictures from frames `uint8[H, W, 3]`."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from rlx import files
from rlx.cli.errors import UsageError

_STRIP = 6
"""Pictures in a strip."""


def check(path: Path) -> None:
    """Refuse a file that could not be written, before the work is done.

    Raises:
      UsageError: an unknown ending, or MP4 without its library.
    """
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(f"--out {path}: films end in .gif or .mp4")
    if path.suffix.lower() == ".mp4" and not importlib.util.find_spec("imageio_ffmpeg"):
        raise UsageError(f"--out {path}: MP4 needs a library, pip install 'rlx[video]'")


def select(states: int, frequency: float, fps: int, seconds: float) -> list[int]:
    """Return which states to show so that the film runs in real time.

    Args:
      states: how many there are.
      frequency: states per second of simulated time.
      fps: frames per second of film; never more than there are states.
      seconds: longest film; 0 for no limit.
    """
    stride = max(frequency / fps, 1.0)
    count = int((states - 1) / stride + 1e-9) + 1
    if seconds > 0:
        count = min(count, max(1, round(seconds * fps)))
    return [round(index * stride) for index in range(count)]


def write(frames: Sequence[np.ndarray], path: Path, fps: int) -> None:
    """Write a film, whole or not at all."""
    with files.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        _write_mp4(frames, path, fps)
    else:
        files.replace(path, _gif(frames, fps))


def write_strip(
    frames: Sequence[np.ndarray], times: Sequence[float], path: Path
) -> None:
    """Write pictures spread evenly over an episode side by side, with their times."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, _STRIP).round().astype(int))
    height, width = frames[0].shape[:2]
    gap = max(2, width // 60)
    strip = Image.new("RGB", (len(chosen) * (width + gap) - gap, height), "white")
    pen = ImageDraw.Draw(strip)
    for place, index in enumerate(chosen):
        left = place * (width + gap)
        strip.paste(Image.fromarray(frames[index]), (left, 0))
        position, text = (left + width // 30, height // 30), f"{times[index]:.2f} s"
        pen.text(position, text, fill="#222222", font_size=max(10, height // 18))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    files.replace(path, buffer.getvalue())


def _gif(frames: Sequence[np.ndarray], fps: int) -> bytes:
    # One palette for all frames: per-frame palettes flicker, and double the file.
    sample = np.concatenate([frames[i] for i in {0, len(frames) // 2, len(frames) - 1}])
    palette = Image.fromarray(sample).quantize(255, Image.Quantize.MEDIANCUT)
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, round(100 / fps) * 10),  # GIF counts hundredths of a second
        loop=0,
    )
    return buffer.getvalue()


def _write_mp4(frames: Sequence[np.ndarray], path: Path, fps: int) -> None:
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    temporary = path.with_name(f".{path.stem}.tmp.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(temporary), (width, height), fps=fps, macro_block_size=2
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    with files.explained(path):
        temporary.replace(path)
