"""VPO: its derivation as identities, its special cases, its two conventions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlx.methods import dpo, vpo
from rlx.ops.sequences import Calibrated
from rlx.types import DataSource, Method
from tests.methods import language_cases as cases

PAIRS = cases.preferences(8)
MODEL = cases.model(reference=True)


def conformance_cases() -> dict[str, tuple[Method, DataSource]]:
    online = vpo.Config(setting="online", calibration="batch", learning_rate=1e-2)
    rows = Calibrated(PAIRS, cases.sequences(8, 3))
    return {
        "chosen": (vpo.make(MODEL, vpo.Config()), cases.source(PAIRS)),
        "calibrated": (vpo.make(MODEL, online), cases.source(rows)),
    }


def ratios(seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed).normal(size=(3, 6))
    return draw.astype(np.float32)


def world(prompts: int = 3, words: int = 4, seed: int = 0) -> tuple:
    """Reward, log π_ref, counts and calibration of a small world."""
    generator = np.random.default_rng(seed)
    reward = generator.normal(size=(prompts, words))
    reference = np.log(generator.dirichlet(np.ones(words), prompts))
    counts = generator.integers(0, 5, (prompts, words, words)).astype(float)
    calibration = generator.dirichlet(np.ones(words), prompts)
    return reward, reference, counts, calibration


def optimal(reward: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """log π ∝ π_ref e^{r/β}."""
    return jax.nn.log_softmax(reference + reward / beta, axis=-1)


def test_without_incentive_it_is_dpo() -> None:
    chosen, rejected, calibration = ratios()
    found = vpo.loss(chosen, rejected, calibration, beta=0.3, optimism=0.0)
    np.testing.assert_array_equal(found, dpo.loss(chosen, rejected, beta=0.3))


@pytest.mark.parametrize("optimism", [-0.4, 0.7])
def test_the_incentive_is_linear(optimism: float) -> None:
    chosen, rejected, calibration = ratios()
    found = vpo.loss(chosen, rejected, calibration, beta=0.3, optimism=optimism)
    extra = found - dpo.loss(chosen, rejected, beta=0.3)
    np.testing.assert_allclose(extra, optimism * 0.3 * calibration, atol=1e-6)


def test_optimism_stops_at_the_lowest_ratio_and_pessimism_does_not() -> None:
    def slope(optimism: float) -> jax.Array:
        zero = jnp.zeros(2)
        return jax.grad(
            lambda x: vpo.loss(
                zero, zero, x, beta=1.0, optimism=optimism, lowest=-3.0
            ).sum()
        )(jnp.array([-2.0, -4.0]))

    np.testing.assert_allclose(slope(0.5), [0.5, 0.0])
    np.testing.assert_allclose(slope(-0.5), [-0.5, -0.5])


def test_two_conventions_of_alpha(double_precision: None) -> None:
    """Mean + α_mean V has the gradient of (sum + α_sum V) / pairs."""
    reward, reference, counts, calibration = world()
    pairs = counts.sum()
    log_prob = optimal(reward, reference, 1.0)

    def value(optimism: float) -> jax.Array:
        return vpo.enumerated_loss(
            log_prob, reference, counts, calibration, beta=0.5, optimism=optimism
        )

    summed = pairs * value(0.0) + 3.0 * (value(1.0) - value(0.0))
    np.testing.assert_allclose(pairs * value(vpo.from_sum(3.0, pairs)), summed)


@pytest.mark.parametrize("optimism", [-0.5, 0.0, 0.8])
def test_policy_form_and_reward_form_agree(
    optimism: float, double_precision: None
) -> None:
    """At π ∝ π_ref e^{r/β}, for any r: β log Z − E_cal r = −β E_cal h."""
    reward, reference, counts, calibration = world()
    policy = vpo.enumerated_loss(
        optimal(reward, reference, 0.3),
        reference,
        counts,
        calibration,
        beta=0.3,
        optimism=optimism,
    )
    found = vpo.reward_loss(
        reward, reference, counts, calibration, beta=0.3, optimism=optimism
    )
    np.testing.assert_allclose(found, policy, rtol=1e-10)


def test_the_reward_form_does_not_see_shifts(double_precision: None) -> None:
    reward, *rest = world()
    shift = np.array([[1.0], [-5.0], [20.0]])
    before, after = (
        vpo.reward_loss(r, *rest, beta=0.3, optimism=0.7)
        for r in (reward, reward + shift)
    )
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_policy_form_and_reward_form_have_one_optimum(double_precision: None) -> None:
    _, reference, counts, calibration = world(1, 3)
    rest = (reference, counts, calibration)

    def minimise(loss_fn: object) -> jax.Array:
        optimizer = optax.lbfgs()
        start = jnp.zeros((1, 3))

        def step(carry: tuple, _: None) -> tuple:
            x, state = carry
            value, gradient = jax.value_and_grad(loss_fn)(x)
            updates, state = optimizer.update(
                gradient, state, x, value=value, grad=gradient, value_fn=loss_fn
            )
            return (optax.apply_updates(x, updates), state), None

        begin = (start, optimizer.init(start))
        (x, _), _ = jax.lax.scan(step, begin, length=60)
        return x

    options = {"beta": 0.5, "optimism": -0.6}
    logits = jax.jit(
        lambda: minimise(
            lambda x: vpo.enumerated_loss(jax.nn.log_softmax(x), *rest, **options)
        )
    )()
    reward = jax.jit(lambda: minimise(lambda r: vpo.reward_loss(r, *rest, **options)))()
    np.testing.assert_allclose(
        jax.nn.softmax(logits), np.exp(optimal(reward, reference, 0.5)), atol=1e-5
    )


def test_offline_calibrated_by_the_chosen_is_dpo_with_supervision() -> None:
    """RPO: the extra gradient is α β times that of the chosen ones' likelihood."""
    method = vpo.make(MODEL, vpo.Config(beta=0.4, alpha_mean=0.5))
    plain = dpo.make(MODEL, dpo.Config(beta=0.4))
    from rlx import learner
    from rlx.methods import _pairs

    state = learner.init(method, jax.random.key(0), 1)
    moved = jax.tree.map(lambda x: x * 1.1, state.params)
    _, batch = method.prepare(state, PAIRS)
    arguments = (state.target_params, (), batch, jax.random.key(0))
    weight = PAIRS.weight / PAIRS.weight.sum()

    def likelihood(params: object) -> jax.Array:
        found = _pairs.response_log_prob(MODEL.network, params, PAIRS.chosen, False)
        return jnp.sum(weight * found)

    @jax.jit
    def gradients(params: object) -> tuple:
        whole = jax.grad(lambda p: method.loss_fn(p, *arguments)[0])(params)
        part = jax.grad(lambda p: plain.loss_fn(p, *arguments)[0])(params)
        return whole, part, jax.grad(likelihood)(params)

    whole, part, extra = gradients(moved)
    expected = jax.tree.map(lambda p, e: p - 0.5 * 0.4 * e, part, extra)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        whole,
        expected,
    )


def test_at_the_reference_exact_calibration_has_no_gradient() -> None:
    """The score has mean zero: E_ref ∇ log π = 0 at π = π_ref."""
    _, reference, counts, _ = world()
    rest = (np.float32(reference), np.zeros_like(counts, np.float32))
    found = jax.grad(
        lambda x: vpo.enumerated_loss(
            jax.nn.log_softmax(x), *rest, np.exp(rest[0]), beta=0.5, optimism=1.0
        )
    )(jnp.asarray(rest[0]))
    np.testing.assert_allclose(found, 0.0, atol=1e-7)


def test_pessimism_alone_goes_to_the_calibration_distribution() -> None:
    _, reference, counts, calibration = map(np.float32, world())
    optimizer = optax.adam(0.05)

    def objective(logits: jax.Array) -> jax.Array:
        return vpo.enumerated_loss(
            jax.nn.log_softmax(logits),
            reference,
            0 * counts,
            calibration,
            beta=1.0,
            optimism=-1.0,
        )

    def step(carry: tuple, _: None) -> tuple:
        logits, state = carry
        updates, state = optimizer.update(jax.grad(objective)(logits), state)
        return (optax.apply_updates(logits, updates), state), None

    start = jnp.asarray(reference)
    (logits, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=1500)
    np.testing.assert_allclose(jax.nn.softmax(logits), calibration, atol=1e-3)


def test_gradients_by_finite_differences(double_precision: None) -> None:
    reward, *rest = world()
    for form in (vpo.reward_loss, vpo.enumerated_loss):

        def value(x: jax.Array, form: object = form) -> jax.Array:
            return form(x, *rest, beta=0.4, optimism=0.3)

        jax.test_util.check_grads(value, (jnp.asarray(reward),), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"alpha_mean": -1.0}, "alpha_mean must not be negative"),
        ({"setting": "both"}, "setting must be one of"),
        ({"calibration": "ref"}, "calibration must be one of"),
    ],
)
def test_impossible_configs_are_refused(change: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        vpo.make(MODEL, vpo.Config(**change))
