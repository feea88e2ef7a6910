"""Every notebook runs from its source, from the first cell to the last."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def test_there_are_notebooks():
    names = {path.stem for path in NOTEBOOKS}
    assert {"first_run", "compose_losses", "sweep"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    pytest.importorskip("jupytext", reason="needs the extra 'notebooks'")
    output = tmp_path / f"{path.stem}.ipynb"
    # As users run it: without the suite's settings of compiler and pictures.
    unset = ("XLA_FLAGS", "MPLBACKEND")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "jupytext", "--to", "ipynb", "--execute"]
    finished = subprocess.run(
        [*command, "--output", output, path],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path.parent,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    # A picture is what a notebook is for.
    assert '"image/png"' in output.read_text()
