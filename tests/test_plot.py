from __future__ import annotations

import io
import itertools
import pathlib
import subprocess
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib import colors
from PIL import Image
from scipy import optimize, stats

from rlx import plot
from rlx.ops import statistics
from rlx.record import RunFolder, RunFolderError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def make_result(num_seeds: int = 8, scale: float = 1.0, **fields: Any) -> Any:
    generator = np.random.default_rng(num_seeds)
    steps = np.arange(6) * 1000
    returns = scale * (steps[:, None] / 1000 + generator.normal(size=(6, num_seeds)))
    return types.SimpleNamespace(steps=steps, returns=returns, **fields)


def thick_lines(figure: Any) -> list[Any]:
    return [line for line in figure.axes[0].lines if line.get_linewidth() == 2]


def thin_lines(figure: Any) -> list[Any]:
    return [line for line in figure.axes[0].lines if line.get_linewidth() < 1]


def labels(figure: Any) -> dict[str, Any]:
    return {text.get_text(): text for text in figure.axes[0].texts}


def test_line_band_and_seeds_show_the_numbers() -> None:
    result = make_result()
    figure = plot.curve(result)
    (middle,) = thick_lines(figure)
    np.testing.assert_array_equal(middle.get_xdata(), result.steps)
    expected = stats.trim_mean(result.returns, 0.25, axis=1)
    np.testing.assert_allclose(middle.get_ydata(), expected)
    seeds = np.stack([line.get_ydata() for line in thin_lines(figure)], axis=1)
    np.testing.assert_array_equal(seeds, result.returns)
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices
    for step, row in zip(result.steps, result.returns, strict=True):
        interval = statistics.stratified_bootstrap_interval(
            jax.random.key(0), row[:, None], statistics.iqm, num_resamples=2000
        )
        here = heights[heights[:, 0] == step, 1]
        np.testing.assert_allclose([here.min(), here.max()], interval)
    assert "of 8 seeds with 95 %" in figure.axes[0].get_title(loc="left")


def test_one_seed_is_a_line_alone() -> None:
    result = make_result(1)
    figure = plot.curve(result)
    (middle,) = thick_lines(figure)
    np.testing.assert_array_equal(middle.get_ydata(), result.returns[:, 0])
    assert not thin_lines(figure)
    assert figure.axes[0].get_title(loc="left") == "one seed"


def test_seeds_that_diverged_are_left_out_and_counted() -> None:
    result = make_result(4)
    result.returns[3:, 1] = np.nan
    figure = plot.curve(result)
    (middle,) = thick_lines(figure)
    expected = stats.trim_mean(np.delete(result.returns, 1, axis=1)[-1], 0.25)
    np.testing.assert_allclose(middle.get_ydata()[-1], expected)
    assert "1 ended in NaN" in figure.axes[0].get_title(loc="left")
    result.returns[3:] = np.nan
    (middle,) = thick_lines(plot.curve({"a": result, "b": make_result()}))[:1]
    assert np.isnan(middle.get_ydata()).tolist() == [False] * 3 + [True] * 3


def test_several_runs_are_labelled_in_their_colours() -> None:
    runs = {"mdpo": make_result(8), "ppo": make_result(5, 1.01), "a b": make_result(3)}
    figure = plot.curve(runs)
    lines, names = thick_lines(figure), labels(figure)
    assert list(names) == list(runs)
    assert len({line.get_color() for line in lines}) == 3
    for line, text in zip(lines, names.values(), strict=True):
        brighter = np.array(colors.to_rgb(text.get_color())) / 0.8
        np.testing.assert_allclose(brighter, colors.to_rgb(line.get_color()), atol=0.01)
    heights = sorted(text.xy[1] for text in names.values())
    assert np.diff(heights).min() > 0.0499
    assert "of 3 to 8 seeds" in figure.axes[0].get_title(loc="left")


def test_a_sweep_has_a_line_per_setting() -> None:
    runs = [
        {"seed": seed, "learning_rate": rate}
        for rate in (1e-3, 3e-4)
        for seed in range(3)
    ]
    result = make_result(6, runs=runs, folder=pathlib.Path("runs/sweep"))
    figure = plot.curve(result)
    assert list(labels(figure)) == ["learning_rate 0.001", "learning_rate 0.0003"]
    second = thick_lines(figure)[1]
    expected = stats.trim_mean(result.returns[:, 3:], 0.25, axis=1)
    np.testing.assert_allclose(second.get_ydata(), expected)


def test_colours_and_dashes_never_repeat_together() -> None:
    figure = plot.curve({f"run {i}": make_result(2, i) for i in range(16)})
    looks = {
        (line.get_color(), str(line._unscaled_dash_pattern))
        for line in thick_lines(figure)
    }
    assert len(looks) == 16
    assert not thin_lines(figure)  # too crowded for them


def test_colours_differ_for_the_colour_blind() -> None:
    """Brettel's half planes in their linear form (Vienot et al. 1999)."""
    to_lms = np.array(
        [
            [17.8824, 43.5161, 4.1193],
            [3.4557, 27.1554, 3.8671],
            [0.02996, 0.18431, 1.467],
        ]
    )
    protanope = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    deuteranope = np.array([[1, 0, 0], [0.49421, 0, 1.24827], [0, 0, 1]])
    rgb = np.array([colors.to_rgb(colour) for colour in plot._COLOURS])
    for deficiency in (np.eye(3), protanope, deuteranope):
        seen = rgb**2.2 @ to_lms.T @ deficiency.T @ np.linalg.inv(to_lms).T
        seen = np.clip(seen, 0, 1) ** (1 / 2.2)
        for a, b in itertools.combinations(seen, 2):
            assert np.linalg.norm(a - b) > 0.1


def test_labels_move_as_little_as_needed() -> None:
    generator = np.random.default_rng(0)
    gap = 0.08
    for count in (1, 2, 5, 9):
        heights = generator.uniform(size=count)
        moved = np.array(plot._apart(heights, gap))
        order = np.argsort(heights)
        assert np.all(np.diff(moved[order]) > gap - 1e-9)
        # The same by quadratic programming: x = first + gaps, all gaps large enough.
        steps = np.tril(np.ones((count, count)))
        bounds = [(-np.inf, np.inf)] + [(gap, np.inf)] * (count - 1)
        lower, upper = zip(*bounds, strict=True)
        best = optimize.lsq_linear(steps, heights[order], (lower, upper), tol=1e-12)
        np.testing.assert_allclose(moved[order], steps @ best.x, atol=1e-6)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> RunFolder:
    with RunFolder.create(
        tmp_path / "hopper", {"runs": [{"seed": 0}, {"seed": 1}]}
    ) as f:
        f.append({"step": 0, "return": [1.0, 2.0], "memory_mib": 3.0})
        f.append({"step": 50, "train": {"entropy": [0.5, 0.25]}})
        f.append({"step": 100, "return": [3.0, 5.0], "train": {"entropy": [0.5, 0.1]}})
    return f


def test_a_run_folder_its_path_or_a_list_of_them(folder: RunFolder) -> None:
    for runs in (folder, folder.path, str(folder.path), [folder.path], {"x": folder}):
        (line,) = thick_lines(plot.curve(runs))
        np.testing.assert_array_equal(line.get_xdata(), [0, 100])
        np.testing.assert_array_equal(line.get_ydata(), [1.5, 4.0])
    assert list(labels(plot.curve(folder.path))) == ["hopper"]
    assert list(labels(plot.curve({"x": folder}))) == ["x"]
    entropy = plot.curve(folder, metric="train/entropy")
    np.testing.assert_array_equal(thick_lines(entropy)[0].get_xdata(), [50, 100])
    assert entropy.axes[0].get_ylabel() == "train/entropy"
    (scalar,) = thick_lines(plot.curve(folder, metric="memory_mib"))
    assert scalar.get_ydata() == [3.0]


def test_the_file_is_the_figure(folder: RunFolder, tmp_path: pathlib.Path) -> None:
    figure = plot.curve(folder, tmp_path / "new" / "curve.png")
    image = np.asarray(Image.open(tmp_path / "new" / "curve.png").convert("RGB"))
    assert image.shape == (660, 1080, 3)
    assert (image == 255).all(axis=-1).mean() > 0.5
    blue = np.abs(image.astype(int) - [0x00, 0x72, 0xB2]).sum(axis=-1) < 30
    assert blue.sum() > 500  # the line, two pixels wide and most of the width long
    shown = Image.open(io.BytesIO(figure._repr_png_())).convert("RGB")  # in notebooks
    assert np.mean(np.asarray(shown) != image) < 0.05


def test_bad_input_is_named(folder: RunFolder, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'return'.*train/entropy"):
        plot.curve(folder, metric="returns")
    with pytest.raises(ValueError, match="give at least one run"):
        plot.curve({})
    empty = types.SimpleNamespace(steps=np.zeros(0), returns=np.zeros(0), runs=[])
    with pytest.raises(ValueError, match="never evaluated"):
        plot.curve(empty)
    with RunFolder.create(tmp_path / "new", {}) as new:
        with pytest.raises(ValueError, match="nothing has been recorded"):
            plot.curve(new)
    with pytest.raises(RunFolderError, match="no such run folder; .* has hopper"):
        plot.curve(tmp_path / "hoper")
    with pytest.raises(RunFolderError, match="config.json/curve.png: "):
        plot.curve(folder, folder.path / "config.json" / "curve.png")


def test_pyplot_is_never_touched(tmp_path: pathlib.Path) -> None:
    code = (
        "import sys, types, numpy as np\nfrom rlx import plot\n"
        "assert 'matplotlib' not in sys.modules\n"
        "run = types.SimpleNamespace(steps=np.arange(3), returns=np.ones((3, 2)))\n"
        f"plot.curve(run, {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
