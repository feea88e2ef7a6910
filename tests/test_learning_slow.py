"""What PPO and MDPO reach on control problems, and what MDPO loses with its parts.

Measured settings: 32 environments, 64 steps a batch, 150 batches; MDPO's parts after
Tomar et al. 2022, https://arxiv.org/abs/2005.09814, section 5.1.
"""

from __future__ import annotations

import functools
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx import evaluate, learner, train
from rlx.data.rollout import rollout
from rlx.methods import mdpo, ppo
from rlx.types import DataSource, Env, Method, Policy

pytestmark = pytest.mark.slow

SEEDS = 4
# The suite compiles without optimisation; these run long enough to want it.
OPTIMISED = {"xla_backend_optimization_level": 3}
METHODS = {"ppo": ppo, "mdpo": mdpo}
PENDULUM_BATCHES = 150


def pendulum_source() -> DataSource:
    return rollout(probe.make("pendulum"), num_envs=32, length=64)


def pendulum_config(module: ModuleType, **fields):
    settings = {"gamma": 0.95, "learning_rate": 1e-3}
    settings |= {"num_epochs": 10, "num_minibatches": 8} | fields
    steps = settings["num_epochs"] * settings["num_minibatches"]
    return module.Config(**settings, anneal_steps=PENDULUM_BATCHES * steps)


def pendulum_returns(make, hyper=None) -> np.ndarray:
    """Deterministic policy's mean return after training, `[settings, SEEDS]`."""
    source = pendulum_source()
    result = train.fit(
        make,
        source,
        seeds=SEEDS,
        hyper=hyper,
        num_steps=PENDULUM_BATCHES * source.steps_per_batch,
        settings=train.Settings(evaluations=1, episodes=64, compiler_options=OPTIMISED),
    )
    return result.returns[-1].reshape(-1, SEEDS)


@functools.cache
def mirror_descent_returns() -> dict[str, np.ndarray]:
    """With the proximal term and (all but) without it, from one program."""
    spec = pendulum_source().env.spec

    def make(hyper) -> Method:
        return mdpo.make(spec, pendulum_config(mdpo, step_size=hyper["step_size"]))

    proximal, free = pendulum_returns(make, {"step_size": [1.0, 1e6]})
    return {"proximal": proximal, "free": free}


def test_mdpo_swings_the_pendulum_up():
    returns = mirror_descent_returns()["proximal"]
    assert returns.mean() >= -200, returns


def test_ppo_swings_the_pendulum_up():
    spec = pendulum_source().env.spec
    returns = pendulum_returns(ppo.make(spec, pendulum_config(ppo)))
    assert returns.mean() >= -200, returns


def test_without_its_proximal_term_mdpo_fails():
    returns = mirror_descent_returns()
    assert returns["free"].mean() <= returns["proximal"].mean() - 300, returns


def test_with_one_gradient_step_a_batch_mdpo_fails():
    spec = pendulum_source().env.spec
    config = pendulum_config(mdpo, num_epochs=1, num_minibatches=1)
    returns = pendulum_returns(mdpo.make(spec, config))
    assert returns.mean() <= mirror_descent_returns()["proximal"].mean() - 300, returns


# --------------------------------------------------------------------------------- LQR

LQR_GAMMA = 0.99


def mean_cost(env: Env, policy: Policy, key: jax.Array) -> jax.Array:
    episodes = evaluate.episodes(env, policy, key, num_episodes=1024)
    return -jnp.mean(episodes.returns)


@pytest.mark.parametrize("name", METHODS)
def test_the_learned_gain_is_near_the_riccati_gain(name):
    env = probe.make("lqr")
    source = rollout(env, num_envs=64, length=32)
    num_batches = 40
    config = METHODS[name].Config(
        gamma=LQR_GAMMA,
        learning_rate=1e-3,
        anneal_steps=num_batches * 80,
        # The first policies let the cart run away; moments that remember where it went
        # would shrink all that matters later to a point.
        normalize_observations=False,
    )
    method = METHODS[name].make(env.spec, config)
    gain = jnp.asarray(probe.lqr_solution(LQR_GAMMA).gain, jnp.float32)
    riccati = Policy(
        act=lambda observation, carry, key: (-observation @ gain.T, carry, {}),
        init_carry=lambda: (),
    )

    def one(key):
        train_key, evaluation_key = jax.random.split(key)
        state = train.init(method, source, train_key)
        state, _ = train.run(method, source, state, num_batches)
        policy = learner.policy(method, state.learner)

        def push(x):
            return policy.act(x, policy.init_carry(), None)[0]

        # The network is no linear map: its gain is that of small displacements.
        small = 0.2 * jnp.concatenate([jnp.eye(2), -jnp.eye(2)])
        learned = -(push(small)[:2] - push(small)[2:]).T / 0.4
        # Both on the same episodes.
        ratio = mean_cost(env, policy, evaluation_key)
        ratio /= mean_cost(env, riccati, evaluation_key)
        return learned, ratio

    keys = jax.random.split(jax.random.key(0), SEEDS)
    program = jax.jit(lambda: jax.lax.map(one, keys), compiler_options=OPTIMISED)
    learned, ratio = map(np.asarray, program())
    assert ratio.max() < 1.2, ratio
    difference = np.linalg.norm(learned - np.asarray(gain), axis=(1, 2))
    assert difference.max() < 0.4 * np.linalg.norm(gain), learned
