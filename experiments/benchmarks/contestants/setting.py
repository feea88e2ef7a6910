"""Options that all training contestants share."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds environment, batch and passes."""
    parser.add_argument("--env", required=True)
    parser.add_argument("--num-envs", type=int, default=40)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--num-epochs", type=int, default=10)
    parser.add_argument("--num-minibatches", type=int, default=8)
    parser.add_argument(
        "--normalize", type=int, default=1, help="observations and rewards: 0 or 1"
    )


CAPACITY, WARMUP = 100_000, 1_008
"""Transitions remembered, and random steps before learning, on every side: multiples of
16 environments."""


def add_off_policy_options(parser: argparse.ArgumentParser) -> None:
    """Adds environment, batch, networks and update ratio of off-policy training."""
    parser.add_argument("--env", required=True)
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument(
        "--gradient-steps", type=int, default=1, help="per step of all environments"
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=256, help="of two hidden layers")
    parser.add_argument(
        "--updates", type=int, default=0, help="1: sampling and gradient steps alone"
    )


def add_accelerator_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `experiments.benchmarks.accelerator` tells every side."""
    add_options(parser)
    parser.add_argument("--engine", help="of a MuJoCo task")
    parser.add_argument("--steps", type=int, required=True, help="of each seed")
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=8, help="per evaluation")


LANGUAGE = {
    "vocabulary": 8192, "width": 384, "layers": 8, "heads": 6, "length": 128,
    "prompt": 32, "response": 64, "responses": 16, "rows": 8, "pairs": 4,
}  # fmt: skip
"""A language model of 17 million parameters, and what it is given."""

TRANSITIONS, OBSERVATION, ACTION = 100_000, 11, 3
"""The dataset of offline training: drawn at random, in the shapes of Hopper's."""


def add_offline_options(parser: argparse.ArgumentParser) -> None:
    """Adds batch and networks of offline training."""
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=256, help="of two hidden layers")
