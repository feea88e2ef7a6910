"""PyTorch: IQL in one file, written as single-file implementations write it.

Kostrikov et al. 2022, https://arxiv.org/abs/2110.06169, equations 5 to 7; a twin
critic as one batched product, three optimisers of Adam, a target by Polyak averaging
with `torch._foreach`. It runs in a Python of its own: `pip install torch`.
"""

from __future__ import annotations

import argparse
import copy
import time

from experiments.benchmarks.contestants import serve
from experiments.benchmarks.contestants.setting import (
    ACTION,
    OBSERVATION,
    TRANSITIONS,
    add_offline_options,
)

GAMMA, TAU, EXPECTILE, BETA, LARGEST = 0.99, 0.005, 0.7, 3.0, 100.0
LOOK = 0.5
"""Seconds that one call should last."""


def main() -> None:  # noqa: PLR0915 (one file, one function: that is its style)
    """Answers in gradient steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_offline_options(parser)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(options.threads)  # small matrices: more threads only wait
    torch.manual_seed(0)
    width, number = options.width, TRANSITIONS

    def perceptron(inputs: int, outputs: int) -> nn.Module:
        layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, outputs))

    observation = torch.randn(number, OBSERVATION)
    next_observation = torch.randn(number, OBSERVATION)
    action = torch.rand(number, ACTION) * 2 - 1
    reward = torch.randn(number)
    discount = (torch.rand(number) > 0.01).float()

    critics = nn.ModuleList(perceptron(OBSERVATION + ACTION, 1) for _ in range(2))
    slow = copy.deepcopy(critics).requires_grad_(False)
    value, policy = perceptron(OBSERVATION, 1), perceptron(OBSERVATION, 2 * ACTION)
    learners = [
        torch.optim.Adam(net.parameters(), lr=3e-4, foreach=True)
        for net in (value, critics, policy)
    ]

    def step() -> None:
        rows = torch.randint(number, (options.batch_size,))
        seen, chosen, after = observation[rows], action[rows], next_observation[rows]
        pair = torch.cat([seen, chosen], dim=1)
        with torch.no_grad():
            worth = torch.minimum(slow[0](pair), slow[1](pair)).squeeze(1)
            later = value(after).squeeze(1)
        advantage = worth - value(seen).squeeze(1)
        weight = torch.where(advantage < 0, 1 - EXPECTILE, EXPECTILE)
        losses = [(weight * advantage**2).mean()]
        target = reward[rows] + GAMMA * discount[rows] * later
        losses.append(
            sum(functional.mse_loss(q(pair).squeeze(1), target) for q in critics)
        )
        mean, log_scale = policy(seen).chunk(2, dim=1)
        density = torch.distributions.Normal(
            mean, log_scale.clamp(-5, 2).exp(), validate_args=False
        )
        kept = (BETA * advantage.detach()).exp().clamp(max=LARGEST)
        losses.append(-(kept * density.log_prob(chosen).sum(1)).mean())
        for learner, loss in zip(learners, losses, strict=True):
            learner.zero_grad(set_to_none=True)
            loss.backward()
            learner.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(slow.parameters()), list(critics.parameters()), TAU
            )

    def train(times: int) -> int:
        for _ in range(times):
            step()
        return times

    train(20)
    started = time.perf_counter()
    train(50)
    count = max(1, round(LOOK / ((time.perf_counter() - started) / 50)))
    serve.serve(lambda: train(count), ("torch",))


if __name__ == "__main__":
    main()
