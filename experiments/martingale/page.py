"""Writes the page: `python -m experiments.martingale.page`.

Reads `results/*.json`, draws `results/*.png` and fills `page.template.md` into
`README.md`: no number of the page is typed by hand.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.martingale import plots

HERE = pathlib.Path(__file__).parent
NAMES = (
    "accuracy",
    "order",
    "quadratic_variation",
    "volatility",
    "approximation",
    "ergodic",
    "pendulum",
    "neural",
    "control",
    "speed",
)
TITLES = {
    "brownian": "Brownian, r = x²",
    "linear_quadratic": "LQ (OU), finite horizon",
    "linear_quadratic_misspecified": "LQ, family too small",
    "infinite_horizon": "LQ (OU), infinite horizon",
    "control_2d": "LQ control, 2-d, optimal policy",
    "mean_variance": "mean-variance, Sharpe ratio 0.4",
    "mean_variance_published": "mean-variance, Sharpe ratio 1.4",
    "option": "call option",
    "basket_3d": "geometric basket call, 3-d",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def vector(values: Sequence[float], digits: int = 3) -> str:
    """`(a, b)` with a fixed number of digits."""
    return "(" + ", ".join(f"{x:.{digits}f}" for x in values) + ")"


def brownian_table(results: dict[str, Any]) -> str:
    """Bias and spread per estimator and mesh."""
    truth = np.array([1.0, 0.5])
    rows = [
        [
            r["estimator"],
            f"1/{r['steps']}",
            vector(r["params"]),
            vector(np.array(r["params"]) - truth),
            vector(r["params_spread"]),
            f"{r['relative_error']:.1%}",
        ]
        for r in results["accuracy"]["brownian"]
    ]
    header = ("estimator", "Δt", "mean θ", "bias", "spread", "error of J(0, x₀)")
    return table(header, rows)


def accuracy_table(results: dict[str, Any]) -> str:
    """All problems at their finest mesh."""
    rows = []
    for name, found in results["accuracy"].items():
        finest = max(r["steps"] for r in found)
        last = {r["estimator"]: r for r in found if r["steps"] == finest}
        first = last["ML"]
        rows.append(
            [
                TITLES[name],
                str(finest),
                f"{first['seeds']} × {first['paths']}",
                f"{first['true_value']:.4f}",
                *(
                    f"{last[k]['relative_error']:.2%} ± "
                    f"{_noise(last[k]):.2%} ({last[k]['path_error']:.1%})"
                    for k in ("ML", "CLSTD(0)", "CLSTD(1)", "MSTDE")
                ),
            ]
        )
    header = ("problem", "steps", "seeds × paths", "J(0, x₀)")
    return table((*header, "ML", "CLSTD(0)", "CLSTD(1)", "MSTDE"), rows)


def _noise(row: dict[str, Any]) -> float:
    return row["value_standard_error"] / abs(row["true_value"])


def worst_error(results: dict[str, Any]) -> str:
    """The largest error of a convergent estimator where the family holds the value."""
    worst, where = 0.0, ""
    for name, found in results["accuracy"].items():
        if "misspecified" in name:
            continue
        finest = max(r["steps"] for r in found)
        for r in found:
            if r["steps"] == finest and r["estimator"] != "MSTDE":
                if r["relative_error"] > worst:
                    worst = r["relative_error"]
                    where = f"{TITLES[name]}, {r['estimator']}"
    return f"{worst:.2%} ({where})"


def order_table(results: dict[str, Any]) -> str:
    """Estimated against theoretical order."""
    rows = [
        [
            r["problem"].replace("_", " "),
            r["scheme"],
            r["quadrature"],
            r["estimator"],
            f"{r['order']:.3f}",
            f"[{r['low']:.3f}, {r['high']:.3f}]",
            str(r["theory"]),
            "yes" if abs(r["order"] - r["theory"]) <= 0.15 else "**no**",
        ]
        for r in results["order"]
    ]
    header = ("problem", "scheme", "quadrature", "estimator", "order")
    return table((*header, "95 % interval", "theory", "within 0.15"), rows)


def variation_table(results: dict[str, Any]) -> str:
    """Δt MSTDE at the truth against half the quadratic variation."""
    rows = [
        [f"1/{r['steps']}", f"{r['loss']:.4f}", f"{r['variation']:.4f}"]
        for r in results["quadratic_variation"]["rows"]
    ]
    return table(("Δt", "Δt · MSTDE(θ*)", "½ Σ (∂ₓJ)² Δt"), rows)


def volatility_table(results: dict[str, Any]) -> str:
    """Volatility and price from paths."""
    rows = [
        [
            f"{r['true_volatility']}",
            f"1/{r['steps']}",
            r["estimator"],
            f"{r['volatility']:.4f} ± {r['volatility_spread']:.4f}",
            f"{r['price']:.4f}",
            f"{r['true_price']:.4f}",
            f"{r['relative_error']:.1%}",
            f"{r['plug_in_error']:.1%}",
        ]
        for r in results["volatility"]
    ]
    header = ("true σ", "Δt", "estimator", "σ found ± spread", "price", "true price")
    return table((*header, "error", "error of assuming σ = 0.3"), rows)


def approximation_table(results: dict[str, Any]) -> str:
    """All algorithms of the method."""
    rows = [
        [
            r["estimator"],
            ", ".join(f"{k} {v}" for k, v in r["settings"].items() if k != "algorithm"),
            vector(r["params"]),
            vector(r["params_spread"]),
            f"{r['relative_error']:.2%} ± {_noise(r):.2%}",
            f"{r['seconds']:.0f}",
        ]
        for r in results["approximation"]
    ]
    header = ("algorithm", "settings", "mean θ", "spread", "error of J(0, x₀)", "s")
    return table(header, rows)


def ergodic_table(results: dict[str, Any]) -> str:
    """On-line average-reward CTD(0)."""
    found = results["ergodic"]
    rows = []
    for name, tolerance in (("theta0", 0.05), ("theta1", 0.05), ("V", 0.02)):
        values, true = np.array(found[name]), found["truth"][name]
        error = values.std(ddof=1) / np.sqrt(len(values))
        rows.append(
            [
                name,
                f"{true:.4f}",
                f"{values.mean():.4f} ± {error:.4f}",
                f"{values.std(ddof=1):.4f}",
                "yes" if abs(values.mean() - true) <= tolerance else "**no**",
                str(tolerance),
            ]
        )
    header = ("", "truth", "mean ± s.e.", "spread", "within", "tolerance")
    return table(header, rows)


def pendulum_table(results: dict[str, Any]) -> str:
    """Values against the step size."""
    rows = [
        [
            f"{r['step_size']}",
            f"{r['ctd']:.5f} ± {r['ctd_spread']:.5f}",
            f"{r['naive']:.3f} ± {r['naive_spread']:.3f}",
        ]
        for r in results["pendulum"]["rows"]
    ]
    return table(("Δt", "CLSTD(0), β fixed", "LSTD, γ fixed per step"), rows)


def control_table(results: dict[str, Any]) -> str:
    """Learned policies."""
    found = results["control"]
    rows = [
        [
            "optimum",
            vector(found["optimum"], 4),
            "",
            f"{found['optimal_reward']:.4f}",
            "",
        ]
    ]
    for name in ("policy_gradient", "q_learning"):
        r = found[name]
        rows.append(
            [
                name.replace("_", " "),
                vector(r["policy"], 4),
                vector(r["policy_spread"], 4),
                f"{r['true_reward']:.4f}",
                f"{r['gap_closed']:.1%}",
            ]
        )
    header = ("", "(slope, offset, variance)", "spread", "exact average reward")
    return table((*header, "of the way from start to optimum"), rows)


def load() -> dict[str, Any]:
    """All results there are; costs and versions are under `records`."""
    records = {}
    for name in NAMES:
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            records[name] = json.loads(path.read_text())
        else:
            print(f"missing: python -m experiments.martingale.run {name}")
    results = {name: record["result"] for name, record in records.items()}
    return results | {"records": records}


def _naive(results: dict[str, Any]) -> dict[str, Any]:
    rows = [r for r in results["accuracy"]["brownian"] if r["estimator"] == "MSTDE"]
    return max(rows, key=lambda r: r["steps"])


def _neural_setting(results: dict[str, Any]) -> str:
    found = results["neural"]
    batches = f"{found['iterations']} batches of {found['paths']} paths"
    return f"{found['dimension']} dimensions, {batches}"


def _control_setting(results: dict[str, Any]) -> str:
    found = results["control"]
    batches = f"{found['iterations']} batches of {found['streams']} streams"
    return f"{batches}, {found['seeds']} seeds"


def _cpu_minutes(results: dict[str, Any]) -> str:
    records = results["records"]
    missing = set(NAMES) - set(records)
    if missing:
        raise KeyError(", ".join(sorted(missing)))
    return f"{sum(r['cpu_seconds'] for r in records.values()) / 60:.0f}"


def _limit(results: dict[str, Any]) -> str:
    return vector(list(results["quadratic_variation"]["mstde_limit"].values()), 4)


VALUES: dict[str, Callable[[dict[str, Any]], str]] = {
    "accuracy_table": accuracy_table,
    "worst_error": worst_error,
    "brownian_table": brownian_table,
    "order_table": order_table,
    "variation_table": variation_table,
    "volatility_table": volatility_table,
    "approximation_table": approximation_table,
    "ergodic_table": ergodic_table,
    "pendulum_table": pendulum_table,
    "control_table": control_table,
    "code_table": lambda r: code_table(),
    "cpu_minutes": _cpu_minutes,
    "limit": _limit,
    "naive": lambda r: vector(_naive(r)["params"], 4),
    "naive_steps": lambda r: str(_naive(r)["steps"]),
    "variation": lambda r: f"{r['quadratic_variation']['exact']:.4f}",
    "ergodic_steps": lambda r: f"{r['ergodic']['steps']:,}",
    "ergodic_seeds": lambda r: str(r["ergodic"]["seeds"]),
    "ergodic_rate": lambda r: str(r["ergodic"]["learning_rate"]),
    "pendulum_ctd": lambda r: f"{r['pendulum']['ctd_variation']:.2%}",
    "pendulum_naive": lambda r: f"{r['pendulum']['naive_ratio']:.1f}",
    "pendulum_truth": lambda r: f"{r['pendulum']['monte_carlo']:.5f}",
    "pendulum_gamma": lambda r: str(r["pendulum"]["step_discount"]),
    "neural_ml": lambda r: f"{np.mean(r['neural']['ML']['final']):.2%}",
    "neural_ctd": lambda r: f"{np.mean(r['neural']['CTD(0)']['final']):.2%}",
    "neural_setting": _neural_setting,
    "control_setting": _control_setting,
    "speed_seconds": lambda r: f"{r['speed']['seconds']:.1f}",
    "speed_first": lambda r: f"{r['speed']['seconds_with_compilation']:.1f}",
    "speed_seeds": lambda r: f"{r['speed']['seeds_per_second']:.0f}",
    "speed_ratio": lambda r: f"{r['speed']['ratio']:.2f}",
    "speed_python": lambda r: f"{r['speed']['ratio_python']:.0f}",
    "speed_single": lambda r: f"{r['speed']['seconds_float32']:.1f}",
    "speed_ratio_single": lambda r: f"{r['speed']['ratio_float32']:.2f}",
}
"""What the template's `{{name}}` stand for."""


def values(results: dict[str, Any]) -> dict[str, str]:
    """All values; where a study has not been run the page says so."""
    filled = {}
    for name, make in VALUES.items():
        try:
            filled[name] = make(results)
        except KeyError as missing:
            filled[name] = f"*(not measured yet: {str(missing).strip(chr(39))})*"
    return filled


EQUATIONS = (
    (
        "dM_i = D_i (e^{-βΔt} J_{i+1} - J_i + r_i Δt)",
        "rlx/ops/martingale.py",
        "error =",
    ),
    ("ML: ½ (M_T - M_i)² Δt", "rlx/ops/martingale.py", "return 0.5 * residual"),
    ("MSTDE: ½ (dM_i / Δt)² Δt", "rlx/ops/martingale.py", "return 0.5 * increment"),
    ("z_i = λ^{Δt} z_{i-1} + w_i ∇J_i", "rlx/ops/martingale.py", "now = decay"),
    ("CTD(λ): θ ← θ + α Σ z_i dM_i", "rlx/ops/martingale.py", "return -jax.lax.stop"),
    ("CLSTD: A = E Σ ξ_i s_iᵀ", "rlx/ops/linear.py", "matrix=jnp.einsum"),
    ("CGTD2: u ← u + α Σ ξ(dM - ξ·u Δt)", "rlx/methods/martingale.py", "fast = per"),
    ("CGTD: θ ← θ - α Σ (ξ·u) ∇dM", "rlx/methods/martingale.py", "return fast + per"),
    ("X_{i+1} = X_i + b Δt + σ ΔW", "envs/diffusion/paths.py", "return state + drift"),
    ("ΔW refined by a Brownian bridge", "envs/diffusion/core.py", "first = column"),
)


def code_table() -> str:
    """Each equation beside the line that computes it, found by its text."""
    rows = []
    for equation, path, start in EQUATIONS:
        lines = (HERE.parents[1] / path).read_text().splitlines()
        found = [i for i, x in enumerate(lines) if x.strip().startswith(start)]
        if not found:
            raise SystemExit(f"{path}: no line starts with {start!r}: mend EQUATIONS")
        code = lines[found[0]].strip().replace("|", "\\|")
        rows.append(
            [equation.replace("|", "\\|"), f"`{code}`", f"{path}:{found[0] + 1}"]
        )
    return table(("equation", "code", "where"), rows)


def main() -> None:
    """Draws the figures and writes the page."""
    results = load()
    plots.draw(results, HERE / "results")
    text = (HERE / "page.template.md").read_text()
    filled = values(results)
    missing = set(re.findall(r"{{(\w+)}}", text)) ^ set(filled)
    if missing:
        raise SystemExit(f"template and values disagree about {sorted(missing)}")
    for name, value in filled.items():
        text = text.replace("{{" + name + "}}", value)
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
