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
