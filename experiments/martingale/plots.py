"""Draws the page's figures from `results/*.json`."""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib
import matplotlib.ticker

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

Results = dict[str, Any]
COLOURS = {
    "MSTDE": "#c0392b",
    "ML": "#1f77b4",
    "CLSTD(0)": "#2ca02c",
    "CLSTD(0.5)": "#9467bd",
    "CLSTD(1)": "#ff7f0e",
}


def _finish(figure: Any, path: pathlib.Path) -> None:
    for axis in figure.axes:
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(axis: Any, rows: list[dict[str, Any]], name: str, key: str) -> None:
    chosen = [r for r in rows if r["estimator"] == name]
    steps = [1 / r["steps"] for r in chosen]
    axis.plot(steps, [r[key] for r in chosen], "o-", color=COLOURS[name], label=name)


def bias(results: Results, folder: pathlib.Path) -> None:
    """Parameters of the Brownian example against the mesh; errors of the LQ value."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    rows = results["accuracy"]["brownian"]
    limit = results["quadratic_variation"]["mstde_limit"]
    for name in ("MSTDE", "ML", "CLSTD(0)"):
        chosen = [r for r in rows if r["estimator"] == name]
        steps = np.array([1 / r["steps"] for r in chosen])
        for i, axis in enumerate(axes[:2]):
            mean = [r["params"][i] for r in chosen]
            spread = [r["params_spread"][i] for r in chosen]
            axis.errorbar(
                steps,
                mean,
                spread,
                fmt="o-",
                color=COLOURS[name],
                label=name,
                capsize=2,
            )
    for i, (axis, truth) in enumerate(zip(axes[:2], (1.0, 0.5), strict=True)):
        axis.axhline(truth, color="black", lw=0.8, label="truth")
        wrong = limit[f"theta{i + 1}"]
        axis.axhline(
            wrong, color=COLOURS["MSTDE"], ls=":", label="predicted wrong limit"
        )
        axis.set(xscale="log", xlabel="Δt", title=f"Brownian example: θ{i + 1}")
    axes[0].legend(fontsize=7)
    for name in ("MSTDE", "ML", "CLSTD(0)"):
        rows = results["accuracy"]["linear_quadratic"]
        _curve(axes[2], rows, name, "path_error")
    axes[2].axhline(0.02, color="grey", ls="--", lw=0.8, label="2 %")
    axes[2].set(xscale="log", yscale="log", xlabel="Δt")
    axes[2].set_title("Linear-quadratic: error along paths")
    axes[2].legend(fontsize=7)
    _finish(figure, folder / "bias.png")


def order(results: Results, folder: pathlib.Path) -> None:
    """Differences of successive meshes with the fitted order; quadratic variation."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    styles = {"left": "o-", "trapezoid": "s--"}
    for row in results["order"]:
        if row["estimator"] != "CLSTD(0)":
            continue
        steps = 1 / np.array(row["steps"][:-1])
        label = "{problem}, {scheme}, {quadrature}: {order:.2f}".format(**row)
        axes[0].plot(steps, row["differences"], styles[row["quadrature"]], label=label)
    axes[0].set(xscale="log", yscale="log", xlabel="Δt")
    axes[0].set_ylim(top=10 * axes[0].get_ylim()[1])
    axes[0].set_title("CLSTD(0): change of J(0, x₀) when Δt halves")
    axes[0].legend(fontsize=6.5, loc="upper left")
    found = results["quadratic_variation"]
    steps = [1 / r["steps"] for r in found["rows"]]
    axes[1].plot(steps, [r["loss"] for r in found["rows"]], "o-", label="Δt · MSTDE")
    variation = [r["variation"] for r in found["rows"]]
    axes[1].plot(steps, variation, "s--", label="½ Σ (∂ₓJ)² Δt")
    axes[1].axhline(found["exact"], color="black", lw=0.8, label="limit, exactly 1/3")
    axes[1].set(xscale="log", xlabel="Δt", ylim=(0.25, 0.4))
    axes[1].set_title("At the truth MSTDE is quadratic variation")
    axes[1].legend(fontsize=7)
    _finish(figure, folder / "order.png")


def option(results: Results, folder: pathlib.Path) -> None:
    """Volatility against the mesh; price error when the volatility is misjudged."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
    rows = results["volatility"]
    colours = COLOURS | {"CTD(0)": COLOURS["CLSTD(0)"]}
    for name in ("ML", "CTD(0)", "MSTDE"):
        meshes = [
            r for r in rows if r["estimator"] == name and r["true_volatility"] == 0.3
        ]
        x = [1 / r["steps"] for r in meshes]
        y, e = ([r[k] for r in meshes] for k in ("volatility", "volatility_spread"))
        axes[0].errorbar(x, y, e, fmt="o-", color=colours[name], label=name, capsize=2)
        finest = [r for r in rows if r["estimator"] == name and r["steps"] == 200]
        finest.sort(key=lambda r: r["true_volatility"])
        x = [r["true_volatility"] for r in finest]
        y = [r["relative_error"] for r in finest]
        axes[1].plot(x, y, "o-", color=colours[name], label=name)
    plug = [r["plug_in_error"] for r in finest]
    axes[1].plot(x, np.maximum(plug, 1e-4), "k^:", label="price at assumed σ = 0.3")
    axes[0].axhline(0.3, color="black", lw=0.8)
    axes[0].set(xscale="log", xlabel="Δt", title="Estimated volatility (truth 0.3)")
    axes[1].set(yscale="log", xlabel="true σ", title="Relative error of the price")
    for axis in axes:
        axis.legend(fontsize=7)
    _finish(figure, folder / "option.png")


def beyond(results: Results, folder: pathlib.Path) -> None:
    """Average reward on-line, the pendulum's step size, neural values, control."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7))
    ergodic = results["ergodic"]
    thousands = ergodic["steps"] * ergodic["step_size"] / 1000
    blocks = np.linspace(0, thousands, 50)
    for name, colour in (("theta0", "C0"), ("theta1", "C1"), ("V", "C2")):
        axes[0, 0].plot(blocks, ergodic["trail"][name], color=colour, label=name)
        axes[0, 0].axhline(ergodic["truth"][name], color=colour, ls=":", lw=1)
    axes[0, 0].set(
        xlabel="time / 1000", title="Ergodic LQ, on-line CTD(0) (dotted: truth)"
    )
    pendulum = results["pendulum"]["rows"]
    steps = [r["step_size"] for r in pendulum]
    for name, label in (("ctd", "β per unit of time"), ("naive", "γ per step")):
        first = pendulum[0][name]
        axes[0, 1].plot(steps, [r[name] / first for r in pendulum], "o-", label=label)
    axes[0, 1].set(
        xscale="log", xlabel="Δt", title="Pendulum: value / value at Δt = 0.1"
    )
    neural = results["neural"]
    for name in ("ML", "CTD(0)"):
        errors = neural[name]["errors"]
        x = np.linspace(0, neural["iterations"], len(errors) + 1)[1:]
        axes[1, 0].plot(x, errors, "o-", ms=3, color=None, label=f"neural, {name}")
    axes[1, 0].set(yscale="log", xlabel="iterations", ylabel="relative error")
    axes[1, 0].set_title(
        f"Neural value, LQ control in {neural['dimension']} dimensions"
    )
    control = results["control"]
    for name, style in (("policy_gradient", "-"), ("q_learning", "--")):
        trail = np.array(control[name]["trail"])
        x = np.linspace(0, control["iterations"], len(trail))
        trail[:, 2] = np.exp(trail[:, 2])
        for i, label in enumerate(("slope", "offset", "variance")):
            text = f"{label}, {name.replace('_', ' ')}"
            axes[1, 1].plot(x, trail[:, i], style, color=f"C{i}", label=text)
    for i, best in enumerate(control["optimum"]):
        axes[1, 1].axhline(best, color=f"C{i}", ls=":", lw=1)
    axes[1, 1].set(xlabel="iterations", title="Control: policy (dotted: optimum)")
    axes[1, 1].set_xlim(right=1.5 * control["iterations"])
    for axis in axes.flat:
        axis.legend(fontsize=7, loc="center right")
    _finish(figure, folder / "beyond.png")


def draw(results: Results, folder: pathlib.Path) -> None:
    """All figures whose studies were run, as PNG files in `folder`."""
    for figure in (bias, order, option, beyond):
        try:
            figure(results, folder)
        except KeyError as missing:
            print(f"no {figure.__name__}.png: the study {missing} was not run")
