"""What a terminal or a file is shown while runs train."""

from __future__ import annotations

import io
import math
import sys

import numpy as np
import pytest

from rlx.cli import progress


def test_numbers_for_people() -> None:
    assert [progress.short(x) for x in (0, 950, 1024, 21_340, 999_960, 1e6, 2.5e9)] == [
        *("0", "950", "1.02k", "21.3k", "1M", "1M", "2.5G")
    ]
    assert [progress.duration(x) for x in (0.4, 59.6, 130, 3900, 7200, 97200)] == [
        *("0 s", "1 min", "2 min 10 s", "1 h 5 min", "2 h", "1 d 3 h")
    ]
    assert progress.duration(math.inf) == "?"
    scores = np.array([1.0, 1500.0, 1700.0, 9000.0])
    assert progress.spread(scores) == "1600 (1 to 9000)"
    assert progress.spread(np.array([2.5])) == "2.5"
    assert progress.spread(np.array([2.0, np.nan])) == "2 (2 to 2), 1 diverged"
    assert progress.spread(np.array([np.nan])) == "nan"


def feed(display: progress.Display) -> None:
    with display:
        display.row({"step": 500, "return": [1.0, 3.0], "time": {}})
        report = {"step": 700, "steps_per_second": 2100.0, "seconds_left": 75.0}
        display.progress(report)
        display.row({"step": 1000, "return": [2.0, 4.0]})


def test_progress_in_a_file_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(progress.Display(["", ""], 1000))
    quiet = capsys.readouterr().out
    assert quiet.splitlines() == [
        "   500 steps   return 2 (1 to 3)",
        "    1k steps   return 3 (2 to 4)",
    ]
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
    feed(progress.Display(["a", "b"], 1000))
    assert capsys.readouterr().out.splitlines() == [
        "   500 steps   return 3 at b, the best of 2 settings",
        "   700 steps   2.1k steps/s   1 min 15 s left",
        "    1k steps   return 4 at b, the best of 2 settings",
    ]


def test_progress_on_a_terminal_is_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    feed(progress.Display(["", ""], 1000))
    text = terminal.getvalue()
    assert "   500 steps   return 2 (1 to 3)\n" in text
    assert "\x1b[2K" in text  # the live line is wiped and drawn again
    live = "700 steps   return 2 (1 to 3)   2.1k steps/s   1 min 15 s left"
    assert live in text
