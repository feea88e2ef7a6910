"""What lets PPO and its relatives go on with a policy from elsewhere."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx import learner
from rlx.data.rollout import rollout
from rlx.methods import mdpo, ppo, trpo
from rlx.methods._on_policy_config import make_optimizer

SMALL = {"hidden_sizes": (8,), "num_minibatches": 2, "num_epochs": 1}
ENV = probe.make("pendulum", time_limit=10)


def params_of(config):
    method = ppo.make(ENV.spec, config)
    return method.init(jax.random.key(0))


def moved(before, after) -> dict[str, bool]:
    """Which entries of the parameters changed."""
    return {
        name: not all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True
            )
        )
        for name in before
    }


def steps(config, count: int):
    """Parameters after each of `count` steps of the optimiser, on ones as gradients."""
    optimizer = make_optimizer(config)
    params = params_of(config)
    state, found = optimizer.init(params), [params]
    gradient = jax.tree.map(jnp.ones_like, params)
    for _ in range(count):
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        found.append(params)
    return found


def test_the_value_has_a_step_size_of_its_own():
    found = steps(ppo.Config(**SMALL, learning_rate=1e-3, value_learning_rate=4e-3), 1)
    change = jax.tree.map(lambda a, b: a - b, *found)
    # Adam's first step is the step size, whatever the gradient's length.
    for name, part in change.items():
        expected = 4e-3 if name.startswith("value") else 1e-3
        for leaf in jax.tree.leaves(part):
            np.testing.assert_allclose(leaf, expected, rtol=1e-2)


def test_the_same_step_size_twice_is_the_step_size():
    plain = steps(ppo.Config(**SMALL), 3)[-1]
    twice = steps(ppo.Config(**SMALL, value_learning_rate=3e-4), 3)[-1]
    chex.assert_trees_all_close(plain, twice, rtol=1e-6)


def test_the_value_learns_alone_at_first():
    found = steps(ppo.Config(**SMALL, policy_warmup_steps=3), 4)
    for before, after in zip(found[:3], found[1:4], strict=True):
        names = moved(before, after)
        assert all(change == name.startswith("value") for name, change in names.items())
    assert all(moved(found[3], found[4]).values())


def test_schedules_run_on_through_the_warm_up():
    config = ppo.Config(
        **SMALL, learning_rate=1e-3, policy_warmup_steps=2, anneal_steps=4
    )
    found = steps(config, 4)
    before, after = (x["policy"]["kernel"] for x in found[2:4])
    # The third of four steps: half of the step size is left.
    np.testing.assert_allclose(before - after, 0.5e-3, rtol=1e-2)


@pytest.mark.parametrize("update", [True, False])
def test_the_moments_of_observations_can_stay(update):
    config = ppo.Config(**SMALL, update_observation_moments=update)
    method = ppo.make(ENV.spec, config)
    source = rollout(ENV, num_envs=4, length=8)

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 3)
        state = learner.init(method, keys[0], 4)
        acting = learner.policy(method, state)
        batch = source.next(source.init(keys[1], acting), acting, keys[2])[1]
        return state.stats, method.prepare(state, batch)[0]

    before, after = run(jax.random.key(3))
    changed = moved(before._asdict(), after._asdict())
    assert changed == {"observation": update, "reward": True}


@pytest.mark.parametrize(
    ("module", "fields", "message"),
    [
        (ppo, {"value_learning_rate": 0.0}, "value_learning_rate must be positive"),
        (ppo, {"policy_warmup_steps": -1}, "must not be negative"),
        (mdpo, {"value_learning_rate": 1e-3, "shared_torso": True}, "of its own"),
        (ppo, {"policy_warmup_steps": 5, "recurrent_size": 4}, "of its own"),
        (trpo, {"policy_warmup_steps": 5}, "natural steps"),
    ],
)
def test_impossible_fields_are_refused(module, fields, message):
    with pytest.raises(ValueError, match=message):
        module.make(ENV.spec, module.Config(**{**SMALL, **fields}))
