"""`rlx data collect`, `rlx data check`, `rlx data info`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

import envs
from rlx.cli import data_collect, progress, start
from rlx.cli.errors import UsageError
from rlx.data import dataset as datasets
from rlx.data.dataset import Dataset, DatasetError
from rlx.json_values import to_json
from rlx.types import EnvSpec


def data_run(arguments: Any) -> int:
    """Run `rlx data ACTION`."""
    actions = {"collect": collect, "check": check, "info": info}
    return actions[arguments.action](arguments)


def collect(arguments: Any) -> int:
    """Make a dataset with the policies of a run, and say what is in it."""
    path = data_collect.collect(arguments)
    data = datasets.load(path)
    print("\n".join(_summary(data)))
    for finding in datasets.report(data):
        print(finding)
    print(f"wrote {path}")
    return 0


def check(arguments: Any) -> int:
    """Say everything that looks wrong; 1 if the dataset would be refused."""
    spec = _spec(arguments)
    try:
        findings = datasets.report(_load(arguments), spec)
    except DatasetError as error:
        findings = [datasets.Finding("error", "reading", str(error))]
    wrong = [finding for finding in findings if finding.severity == "error"]
    if arguments.json:
        print(json.dumps({"sound": not wrong, "findings": to_json(findings)}))
        return bool(wrong)
    for finding in findings:
        print(finding)
    doubts = len(findings) - len(wrong)
    print(
        f"{arguments.file}: refused"
        if wrong
        else f"{arguments.file}: sound" + (f", {doubts} warnings" if doubts else "")
    )
    return bool(wrong)


def info(arguments: Any) -> int:
    """Say what is in a dataset, sound or not."""
    data = _load(arguments)
    if arguments.json:
        print(json.dumps(to_json({**_numbers(data), "metadata": data.metadata})))
        return 0
    print("\n".join(_summary(data)))
    return 0


def _load(arguments: Any) -> Dataset:
    return datasets.load(
        arguments.file,
        time_limit=arguments.time_limit,
        observation_keys=arguments.keys,
        check=False,
    )


def _spec(arguments: Any) -> EnvSpec | None:
    if arguments.env is None:
        return None
    start.prepare()
    try:
        return envs.make(arguments.env).spec
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _numbers(data: Dataset) -> dict[str, Any]:
    returns = data.episode_returns[data.complete]
    kept, lengths = data.metadata, data.episode_lengths
    found: dict[str, Any] = {
        "steps": data.num_steps,
        "episodes": len(lengths),
        "complete_episodes": len(returns),
        "terminal_episodes": int(data.terminal.sum()),
        "longest_episode": int(lengths.max()),
        "observation_shape": np.shape(data.transitions.observation)[1:],
        "action_shape": np.shape(data.transitions.action)[1:],
    }
    if len(returns):
        found["return_mean"] = float(returns.mean())
        found["return_std"] = float(returns.std())
        low, high = kept.random_return, kept.expert_return
        if low is not None and high is not None and high > low:
            score = datasets.normalized_score(returns.mean(), low, high)
            found["normalized_score"] = float(score)
    return found


def _summary(data: Dataset) -> list[str]:
    kept, found, number = data.metadata, _numbers(data), progress.number
    title = " ".join(part for part in (kept.env, kept.kind) if part) or "unnamed"
    lines = [
        f"{title}: {found['steps']} steps in {found['episodes']} episodes, "
        f"{found['terminal_episodes']} terminal, "
        f"{found['episodes'] - found['complete_episodes']} cut by the recording, the "
        f"longest {found['longest_episode']}",
        f"observations {found['observation_shape']}, actions {found['action_shape']}",
    ]
    if "return_mean" in found:
        text = (
            f"return {number(found['return_mean'])} ± {number(found['return_std'])} of "
            f"{found['complete_episodes']} complete episodes"
        )
        if "normalized_score" in found:
            text += f", normalised score {found['normalized_score']:.1f}"
        lines.append(text)
    if kept.random_return is not None and kept.expert_return is not None:
        lines.append(
            f"score 0 is the return {number(kept.random_return)}, score 100 is "
            f"{number(kept.expert_return)}"
        )
    lines += [f"collected: {kept.how}"] * bool(kept.how)
    lines += [
        f"  checkpoint {actor['checkpoint']}: {actor['steps']} steps, score "
        f"{actor['score']:.1f}"
        for actor in kept.details.get("actors", ())
        if actor["checkpoint"] is not None
    ]
    return lines + [f"note: {note}" for note in kept.notes]
