"""Time limits through every adapter: a chain of three states has exact values.

Each adapter wraps the same two chains (see `envs.probe.chains`): one ends by itself
and is cut as well, one is only ever cut. With the true values, every temporal
difference of a batch is 0, whatever the policy, the seed and λ.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from types import SimpleNamespace

import brax.envs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.base import State
from flax import struct

from envs import brax as brax_adapter
from envs import gymnax, playground, probe
from envs.mujoco import mjx, native
from envs.mujoco.task import Outcome, Task
from envs.probe.chains import CHAIN_REWARD, RING_REWARD
from rlx.data.rollout import rollout
from rlx.ops.returns import generalized_advantage, lambda_returns
from rlx.types import Env, Policy, Transition

GAMMA = 0.9
VALUES = {"chain": probe.chain_values(GAMMA), "ring": probe.ring_values(GAMMA)}
LIMITS = {"chain": 2, "ring": 5}


class BraxChain(brax.envs.Env):
    """The chain, or the ring, as a Brax environment."""

    def __init__(self, name: str) -> None:
        self._cyclic = name == "ring"
        self._reward = RING_REWARD if self._cyclic else CHAIN_REWARD

    def reset(self, rng: jax.Array) -> State:
        position = jax.random.randint(rng, (), 0, 3)
        observation = jax.nn.one_hot(position, 3)
        return State(position, observation, jnp.zeros(()), jnp.zeros(()))

    def step(self, state: State, action: jax.Array) -> State:
        reward = jnp.array(self._reward)[state.pipeline_state]
        position = state.pipeline_state + 1
        position = position % 3 if self._cyclic else position
        done = jnp.where(position >= 3, 1.0, 0.0)
        return State(position, jax.nn.one_hot(position, 3), reward, done)

    @property
    def observation_size(self) -> int:
        return 3

    @property
    def action_size(self) -> int:
        return 1

    @property
    def backend(self) -> str:
        return "none"


def chain_task(name: str) -> Task:
    """The chain, or the ring, as a MuJoCo task: a body that moves by 1 a step."""
    cyclic = name == "ring"
    rewards = RING_REWARD if cyclic else CHAIN_REWARD

    def place(c, qpos):
        index = c.xp.round(qpos[..., 0]).astype(int)
        return index % 3 if cyclic else index

    def outcome(c, before, p, action):
        here = place(c, before)
        reward = c.xp.asarray([*rewards, 0.0])[here]
        terminated = c.xp.zeros(here.shape, bool) if cyclic else place(c, p.qpos) >= 3
        return Outcome(reward, terminated, {})

    return Task(
        name=name,
        model_file=str(pathlib.Path(__file__).with_name("chain.xml")),
        frame_skip=1,
        time_limit=LIMITS[name],
        options={},
        draw=lambda c, key: jax.random.randint(key, (1,), 0, 3).astype(jnp.float32),
        start=lambda c, draws: (draws, c.xp.ones_like(draws)),
        observe=lambda c, p: c.xp.eye(4)[place(c, p.qpos)][..., :3],
        position=lambda c, p: p.qpos[..., :1],
        outcome=outcome,
    )


@struct.dataclass
class PlaygroundState:
    """The fields of Playground's `State`."""

    data: jax.Array
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    metrics: dict
    info: dict


class PlaygroundChain(BraxChain):
    """The chain, or the ring, with Playground's states."""

    def reset(self, rng: jax.Array) -> PlaygroundState:
        return self._convert(super().reset(rng))

    def step(self, state: PlaygroundState, action: jax.Array) -> PlaygroundState:
        before = State(state.data, state.obs, state.reward, state.done)
        return self._convert(super().step(before, action))

    def _convert(self, state: State) -> PlaygroundState:
        position, observation = state.pipeline_state, state.obs
        return PlaygroundState(position, observation, state.reward, state.done, {}, {})


@struct.dataclass
class GymnaxParams:
    max_steps_in_episode: int


class GymnaxChain:
    """The chain, or the ring, with what gymnax's `Environment` has."""

    def __init__(self, name: str) -> None:
        self._chain = BraxChain(name)

    def reset_env(self, key, params):
        state = self._chain.reset(key)
        return state.obs, state.pipeline_state

    def step_env(self, key, state, action, params):
        after = self._chain.step(State(state, None, None, None), action)
        observation, position = after.obs, after.pipeline_state
        return observation, position, after.reward, after.done > 0.5, {}

    def observation_space(self, params):
        return SimpleNamespace(shape=(3,), dtype=jnp.float32)

    def action_space(self, params):
        return SimpleNamespace(shape=(1,), low=-1.0, high=1.0)


# Another suite's adapter: one more line.
ADAPTERS: dict[str, Callable[[str], Env]] = {
    "probe": lambda name: probe.make(name, time_limit=LIMITS[name]),
    "brax": lambda name: brax_adapter.adapt(BraxChain(name), name, LIMITS[name]),
    "gymnax": lambda name: gymnax.adapt(
        GymnaxChain(name), GymnaxParams(LIMITS[name]), name
    ),
    "mjx": lambda name: mjx.make(
        chain_task(name), SimpleNamespace(), LIMITS[name], mjx.Settings()
    ),
    "native": lambda name: native.make(
        chain_task(name), SimpleNamespace(), LIMITS[name], 1
    ),
    "playground": lambda name: playground.adapt(
        PlaygroundChain(name), name, LIMITS[name]
    ),
}


@pytest.fixture(params=sorted(ADAPTERS))
def adapt(request: pytest.FixtureRequest) -> Callable[[str], Env]:
    return ADAPTERS[request.param]


def collect(env: Env, key: jax.Array) -> Transition:
    """A batch `[40, 8]` of a policy that always does the same."""
    policy = Policy(
        act=lambda observation, carry, key: (
            jnp.zeros(observation.shape[:-1] + env.spec.action.shape),
            carry,
            {},
        ),
        init_carry=lambda: (),
    )
    source = rollout(env, num_envs=8, length=40)
    init_key, next_key = jax.random.split(key)

    @jax.jit
    def batch(init_key: jax.Array, next_key: jax.Array) -> Transition:
        return source.next(source.init(init_key, policy), policy, next_key)[1]

    return batch(init_key, next_key)


def advantage(batch: Transition, values: np.ndarray, lambda_: float) -> np.ndarray:
    values = jnp.asarray(values, jnp.float32)
    return np.asarray(
        generalized_advantage(
            batch.reward,
            batch.discount,
            batch.truncated,
            batch.observation @ values,
            batch.next_observation @ values,
            GAMMA,
            lambda_,
        )
    )


def least_squares(batch: Transition) -> np.ndarray:
    """The fixed point of TD(0) on a batch, by LSTD (Bradtke & Barto 1996)."""
    now = np.asarray(batch.observation, np.float64).reshape(-1, 3)
    after = np.asarray(batch.next_observation, np.float64).reshape(-1, 3)
    going = GAMMA * np.asarray(batch.discount, np.float64).reshape(-1, 1)
    reward = np.asarray(batch.reward, np.float64).reshape(-1)
    return np.linalg.solve(now.T @ (now - going * after), now.T @ reward)


@pytest.mark.parametrize("name", ["chain", "ring"])
def test_time_limit_gives_exact_values(
    name: str, adapt: Callable[[str], Env], key: jax.Array
) -> None:
    batch = collect(adapt(name), key)
    values = VALUES[name]

    # The batch has what it takes to go wrong.
    assert batch.truncated.sum() > 10
    assert (batch.discount == 0).any() == (name == "chain")

    for lambda_ in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(advantage(batch, values, lambda_), 0, atol=2e-6)
    returns = lambda_returns(
        batch.reward,
        batch.discount,
        batch.truncated,
        batch.next_observation @ jnp.asarray(values, jnp.float32),
        GAMMA,
        0.7,
    )
    np.testing.assert_allclose(
        returns, np.asarray(batch.observation) @ values, rtol=1e-5
    )
    np.testing.assert_allclose(least_squares(batch), values, rtol=1e-6)


@pytest.mark.parametrize("name", ["chain", "ring"])
def test_the_mistakes_of_the_field_are_seen(name: str, key: jax.Array) -> None:
    """The test above would fail if a cut were an end, or the successor a reset's."""
    batch = collect(ADAPTERS["probe"](name), key)
    dead = batch.replace(discount=jnp.where(batch.truncated, 0.0, batch.discount))
    assert np.abs(advantage(dead, VALUES[name], 1.0)).max() > 0.5
    assert np.abs(least_squares(dead) - VALUES[name]).max() > 0.3

    following = jnp.roll(batch.observation, -1, axis=0)
    ended = (batch.truncated | (batch.discount == 0))[..., None]
    reset = batch.replace(
        next_observation=jnp.where(ended, following, batch.next_observation)
    )
    assert np.abs(advantage(reset, VALUES[name], 0.0)).max() > 0.1
    assert np.abs(least_squares(reset) - VALUES[name]).max() > 0.05

    unmarked = batch.replace(truncated=jnp.zeros_like(batch.truncated))
    wrong = VALUES[name] + np.array([1.0, -1.0, 0.5])
    cut, uncut = (advantage(each, wrong, 1.0) for each in (batch, unmarked))
    assert np.abs(cut - uncut).max() > 0.1
