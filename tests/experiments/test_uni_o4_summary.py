"""Uni-O4's tables: what is compared with what, from records made up here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.uni_o4 import summary


def record(task: str, kind: str, arm: str, **scores) -> dict:
    """A record whose phases have the normalised scores `[evaluations, seeds]`."""
    phases = {}
    for name, rows in scores.items():
        steps = (100 * np.arange(len(rows))).tolist()
        phases[name] = {"steps": steps, "scores": rows, "returns": rows}
    seeds = list(range(len(next(iter(scores.values()))[0])))
    return {"task": task, "kind": kind, "arm": arm, "seeds": seeds, "phases": phases}


@pytest.fixture
def records(tmp_path, monkeypatch):
    made = [
        record(
            "hopper",
            "medium",
            "uni_o4",
            behaviour=[[10, 12]],
            offline=[[0, 0], [30, 40]],
            online=[[30, 40], [20, 30], [50, 60]],
        ),
        record("hopper", "medium", "iql", offline=[[20, 20]], online=[[20, 20]] * 3),
        record("hopper", "medium", "cql", offline=[[5, 5]]),
        record("hopper", "medium", "ppo", online=[[0, 0], [5, 5], [45, 45]]),
        record(
            "hopper",
            "expert",
            "uni_o4",
            behaviour=[[90, 92]],
            offline=[[95, 97]],
            online=[[95, 97], [97, 99], [99, 99]],
        ),
        record("hopper", "expert", "iql", offline=[[91, 89]], online=[[90, 90]] * 3),
    ]
    for i, one in enumerate(made):
        (tmp_path / f"{i}.json").write_text(json.dumps(one))
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr(summary, "RESULTS", tmp_path)
    return summary.read()


def test_differences_are_paired_by_seed_over_all_sets(records):
    found = summary.together(records)
    assert found["sets"] == ["hopper_medium", "hopper_expert"]
    gain = found["minus"]["uni_o4"]
    # (30 - 20, 40 - 20) and (95 - 91, 97 - 89).
    assert gain["iql offline"]["per_set"] == [15.0, 6.0]
    assert gain["iql offline"]["estimate"] == 10.5
    assert gain["iql offline"]["low"] <= 10.5 <= gain["iql offline"]["high"]
    assert gain["uni_o4 behaviour"]["estimate"] == np.mean([20, 28, 5, 5])
    assert gain["iql online"]["per_set"] == [35.0, 9.0]
    assert not {"uni_o4 offline", "uni_o4 online"} & set(gain)
    # An arm that was not run on every set is not averaged over those where it was.
    assert "cql offline" not in gain
    # The middle half of 20, 20, 89 and 91.
    assert found["scores"]["iql offline"]["estimate"] == 54.5


def test_arms_with_other_seeds_are_compared_without_pairs(records):
    for where, scores in (("hopper_medium", [33, 43]), ("hopper_expert", [95, 99])):
        kind = where.removeprefix("hopper_")
        rows = {"behaviour": [[11, 11]], "offline": [scores], "online": [scores] * 3}
        made = record("hopper", kind, "short", **rows)
        records[where]["short"] = {**made, "seeds": [3, 4]}
    gain = summary.together(records)["minus"]["short"]
    assert gain["iql offline"]["paired"] is False
    assert gain["iql offline"]["estimate"] == 67.5 - 55.0
    assert gain["short behaviour"]["paired"] is True
    assert gain["short behaviour"]["per_set"] == [27.0, 86.0]
    assert "uni_o4 behaviour" not in gain


def test_ppo_from_scratch_serves_every_set_of_its_task(records):
    gain = summary.together(records)["minus"]["uni_o4"]["ppo online"]
    assert gain["per_set"] == [10.0, 54.0]


def test_a_fall_is_found_in_the_mean_over_seeds(records):
    rows = {(row["set"], row["arm"]): row for row in summary.kept(records)}
    ours = rows["hopper_medium", "uni_o4"]
    assert (ours["start"], ours["least"], ours["final"]) == (35.0, 25.0, 55.0)
    assert ours["least_early"] == 35.0
    assert ours["area"] == np.round(np.mean([35, 25, 55]), 2)
    assert ("hopper_medium", "cql") not in rows


def test_the_table_has_every_phase(records):
    rows = summary.table(records)
    assert {(row["arm"], row["phase"]) for row in rows} >= {
        ("uni_o4", "behaviour"),
        ("uni_o4", "online"),
        ("cql", "offline"),
    }
    assert all(row["low"] <= row["iqm"] <= row["high"] for row in rows)
