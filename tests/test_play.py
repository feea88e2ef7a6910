"""`rlx train unicorn` and `rlx play`: a person's answers reach the simulator."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest

from rlx.cli import main, play, saved

SMALL = ["hidden_size=8", "num_heads=2", "feedforward=8", "num_convolutions=1"]
TALK = ["num_users=5", "num_items=60", "num_attributes=12", "most=5", "max_turns=6"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("runs") / "talk"
    argv = ["train", "unicorn", "--env", "conversation/synthetic_graph"]
    argv += ["--env-set", *TALK, "num_nodes=12", "--set", *SMALL]
    argv += ["state_features=true", "--source-set", "num_envs=4", "capacity=64"]
    argv += ["batch_size=8", "--steps", "64", "--evaluations", "1"]
    assert main([*argv, "--episodes", "4", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def loaded(run: pathlib.Path) -> saved.Saved:
    return saved.load(str(run), None)


def talk(loaded: saved.Saved, seed: int, answers):
    """What was shown and asked; `answers` is called with each question."""
    lines: list[str] = []

    def ask(text: str) -> str:
        lines.append(text)
        return answers(text)

    found = play.talk(loaded.parts.env, loaded.policy(0), seed, ask, lines.append)
    return found, lines


def test_the_run_folder_keeps_no_catalogue(run: pathlib.Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["env_spec"]["time_limit"] == 6
    assert "catalogue" not in config["env_spec"]


def test_true_answers_are_those_of_the_simulator(loaded: saved.Saved) -> None:
    """Pressing return throughout is an episode of the environment."""
    env, policy = loaded.parts.env, loaded.policy(0)
    step = jax.jit(env.step)
    act = jax.jit(lambda seen: policy.act(seen, (), None)[0])
    hits = 0
    for seed in range(8):
        found, lines = talk(loaded, seed, lambda text: "")
        state, seen = jax.jit(env.reset)(jax.random.key(seed))
        shown = [line for line in lines if line.startswith("[")]
        for turn, line in enumerate(shown, 1):
            left = int(np.sum(state.candidate))
            assert line.startswith(f"[{turn}/6] {left} items. ")
            action = act(seen)
            state, new = step(state, action, jax.random.key(0))
            seen = new.observation
        assert bool(new.terminated) and bool(new.info["hit"]) == found
        hits += found
    assert 0 < hits <= 8


def test_a_person_may_have_another_item_in_mind(loaded: saved.Saved) -> None:
    """Always no: nothing is found, and a list is never shown twice."""
    found, lines = talk(loaded, 1, lambda text: "no")
    assert not found and lines[-1] == "Not found in 6 turns."
    listed = [
        item
        for line in lines
        if "recommend" in line
        for item in line.partition("items ")[2].split("items ")[-1].rstrip(".").split()
    ]
    assert len(listed) == len(set(listed))

    def accept(text: str) -> str:
        return items[-1] if "number" in text else "yes"

    for seed in range(6):
        items: list[str] = []

        def tell(line: str, items=items) -> None:
            if "recommend" in line:
                items += line.rstrip(".").rpartition("items ")[2].split(", ")

        found = play.talk(loaded.parts.env, loaded.policy(0), seed, accept, tell)
        assert found == bool(items)


def test_play_at_the_terminal(run, monkeypatch, capsys) -> None:
    given = iter(["what", "-5", "maybe"])

    def answer(text: str) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(play.talk, "__defaults__", (answer, print))
    assert main(["play", str(run), "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert (
        "You open with attribute" in shown
        and shown.count("or none\n") + shown.count("y or n, please") == 3
    )
    assert shown.endswith("The conversation ends here.\n")
    assert main(["play", str(run), "--index", "4"]) == 2
