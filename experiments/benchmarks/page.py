"""Writes the tables of this page: `python -m experiments.benchmarks.page`.

Fills what stands between `<!-- NAME -->` and `<!-- end -->` in `README.md` from
`results/NAME.json`: no figure in a table is typed by hand.
"""

from __future__ import annotations

import json
import pathlib
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

HERE = pathlib.Path(__file__).parent
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Result = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; every column but the first is aligned right."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: float) -> str:
    """A speed with thousands separated."""
    return f"{value:,.0f}"


def ratio(row: Result, pair: str) -> str:
    """Median, and the least and greatest of the repetitions."""
    low, high = row["ratio_range"][pair]
    return f"**{row['ratio'][pair]:.2f}** ({low:.2f} to {high:.2f})"


def races(rows: Iterable[Result], unit: str = "steps") -> str:
    """Rows of ratios `a/b`: one line each."""
    lines = []
    for row in rows:
        name = row.get("row") or f"{row['task']}, {row['num_envs']} environments"
        for pair in row["ratio"]:
            a, b = pair.split("/")
            speeds = row["steps_per_second"]
            lines.append(
                [name.replace("_", " "), b, number(speeds[a]), number(speeds[b])]
                + [ratio(row, pair)]
            )
    head = ["task", "against", f"rlx, {unit}/s", f"peer, {unit}/s", "ratio"]
    return table(head, lines)


def seeds(content: Result) -> str:
    """One line per row, one column per form."""
    forms = ("map", "vmap", "cores", "cores vmap")
    lines = []
    for row in content["rows"]:
        cells = [
            ratio(row, f"{form}/one") if f"{form}/one" in row["ratio"] else ""
            for form in forms
        ]
        one = number(row["steps_per_second"]["one"])
        lines.append([row["row"].replace("_", " "), one, *cells, row["best"]])
    return table(["task, seeds", "one seed, steps/s", *forms, "best"], lines)


def parts(content: Result) -> str:
    """Shares of the time, then the limit of physics."""
    found, host = content["parts"], content["parts"]["host"]
    lines = [
        [label, number(found["steps_per_second"][label]), f"{100 * share:.0f} %"]
        for label, share in found["share"].items()
    ]
    shares = table(["part alone", "steps/s", "share of training's time"], lines)
    limit = content["limit"]
    speeds = limit["steps_per_second"]
    lines = []
    for pair in limit["ratio"]:
        a, b = pair.split("/")
        lines.append([a, b, number(speeds[a]), number(speeds[b]), ratio(limit, pair)])
    limits = table(["", "against", "steps/s", "its steps/s", "ratio"], lines)
    hosts = table(
        [f"of a fit with {host['evaluations']} evaluations", "share of its time"],
        [
            [name.removeprefix("share_").replace("_", " "), f"{100 * value:.0f} %"]
            for name, value in host.items()
            if name.startswith("share_")
        ],
    )
    return f"{shares}\n\n{limits}\n\n{hosts}"


def startup(content: Result) -> str:
    """Seconds by either clock."""
    clocks = ("wall", "processor")
    labels = {
        "first_import_jax": "import jax",
        "first_import_rlx": "import rlx, environments and methods after it",
        "first_fit": "first start of a run, to its first evaluation",
        "second_fit": "second start",
    }
    lines = [
        [text, *(f"{content[clock]['seconds'][key]:.2f} s" for clock in clocks)]
        for key, text in labels.items()
    ]
    quotients = []
    for clock in clocks:
        low, high = content[clock]["range"]
        median = content[clock]["second_fit/first_fit"]
        quotients.append(f"**{median:.2f}** ({low:.2f} to {high:.2f})")
    lines.append(["second over first", *quotients])
    return table(["", "wall", "processor"], lines)


def gradient_step(content: Result) -> str:
    """One line per part."""
    lines = []
    for name, part in content["parts"].items():
        low, high = part["range"]
        spent = f"{part['microseconds']:.0f} ({low:.0f} to {high:.0f})"
        lines.append([name, spent, f"{100 * part['share']:.0f} %"])
    return table(["part alone", "microseconds", "of the step"], lines)


def accelerator(content: Result) -> str:
    """One line per training."""
    lines = []
    for row in content["rows"]:
        times = [seconds for seconds in row["seconds_to_target"] if seconds is not None]
        memory = row["peak_mib"] or row["program_mib"]
        lines.append(
            [
                row["row"].replace("_", " "),
                number(row["steps_per_second"]),
                f"{row['compile_seconds']:.0f} s",
                "unknown" if memory is None else f"{memory:,.0f} MiB",
                f"{len(times)} of {len(row['seconds_to_target'])}"
                + (f", {statistics.median(times):.0f} s" if times else ""),
            ]
        )
    target = f"seeds that reach {number(content['settings']['target'])}, and when"
    return table(["", "steps/s", "compilation", "peak memory", target], lines)


TABLES: dict[str, Callable[[Result], str]] = {
    "physics": lambda content: races(content["rows"]),
    "training": lambda content: races(content["rows"]),
    "off_policy": lambda content: races(content["rows"], content["unit"]),
    "offline": lambda content: races(content["rows"], content["unit"]),
    "language": lambda content: races(content["rows"], content["unit"]),
    "seeds": seeds,
    "parts": parts,
    "startup": startup,
    "accelerator": accelerator,
    "gradient_step": gradient_step,
}


def fill(text: str) -> str:
    """The page with every table made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[2]
        path = HERE / "results" / f"{name}.json"
        if not path.exists():
            return f"{match[1]}Not measured yet.\n{match[3]}"
        content = json.loads(path.read_text())
        return f"{match[1]}{provenance(content)}\n\n{TABLES[name](content)}\n{match[3]}"

    return BLOCK.sub(block, text)


def provenance(content: Result) -> str:
    """The command, and where and when it ran."""
    machine = content.get("machine") or content["rows"][0]["machine"]
    packages = machine.get("packages") or machine.get("versions") or {}
    cores = machine.get("cpu_count") or machine.get("cores")
    when = f", {content['date']}" if "date" in content else ""
    load = machine.get("load") or machine.get("load_before")
    kind = machine.get("device_kind", "cpu")
    device = "no accelerator" if kind == "cpu" else f"{machine['device_count']} {kind}"
    busy = ""
    if load is not None:
        busy = f"; load averages (1, 5, 15 minutes): {', '.join(map(str, load))}"
    return (
        f"`{content['command']}`\n\n{cores} processor cores, {device}, jax "
        f"{packages.get('jax')}, mujoco {packages.get('mujoco')}{when}{busy}."
    )


def main() -> None:
    """Rewrites the page."""
    page = HERE / "README.md"
    page.write_text(fill(page.read_text()))


if __name__ == "__main__":
    main()
