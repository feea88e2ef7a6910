"""One start of a training run: imports, compilation, first batch. Prints seconds."""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    """Trains Hopper for one batch with the compilation cache in `sys.argv[1]`."""
    marks = [(time.perf_counter(), time.process_time())]

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    import jax

    mark()
    import envs
    from rlx import train
    from rlx.data.rollout import rollout
    from rlx.methods import ppo

    mark()
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    env = envs.make("hopper")
    source = rollout(env)
    result = train.fit(
        ppo.make(env.spec),
        source,
        num_steps=source.steps_per_batch,
        settings=train.Settings(evaluations=1),
    )
    mark()
    labels = ("import_jax", "import_rlx", "fit")
    answer = {
        label: [after[0] - before[0], after[1] - before[1]]
        for label, before, after in zip(labels, marks, marks[1:], strict=False)
    }
    compiling = result.rows[0]["time"]["compile_s"]
    print(json.dumps({**answer, "compile_s": compiling}))


if __name__ == "__main__":
    main()
