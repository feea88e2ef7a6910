"""Results without the command and the machine that made them are worth nothing."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
MACHINE = ("machine", "environment")
"""Names under which a result may describe what it was measured on."""


def folders() -> list[pathlib.Path]:
    """Every experiment that has results."""
    return sorted({path.parent.parent for path in EXPERIMENTS.glob("*/results/*.json")})


def complaints(folder: pathlib.Path) -> Iterator[str]:
    """What is missing in the folder of one experiment."""
    command = f"python -m experiments.{folder.name}"
    page = folder / "README.md"
    if not page.exists():
        yield f"{folder.name}: results but no README.md"
    elif command not in page.read_text():
        yield f"{folder.name}/README.md names no command `{command}...`"
    for path in sorted(folder.glob("results/*.json")):
        name = f"{folder.name}/results/{path.name}"
        yield from (f"{name} {fault}" for fault in faults(path, command))


def faults(path: pathlib.Path, command: str) -> Iterator[str]:
    """What is wrong with one file of results."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        yield f"is no JSON: {error}"
        return
    if not isinstance(content, dict):
        yield "is no JSON object"
        return
    words = content.get("command")
    if not (isinstance(words, str) and words.startswith(command)):
        yield f"has no `command` that begins with `{command}`"
    elif not module_exists(words):
        yield f"has a command that does not exist: {words}"
    machine = next((content[key] for key in MACHINE if key in content), None)
    if not isinstance(machine, dict):
        yield f"describes no machine under {' or '.join(MACHINE)}"
        return
    text = json.dumps(machine)
    for needed in ("python", "jax"):
        if f'"{needed}"' not in text:
            yield f"does not say which {needed} it was measured with"
    if not re.search(r'"(cpu_count|cores|device_kind)"', text):
        yield "does not say how many cores, or which device, it was measured on"


def module_exists(command: str) -> bool:
    """True where the module of `python -m a.b.c ...` is in this tree."""
    module = command.split()[2]
    path = ROOT / pathlib.Path(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_results_say_where_they_come_from(folder: pathlib.Path) -> None:
    found = list(complaints(folder))
    assert not found, "\n".join(found)


GOOD = {
    "command": "python -m experiments.benchmarks.seeds --repeats 3",
    "machine": {"python": "3.11.7", "packages": {"jax": "0.10.2"}, "cpu_count": 2},
}


def experiment(tmp_path: pathlib.Path, text: str, page: str | None) -> pathlib.Path:
    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "seeds.json").write_text(text)
    if page is not None:
        (folder / "README.md").write_text(page)
    return folder


PAGE = "# Seeds\n\n    python -m experiments.benchmarks.seeds\n"


def test_a_complete_experiment_passes(tmp_path: pathlib.Path) -> None:
    assert not list(complaints(experiment(tmp_path, json.dumps(GOOD), PAGE)))


@pytest.mark.parametrize(
    ("change", "page", "complaint"),
    [
        ({}, None, "no README.md"),
        ({}, "# Seeds, fast\n", "names no command"),
        ({"command": None}, PAGE, "has no `command`"),
        ({"command": "python seeds.py"}, PAGE, "has no `command`"),
        ({"command": "python -m experiments.benchmarks.no"}, PAGE, "does not exist"),
        ({"machine": None}, PAGE, "describes no machine"),
        ({"machine": {"python": "3.11", "cores": 2}}, PAGE, "which jax"),
        ({"machine": {"jax": "0.10", "cores": 2}}, PAGE, "which python"),
        ({"machine": {"python": "3.11", "jax": "0.10"}}, PAGE, "how many cores"),
    ],
)
def test_what_is_missing_is_seen(
    tmp_path: pathlib.Path, change: dict, page: str | None, complaint: str
) -> None:
    folder = experiment(tmp_path, json.dumps({**GOOD, **change}), page)
    assert [text for text in complaints(folder) if complaint in text]


@pytest.mark.parametrize("text", ['{"command": ', "[1, 2]"])
def test_broken_results_are_seen(tmp_path: pathlib.Path, text: str) -> None:
    assert list(complaints(experiment(tmp_path, text, PAGE)))
