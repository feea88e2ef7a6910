"""Contracts that every method keeps. A new method is tested by being in its folder."""

from __future__ import annotations

import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import checkpoint, train
from tests.methods import conformance

CASES = conformance.all_cases()
MODULES = conformance.method_modules()
SEEDS = 3


@functools.cache
def compiled(name: str):
    """`init` and `advance` (2 iterations) of a case, compiled once for all tests."""
    method, source = CASES[name]
    init = jax.jit(lambda key: train.init(method, source, key))
    advance = jax.jit(lambda state: train.run(method, source, state, 2))
    return init, advance


@functools.cache
def prepared(name: str):
    """A learner and a prepared batch of a case."""
    return conformance.first_batch(*CASES[name])


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_method_module_has_the_grammar(module):
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    assert list(inspect.signature(module.make).parameters)[:2] == ["spec", "config"]
    assert module.Config() == module.Config()
    hash(module.Config())


def _moved(leaf):
    """A leaf with a little added, not the same in all its places."""
    if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
        return leaf
    wave = jnp.sin(1.0 + jnp.arange(leaf.size, dtype=leaf.dtype))
    return leaf + 0.02 * wave.reshape(leaf.shape)


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_same_eager_and_compiled(name):
    method, _ = CASES[name]
    state, batch = prepared(name)
    # A start is a special point: there a policy may equal its reference, and whatever
    # compares the two would be decided by rounding.
    params = jax.tree.map(_moved, state.params)
    arguments = (params, state.target_params, state.stats, batch)
    eager = method.loss_fn(*arguments, jax.random.key(3))
    jitted = jax.jit(method.loss_fn)(*arguments, jax.random.key(3))
    assert eager[0].shape == ()
    chex.assert_trees_all_close(eager, jitted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_and_leave_the_batch_alone(name):
    method, _ = CASES[name]
    state, batch = prepared(name)

    def loss(params):
        return method.loss_fn(
            params, state.target_params, state.stats, batch, jax.random.key(3)
        )[0]

    gradient = jax.jit(jax.grad(loss))(state.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, state.params)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("name", CASES)
def test_vmapped_seeds_equal_solo_runs(name):
    init, advance = compiled(name)
    keys = jax.random.split(jax.random.key(0), SEEDS)
    together, _ = jax.jit(jax.vmap(advance))(jax.jit(jax.vmap(init))(keys))
    for i in range(SEEDS):
        alone, _ = advance(init(keys[i]))
        mine = jax.tree.map(lambda x, i=i: x[i], together)
        chex.assert_trees_all_close(
            mine.learner.params, alone.learner.params, rtol=1e-4, atol=1e-5
        )
        # Second moments and rounding remainders are small differences of sums.
        chex.assert_trees_all_close(
            _numbers(mine.learner), _numbers(alone.learner), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("name", CASES)
def test_a_program_compiles_once_and_repeats_exactly(name):
    init, advance = compiled(name)
    state = init(jax.random.key(4))
    first, _ = advance(state)
    second, _ = advance(state)
    chex.assert_trees_all_equal(_numbers(first), _numbers(second))
    advance(first)
    assert advance._cache_size() == 1
    assert init._cache_size() == 1


@pytest.mark.parametrize("name", CASES)
def test_no_key_is_used_twice(name):
    method, source = CASES[name]
    with jax.debug_key_reuse(True):
        state = jax.jit(lambda key: train.init(method, source, key))(jax.random.key(0))
        jax.jit(lambda state: train.step(method, source, state))(state)


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_state_goes_on_exactly(name, tmp_path):
    init, advance = compiled(name)
    middle, _ = advance(init(jax.random.key(5)))
    checkpoint.save(tmp_path, 1, middle)
    loaded = checkpoint.load(tmp_path, jax.eval_shape(lambda: middle))
    chex.assert_trees_all_equal(_numbers(loaded), _numbers(middle))
    unbroken, _ = advance(middle)
    resumed, _ = advance(loaded)
    chex.assert_trees_all_equal(_numbers(resumed), _numbers(unbroken))


@pytest.mark.parametrize("name", CASES)
def test_learning_changes_parameters_and_counts_steps(name):
    method, _ = CASES[name]
    init, advance = compiled(name)
    before = init(jax.random.key(6))
    after, metrics = advance(before)
    assert int(after.iteration) == 2
    assert int(after.learner.step) > 0
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), before.learner.params, after.learner.params
    )
    assert any(jax.tree.leaves(moved))
    for metric, value in metrics.items():
        assert value.shape == (2,), metric
    assert np.all(np.asarray(metrics["learner_finite"]) == 1)


@pytest.mark.parametrize("name", CASES)
def test_extreme_numbers_stay_finite(name):
    method, _ = CASES[name]
    state, batch = prepared(name)
    huge = jax.tree.map(
        lambda x: x * 1e4 if jnp.issubdtype(x.dtype, jnp.floating) else x, batch
    )
    loss, _ = jax.jit(method.loss_fn)(
        state.params, state.target_params, state.stats, huge, jax.random.key(7)
    )
    assert bool(jnp.isfinite(loss))


@pytest.mark.parametrize("name", [k for k, (_, s) in CASES.items() if s.env])
def test_without_a_key_the_policy_is_deterministic(name):
    method, source = CASES[name]
    state, _ = prepared(name)
    _, observation = source.env.reset(jax.random.key(8))
    carry = method.init_carry()
    actions = [
        method.act(state.params, state.stats, observation, carry, None)[0]
        for _ in range(2)
    ]
    chex.assert_trees_all_equal(*actions)
    spaces = jax.tree.leaves(source.env.spec.action)
    for action, space in zip(jax.tree.leaves(actions[0]), spaces, strict=True):
        chex.assert_shape(action, space.shape)
        assert action.dtype == space.dtype


def _array_arguments(loss) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(loss).parameters.values()
    return [p.name for p in parameters if p.kind in kinds]


def _required_keywords(loss) -> dict[str, float]:
    """A value for every keyword that a loss cannot do without."""
    return {
        name: 0.5
        for name, p in inspect.signature(loss).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is p.empty
    }


def elementwise_losses():
    """Losses whose positional arguments are arrays of one shape, by annotation."""
    return {
        name: module.loss
        for name, module in MODULES.items()
        if hasattr(module, "loss")
        and all(
            inspect.signature(module.loss).parameters[argument].annotation == "Array"
            for argument in _array_arguments(module.loss)
        )
    }


def test_the_elementwise_losses_are_found():
    assert {"ppo", "mdpo"} <= set(elementwise_losses())


@pytest.mark.parametrize(
    "loss", elementwise_losses().values(), ids=elementwise_losses()
)
def test_an_elementwise_loss_refuses_shapes_that_would_broadcast(loss):
    names = _array_arguments(loss)
    if len(names) == 1:  # one array has nothing to broadcast with
        assert loss(jnp.ones((4, 1))).shape == (4, 1)
        return
    keywords = _required_keywords(loss)
    good = {name: jnp.linspace(0.1, 1.0, 4) for name in names}
    assert loss(**good, **keywords).shape == (4,)
    for name in names:
        bad = {**good, name: good[name][:, None]}
        with pytest.raises(AssertionError):
            loss(**bad, **keywords)


@pytest.mark.parametrize(
    "loss", elementwise_losses().values(), ids=elementwise_losses()
)
def test_an_elementwise_loss_refuses_integers(loss):
    names = _array_arguments(loss)
    keywords = _required_keywords(loss)
    with pytest.raises(AssertionError):
        loss(**{name: jnp.arange(4) for name in names}, **keywords)


def _numbers(tree):
    """Typed keys as their numbers, for comparisons."""
    return jax.tree.map(
        lambda x: (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        ),
        tree,
    )
