"""rlx: sampling, fine-tuning or DPO of a language model."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from experiments.benchmarks.contestants import rlx_training, serve
from experiments.benchmarks.contestants.setting import LANGUAGE


def main() -> None:
    """Answers in tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("sampling", "sft", "dpo"), required=True)
    task = parser.parse_args().task

    from rlx.networks import transformer

    size = LANGUAGE
    config = transformer.Config(
        vocabulary_size=size["vocabulary"],
        width=size["width"],
        num_layers=size["layers"],
        num_heads=size["heads"],
        max_length=size["length"],
        positions="learned",
        normalization="layer",
        activation="gelu",
        bias=True,
    )
    advance = sampling(config) if task == "sampling" else training(config, task)
    serve.serve(rlx_training.in_slices(advance), ("jax", "jaxlib"))


def sampling(config: object) -> Callable[[int], int]:
    """Draws batches of responses, all of them of full length."""
    import jax
    import jax.numpy as jnp

    from rlx.generation.sampling import Sampling
    from rlx.generation.speakers import of_decoder, sampler
    from rlx.networks import transformer

    params = transformer.init(config, jax.random.key(0))
    options = Sampling(max_tokens=LANGUAGE["response"])
    draw = jax.jit(sampler(of_decoder(config), options))
    prompt = jnp.ones((LANGUAGE["responses"], LANGUAGE["prompt"]), jnp.int32)
    keys = iter(jax.random.split(jax.random.key(1), 100_000))

    def advance(batches: int) -> int:
        for _ in range(batches):
            found = draw(params, prompt, prompt > 0, next(keys))
            jax.block_until_ready(found)
        return batches * found.tokens.size

    return advance


def training(config: object, task: str) -> Callable[[int], int]:
    """Gradient steps of a method, as `train.fit` compiles them."""
    import jax
    import numpy as np

    from rlx import program
    from rlx.data.language import Preferences, Sequences, draw
    from rlx.generation import language_model
    from rlx.methods import dpo, sft

    draw_tokens, length = np.random.default_rng(0), LANGUAGE["length"]

    def rows() -> Sequences:
        shape = (512, length)
        tokens = draw_tokens.integers(0, LANGUAGE["vocabulary"], shape).astype(np.int32)
        response = np.broadcast_to(np.arange(length) >= LANGUAGE["prompt"], shape)
        return Sequences(tokens, np.ones(shape, bool), response)

    spec = language_model.decoder(config)
    if task == "sft":
        method, number = sft.make(spec), LANGUAGE["rows"]
        source, tokens = draw(rows(), batch_size=number), number * length
    else:
        method, number = dpo.make(spec), LANGUAGE["pairs"]
        pairs = Preferences(rows(), rows(), np.ones(512, np.float32))
        source, tokens = draw(pairs, batch_size=number), 2 * number * length
    programs = program.build(
        lambda _: method,
        source,
        program.make_runs(range(1), None)[0],
        evaluation_env=None,
        num_episodes=1,
    )
    state = [programs.init(programs.runs)]

    def advance(steps: int) -> int:
        state[0] = programs.advance(programs.runs, state[0], np.int32(steps))
        jax.block_until_ready(state[0])
        return steps * tokens

    return advance


if __name__ == "__main__":
    main()
