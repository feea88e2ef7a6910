"""Uni-O4 from a dataset to online learning: three fits that follow one another.

Lei et al. 2024, https://arxiv.org/abs/2311.03351. `rlx.methods.uni_o4` has the losses;
here are the phases, each a `train.fit` in a folder of its own, so that a broken run
goes on inside the phase in which it broke.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx import sharding, train
from rlx.data import dataset as datasets
from rlx.data.dataset import Dataset
from rlx.data.rollout import rollout
from rlx.methods import _on_policy, ppo, uni_o4
from rlx.methods._uni_o4_evaluation import IsTerminal
from rlx.networks.ensemble import last_layer_scaled, member
from rlx.ops import normalization
from rlx.types import Array, Env, EnvSpec, Params, PyTree


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long the phases are. The defaults suit small tasks on a CPU.

    Raises:
      ValueError: a number is not positive (`online_steps` may be 0: no third phase).
    """

    foundation_steps: int = 20_000
    """Gradient steps on the dataset."""
    improvement_steps: int = 200
    """Gradient steps of the offline policy improvement. Ten times as many climbed the
    errors of Q on three sets of four, after 15,000 steps on the data
    (`experiments/uni_o4`); the authors take 10,000 after 2,000,000."""
    online_steps: int = 200_000
    """Environment steps."""
    batch_size: int = 256
    """Transitions of a gradient step in the first two phases."""
    holdout: int = 1_000
    """Transitions that no model is trained on, a fifth of the dataset at most."""
    num_envs: int = 40
    """Environments stepped together online."""
    length: int = 50
    """Steps of each between two updates."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < (0 if name == "online_steps" else 1):
                raise ValueError(f"{name} must be positive, got {value}")


class Outcome(NamedTuple):
    """What every phase left, all seeds together; leaves lead with `[N, ...]`."""

    foundation: train.Result
    bases: uni_o4.Foundation
    improvement: train.Result
    chosen: np.ndarray
    """`int[N]` the acting member that goes on: best last score in the model."""
    online: train.Result | None
    """PPO's; None without online steps."""


def fit(  # noqa: PLR0913 (the front door: everything is given by name)
    data: Dataset,
    env: Env,
    *,
    config: uni_o4.Config | None = None,
    online: ppo.Config | None = None,
    budget: Budget = Budget(),  # noqa: B008 (frozen)
    is_terminal: IsTerminal | None = None,
    seeds: int | Sequence[int] = 1,
    save_to: str | Path | None = None,
    resume: bool = False,
    on_row: Callable[[str, Mapping[str, Any]], None] | None = None,
    settings: train.Settings = train.Settings(),  # noqa: B008 (frozen)
) -> Outcome:
    """Behaviour policies, offline improvement, online PPO: for all seeds together.

    Nothing but evaluations sees the environment before the third phase; they choose
    nothing.

    Args:
      data: `rlx.data.dataset.load`; must fit the environment.
      env: where evaluations and the online phase run.
      config: of both offline phases; `uni_o4.Config()` unless given.
      online: of the third phase; `online_config(config)` unless given.
      budget: lengths and sizes.
      is_terminal: which observations end an episode, `[K, D] -> bool[K]`; None: none.
      seeds: how many (0, 1, ...), or which.
      save_to: folder to make; `foundation`, `improvement` and `online` are run folders
        in it.
      resume: go on in `save_to`, in whichever phase it stopped; with the same result
        as an unbroken run.
      on_row: called with the phase's name and every row of its record.
      settings: of all three fits.

    Raises:
      ValueError, RunFolderError, CheckpointError, DivergedError, Interrupted: as
        `train.fit`; a budget that is no whole number of batches.
    """
    config = uni_o4.Config() if config is None else config
    spec = env.spec
    online = online_config(config) if online is None else online

    def run(phase: str, method: Any, source: Any, **options: Any) -> train.Result:
        return train.fit(
            method,
            source,
            seeds=seeds,
            save_to=None if save_to is None else Path(save_to, phase),
            resume=resume,
            on_row=None if on_row is None else lambda row: on_row(phase, row),
            settings=settings,
            **options,
        )

    batches = {
        "foundation": _batches("foundation", budget, config.num_minibatches),
        "improvement": _batches("improvement", budget, config.gate_steps),
    }
    training, held_out = split(data, budget.holdout)
    first = run(
        "foundation",
        uni_o4.make(spec, config, datasets.observation_statistics(data)),
        _source(training, env, budget, config.num_minibatches),
        num_steps=batches["foundation"],
    )
    bases = _foundations(spec, config, first, held_out)
    second = run(
        "improvement",
        uni_o4.improvement(spec, config, member(bases, 0), is_terminal),
        _source(training, env, budget, config.gate_steps),
        num_steps=batches["improvement"],
        start=_improvement_start(spec, config, bases),
    )
    learner = sharding.gather(second.state.learner)
    index = np.argmax(learner.stats.score, axis=1)
    third = None
    if budget.online_steps:
        source = rollout(env, num_envs=budget.num_envs, length=budget.length)
        steps = train.gradient_steps(online, source, budget.online_steps)
        online = dataclasses.replace(online, anneal_steps=steps)
        method = ppo.make(spec, online)
        start = online_start(
            bases, learner.stats.acting, index, data, online, budget.num_envs
        )
        third = run(
            "online", method, source, num_steps=budget.online_steps, start=start
        )
    return Outcome(first, bases, second, index, third)


def online_config(config: uni_o4.Config, **changes: Any) -> ppo.Config:
    """PPO with the networks of the offline phases, and the authors' small steps.

    Their code has clips of 0.05, step sizes of 1e-5 to 3e-5 for the policy and 2e-4
    for the value, and observations standardised by the moments of the dataset.

    Args:
      config: of the offline phases.
      **changes: of PPO's fields.
    """
    fields: dict[str, Any] = {
        "hidden_sizes": config.hidden_sizes,
        "activation": config.activation,
        "minimum_log_scale": config.minimum_log_scale,
        "maximum_log_scale": config.maximum_log_scale,
        "state_dependent_scale": True,
        "normalize_observations": config.normalize_observations,
        "update_observation_moments": False,
        "gamma": config.gamma,
        "learning_rate": 3e-5,
        "value_learning_rate": 2e-4,
        "clip": 0.05,
    }
    return ppo.Config(**{**fields, **changes})


def split(data: Dataset, holdout: int) -> tuple[Dataset, PyTree]:
    """The data without some transitions, and those: always the same ones.

    Args:
      data: N transitions.
      holdout: how many to hold out; at most a fifth of N.

    Returns:
      The rest, in which episodes have gaps, and what is held out.
    """
    number = min(holdout, data.num_steps // 5)
    chosen = np.random.default_rng(0).choice(data.num_steps, number, replace=False)
    out = np.zeros(data.num_steps, bool)
    out[chosen] = True
    rest = jax.tree.map(lambda x: x[~out], data.transitions)
    held_out = jax.tree.map(lambda x: x[out], data.transitions)
    return dataclasses.replace(data, transitions=rest), held_out


def online_start(
    bases: uni_o4.Foundation,
    members: Params,
    index: Array,
    data: Dataset,
    online: ppo.Config,
    num_envs: int,
) -> dict[str, PyTree]:
    """What PPO starts from, for `train.fit(..., start=...)`: leaves `[N, ...]`.

    Rewards are scaled by the deviation of the dataset's discounted returns, and the
    offline values with them, so that the first advantages are sound.

    Args:
      bases: of the first phase.
      members: the improved policies, `[N, n, ...]`.
      index: `int[N]` which of them.
      data: with episodes in the order of time.
      online: PPO's config.
      num_envs: of the online phase.
    """
    number = len(index)
    scale, value = _reward_scale(data, online.gamma), bases.value
    reward: PyTree = ()
    if online.normalize_rewards:
        variance = normalization.variance(scale.statistics)
        factor = jax.lax.rsqrt(variance + normalization.EPSILON)
        value = last_layer_scaled(value, factor)
        fresh = normalization.init_reward_scale(num_envs)
        reward = fresh.replace(statistics=scale.statistics)
    params = jax.vmap(uni_o4.hand_over)(members, value, jnp.asarray(index))
    repeated = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], number, 0), reward)
    stats = _on_policy.Stats(observation=bases.observation, reward=repeated)
    return {"params": params, "stats": stats}


def _reward_scale(data: Dataset, gamma: float) -> normalization.RewardScale:
    kept = data.transitions
    rows = (np.asarray(x) for x in (kept.reward, kept.discount, kept.truncated))
    empty = normalization.init_reward_scale(())
    return jax.jit(normalization.scale_rewards)(empty, *rows, gamma)[0]


def _source(data: Dataset, env: Env, budget: Budget, num_minibatches: int) -> Any:
    return datasets.sample(
        data,
        env=env,
        batch_size=budget.batch_size,
        num_minibatches=num_minibatches,
    )


def _batches(phase: str, budget: Budget, num_minibatches: int) -> int:
    steps = getattr(budget, f"{phase}_steps")
    if steps % num_minibatches:
        below = steps // num_minibatches * num_minibatches
        above = below + num_minibatches
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{phase}_steps={steps} is no whole number of batches of "
            f"{num_minibatches} gradient steps: choose {nearest}"
        )
    return steps // num_minibatches


def _foundations(
    spec: EnvSpec, config: uni_o4.Config, result: train.Result, held_out: PyTree
) -> uni_o4.Foundation:
    def one(learner: PyTree) -> uni_o4.Foundation:
        return uni_o4.foundation(spec, config, learner, held_out)

    # On the host: its arrays lie on the mesh of the fit.
    return jax.jit(jax.vmap(one))(sharding.gather(result.state.learner))


def _improvement_start(
    spec: EnvSpec, config: uni_o4.Config, bases: uni_o4.Foundation
) -> dict[str, PyTree]:
    """What the method of each base would begin with, all seeds together."""

    def one(base: uni_o4.Foundation) -> dict[str, PyTree]:
        method = uni_o4.improvement(spec, config, base)
        return {"params": method.init(jax.random.key(0)), "stats": method.init_stats(1)}

    return jax.jit(jax.vmap(one))(bases)
