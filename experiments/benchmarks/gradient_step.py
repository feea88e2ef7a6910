"""Where the processor time of a gradient step of SAC goes, on one core.

    python -m experiments.benchmarks.gradient_step [--width 64] [--batch-size 128]

Every part is compiled alone, in a loop, and timed by the processor time of this process
in turn with the others, so that other work on the machine does little harm. Parts need
not add up: XLA fuses what follows into what was before. `products` are the matrix
products of the step with nothing between them, the limit for whoever uses them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import race
from experiments.benchmarks.contestants import rlx_off_policy

ROUNDS = 200
"""Of the loop in one timing."""
Step = Callable[[Any, jax.Array], Any]


def parts(options: argparse.Namespace) -> dict[str, tuple[Any, Step]]:
    """Name -> what is carried through the loop, and one round of it."""
    from rlx import learner, loop
    from rlx.data import ring

    method, source = rlx_off_policy.build(options)
    start = jax.jit(lambda: loop.init(method, source, jax.random.key(0)))()
    state, memory = start.learner, start.source.ring
    batch = ring.sample(memory, jax.random.key(1), (options.batch_size,))
    gradient = jax.tree.map(lambda x: 1e-3 * x, state.params)

    def sample(carry: Any, key: jax.Array) -> Any:
        memory, _ = carry
        return memory, ring.sample(memory, key, (4, options.batch_size))

    def step(state: Any, key: jax.Array) -> Any:
        return learner.gradient_step(method, state, batch, key)[0]

    def differentiate(state: Any, key: jax.Array) -> Any:
        grad_fn = jax.grad(method.loss_fn, has_aux=True)
        arguments = (state.params, state.target_params, state.stats, batch, key)
        moved = optax.apply_updates(state.params, grad_fn(*arguments)[0])
        return state.replace(params=moved)

    def optimize(state: Any, key: jax.Array) -> Any:
        del key
        updates, memory = method.optimizer.update(
            gradient, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=memory)

    def follow(state: Any, key: jax.Array) -> Any:
        del key
        new = method.target_update(state.params, state.target_params, state.step)
        return state.replace(target_params=new)

    def noise(total: Any, key: jax.Array) -> Any:
        keys = jax.random.split(key)
        drawn = [jax.random.normal(k, batch.action.shape) for k in keys]
        return total + drawn[0] + drawn[1]

    drawn = ring.sample(memory, jax.random.key(1), (4, options.batch_size))
    return {
        "step": (state, step),
        "gradient": (state, differentiate),
        "products": multiply(batch, options.width),
        "noise": (jnp.zeros(batch.action.shape), noise),
        "optimizer": (state, optimize),
        "target": (state, follow),
        "sampling, of 4": ((memory, drawn), sample),
    }


def multiply(batch: Any, width: int) -> tuple[Any, Step]:
    """The matrix products of one step: of both policies' passes and all critics'."""
    rows, observation = batch.observation.shape
    action = batch.action.shape[-1]
    policy = [(observation, width), (width, width), (width, 2 * action)]
    critic = [(observation + action, width), (width, width), (width, 1)]
    # Passes forward; to the weights; to the inputs, of the first layer and the others.
    counts = [(policy, 2, 1, 0, 1), (critic, 6, 2, 2, 4)]
    operands, kinds = [], []
    for layers, forward, weights, first, others in counts:
        for i, (before, after) in enumerate(layers):
            x = jnp.ones((rows, before)), jnp.ones((before, after))
            back = jnp.ones((rows, after)), jnp.ones((before, after))
            both = jnp.ones((rows, before)), jnp.ones((rows, after))
            operands += [x] * forward + [back] * (others if i else first)
            operands += [both] * weights
            kinds += ["ab"] * forward + ["abT"] * (others if i else first)
            kinds += ["aTb"] * weights

    def product(kind: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return {"ab": lambda: a @ b, "abT": lambda: a @ b.T, "aTb": lambda: a.T @ b}[
            kind
        ]()

    results = [product(kind, *pair) for kind, pair in zip(kinds, operands, strict=True)]

    def round_(carry: Any, key: jax.Array) -> Any:
        del key
        operands, _ = jax.lax.optimization_barrier(carry)
        found = [product(kind, *p) for kind, p in zip(kinds, operands, strict=True)]
        return operands, found

    return (operands, results), round_


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of processor time of every part: median, least and greatest."""
    programs = {}
    for name, (carried, step) in parts(options).items():

        def run(carried: Any, key: jax.Array, step: Step = step) -> Any:
            def one(i: Any, carried: Any) -> Any:
                return step(carried, jax.random.fold_in(key, i))

            return jax.lax.fori_loop(0, ROUNDS, one, carried)

        programs[name] = (jax.jit(run), carried)
    times: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(options.repeats + 1):
        for name, (program, carried) in programs.items():
            started = time.process_time()
            jax.block_until_ready(program(carried, jax.random.key(repeat)))
            if repeat:  # the first compiles
                spent = 1e6 * (time.process_time() - started) / ROUNDS
                times[name].append(spent)
    return {
        name: {
            "microseconds": round(statistics.median(found), 1),
            "range": [round(min(found), 1), round(max(found), 1)],
            "share": round(float(np.median(np.divide(found, times["step"]))), 3),
        }
        for name, found in times.items()
    }


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="of two hidden layers")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    options.env, options.num_envs, options.gradient_steps = "half_cheetah", 16, 4
    found = measure(options)
    for name, part in found.items():
        print(f"{name:16} {part['microseconds']:8.1f} us  {100 * part['share']:5.1f} %")
    content = {
        "width": options.width,
        "batch_size": options.batch_size,
        "parts": found,
    }
    race.save("gradient_step", content, sys.argv[1:])


if __name__ == "__main__":
    main()
