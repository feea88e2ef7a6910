"""Value losses and temporal differences against hand-worked numbers and rlax."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlx.ops import values

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # rlax imports tensorflow_probability
    import rlax

GAMMA = 0.9
B, A = 6, 4


def floats(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def probs(seed):
    return jax.nn.softmax(floats(seed, B, A))


ACTION = jnp.array([0, 3, 1, 2, 2, 0])
DISCOUNT = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])

# name: function, float arrays, which of them are predictions, other arguments
CASES = {
    "squared_error": (values.squared_error, [floats(0, B), floats(1, B)], [0]),
    "huber": (
        lambda value, target: values.huber(value, target, 0.7),
        [floats(0, B), floats(1, B)],
        [0],
    ),
    "clipped_value_loss": (
        lambda value, old, target: values.clipped_value_loss(value, old, target, 0.5),
        [floats(0, B), floats(1, B), floats(2, B)],
        [0],
    ),
    "expectile_loss": (
        lambda value, target: values.expectile_loss(value, target, 0.8),
        [floats(0, B), floats(1, B)],
        [0],
    ),
    "quantile_huber": (
        lambda theta, level, target: values.quantile_huber(theta, level, target, 0.7),
        [floats(0, B, 3), jax.nn.sigmoid(floats(1, B, 3)), floats(2, B, 5)],
        [0, 1],
    ),
    "td_error": (
        lambda *args: values.td_error(*args, GAMMA),
        [floats(0, B), floats(1, B), DISCOUNT, floats(2, B)],
        [0],
    ),
    "q_learning_error": (
        lambda q, *args: values.q_learning_error(q, ACTION, *args, GAMMA),
        [floats(0, B, A), floats(1, B), DISCOUNT, floats(2, B, A)],
        [0],
    ),
    "double_q_error": (
        lambda q, *args: values.double_q_error(q, ACTION, *args, GAMMA),
        [floats(0, B, A), floats(1, B), DISCOUNT, floats(2, B, A), floats(3, B, A)],
        [0],
    ),
    "expected_sarsa_error": (
        lambda q, *args: values.expected_sarsa_error(q, ACTION, *args, GAMMA),
        [floats(0, B, A), floats(1, B), DISCOUNT, floats(2, B, A), probs(3)],
        [0],
    ),
}


@pytest.fixture(params=CASES, name="case")
def fixture_case(request):
    return CASES[request.param]


# ------------------------------------------------------------------------- goldens


def test_losses_golden():
    value, target = jnp.array([1.0, 1.0, 1.0]), jnp.array([1.5, 4.0, -1.0])
    # u = 0.5, 3, -2.
    np.testing.assert_array_equal(values.squared_error(value, target), [0.25, 9, 4])
    # 0.5*0.25; 1*(3 - 0.5); 1*(2 - 0.5).
    np.testing.assert_array_equal(values.huber(value, target), [0.125, 2.5, 1.5])
    # 3/4 for positive u, 1/4 for negative.
    expected = [0.75 * 0.25, 0.75 * 9, 0.25 * 4]
    np.testing.assert_array_equal(values.expectile_loss(value, target, 0.75), expected)


def test_clipped_value_loss_golden():
    # eps = 1/2, V_old = 0, target 2. V = 1/4: not clipped, (7/4)^2. V = 1: clipped to
    # 1/2, (3/2)^2 > 1. V = -1: clipped to -1/2, (5/2)^2 < 3^2.
    value, target = jnp.array([0.25, 1.0, -1.0]), jnp.full(3, 2.0)

    def total(value):
        loss = values.clipped_value_loss(value, jnp.zeros(3), target, 0.5)
        return loss.sum(), loss

    gradient, loss = jax.grad(total, has_aux=True)(value)
    np.testing.assert_array_equal(loss, [49 / 16, 9 / 4, 9])
    # -2(2 - V), but 0 where the value has already moved far enough.
    np.testing.assert_array_equal(gradient, [-3.5, 0, -6])


def test_clipped_value_loss_has_the_whole_gradient_at_first():
    value = jnp.array([0.0, 1.0])
    gradient = jax.grad(
        lambda v: values.clipped_value_loss(v, value, jnp.full(2, 3.0), 0.2).sum()
    )(value)
    np.testing.assert_array_equal(gradient, [-6, -4])


def test_temporal_differences_golden():
    q, next_q = jnp.array([[1.0, 2.0]] * 2), jnp.array([[6.0, 4.0]] * 2)
    action, reward = jnp.array([1, 0]), jnp.array([3.0, 3.0])
    discount = jnp.array([1.0, 0.0])
    # Rows: 3 + bootstrap/2 - 2, and 3 - 1 at termination.
    steps = (q, action, reward, discount, next_q)
    error = values.q_learning_error(*steps, 0.5)  # max = 6
    np.testing.assert_array_equal(error, [4, 2])
    selector = jnp.array([[0.0, 1.0]] * 2)  # selects the second: 4
    error = values.double_q_error(*steps, selector, 0.5)
    np.testing.assert_array_equal(error, [3, 2])
    policy = jnp.array([[0.25, 0.75]] * 2)  # 6/4 + 12/4 = 4.5
    error = values.expected_sarsa_error(*steps, policy, 0.5)
    np.testing.assert_array_equal(error, [3.25, 2])


def test_quantile_huber_golden():
    # theta 0 at level 1/4, targets 2 and -1, kappa = 1: (1/4 * 3/2 + 3/4 * 1/2)/2.
    loss = values.quantile_huber(
        jnp.array([0.0]), jnp.array([0.25]), jnp.array([2.0, -1.0])
    )
    np.testing.assert_array_equal(loss, 0.375)


# ---------------------------------------------------------------------------- rlax


def test_against_rlax():
    q, next_q, selector, policy = (
        floats(0, B, A),
        floats(1, B, A),
        floats(2, B, A),
        (probs(3)),
    )
    reward, close = floats(4, B), dict(rtol=1e-5, atol=1e-6)
    steps = (q, ACTION, reward, DISCOUNT, next_q)
    rlax_steps = (q, ACTION, reward, GAMMA * DISCOUNT, next_q)
    np.testing.assert_allclose(
        values.q_learning_error(*steps, GAMMA),
        jax.vmap(rlax.q_learning)(*rlax_steps),
        **close,
    )
    np.testing.assert_allclose(
        values.double_q_error(*steps, selector, GAMMA),
        jax.vmap(rlax.double_q_learning)(*rlax_steps, selector),
        **close,
    )
    np.testing.assert_allclose(
        values.expected_sarsa_error(*steps, policy, GAMMA),
        jax.vmap(rlax.expected_sarsa)(*rlax_steps, policy),
        **close,
    )
    value, next_value = floats(5, B), floats(6, B)
    np.testing.assert_allclose(
        values.td_error(value, reward, DISCOUNT, next_value, GAMMA),
        jax.vmap(rlax.td_learning)(value, reward, GAMMA * DISCOUNT, next_value),
        **close,
    )
    np.testing.assert_allclose(
        values.huber(value, next_value, 0.7),
        rlax.huber_loss(next_value - value, 0.7),
        **close,
    )
    np.testing.assert_allclose(
        values.expectile_loss(value, next_value, 0.8),
        rlax.expectile_loss(value, next_value, 0.8),
        **close,
    )
    theta, targets = floats(7, B, 3), floats(8, B, 5)
    levels = jax.nn.sigmoid(floats(9, B, 3))
    oracle = jax.vmap(rlax.quantile_regression_loss, (0, 0, 0, None))
    # rlax does not divide by kappa; the paper does.
    np.testing.assert_allclose(
        0.7 * values.quantile_huber(theta, levels, targets, 0.7),
        oracle(theta, levels, targets, 0.7),
        **close,
    )


# ----------------------------------------------------------------------- reductions


def test_reductions():
    value, target, old = 3 * floats(0, B), 3 * floats(1, B), floats(2, B)
    square = values.squared_error(value, target)
    for half in (
        values.huber(value, target, 1e6),
        values.expectile_loss(value, target, 0.5),
    ):
        np.testing.assert_allclose(half, square / 2, rtol=1e-6)
    wide = values.clipped_value_loss(value, old, target, jnp.inf)
    np.testing.assert_allclose(wide, square, rtol=1e-6)
    q, next_q, reward = floats(0, B, A), floats(1, B, A), floats(2, B)
    steps = (q, ACTION, reward, DISCOUNT, next_q)
    expected = values.q_learning_error(*steps, GAMMA)
    greedy = jax.nn.one_hot(jnp.argmax(next_q, -1), A)
    for same in (
        values.double_q_error(*steps, next_q, GAMMA),
        values.expected_sarsa_error(*steps, greedy, GAMMA),
    ):
        np.testing.assert_allclose(same, expected, rtol=1e-6)


def test_expectile_of_uniform_targets():
    # The minimum solves tau E[(x - v)+] = (1 - tau) E[(v - x)+]; for x uniform on
    # [0, 1] that is tau (1 - v)^2 = (1 - tau) v^2: tau = 0.8 gives v = 2/3.
    targets = (jnp.arange(1000) + 0.5) / 1000
    gradient = jax.grad(
        lambda v: values.expectile_loss(jnp.full(1000, v), targets, 0.8).mean()
    )
    assert abs(gradient(2 / 3)) < 1e-5
    assert gradient(0.6) < -0.01 < 0.01 < gradient(0.75)


# ------------------------------------------------------------------ shared promises


def test_eager_jit_vmap_agree(case):
    function, arrays, _ = case
    expected = function(*arrays)
    assert expected.shape == (B,)
    np.testing.assert_allclose(jax.jit(function)(*arrays), expected, rtol=1e-5)
    twice = [jnp.stack([x, x]) for x in arrays]
    if ACTION.shape == arrays[1].shape and arrays[0].ndim == 2:
        mapped = jax.vmap(function)(*twice)  # the closure holds actions [B]
    else:
        mapped = function(*twice)
    np.testing.assert_allclose(mapped[1], expected, rtol=1e-5)


def test_gradients(case):
    function, arrays, predictions = case
    with jax.enable_x64(True):
        wide = [x.astype(jnp.float64) for x in arrays]

        def of_predictions(*chosen):
            replaced = dict(zip(predictions, chosen, strict=True))
            return function(*(replaced.get(i, x) for i, x in enumerate(wide)))

        chosen = tuple(wide[i] for i in predictions)
        check_grads(jax.jit(of_predictions), chosen, 1, rtol=1e-6)
    constants = [i for i in range(len(arrays)) if i not in predictions]
    gradients = jax.grad(lambda *x: function(*x).sum(), constants)(*arrays)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_wrong_shapes_raise(case):
    function, arrays, _ = case
    for i, x in enumerate(arrays):
        for wrong in (x[:, None], x[:1], x[0]):
            with pytest.raises(AssertionError):
                function(*arrays[:i], wrong, *arrays[i + 1 :])


def test_hyper_parameters_are_scalars():
    x, wrong = jnp.zeros(3), jnp.zeros(3)
    for call in (
        lambda: values.huber(x, x, wrong),
        lambda: values.clipped_value_loss(x, x, x, wrong),
        lambda: values.expectile_loss(x, x, wrong),
        lambda: values.td_error(x, x, x, x, wrong),
        lambda: values.quantile_huber(x, x, x, wrong),
    ):
        with pytest.raises(AssertionError):
            call()


def test_value_of_action():
    q = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(values.value_of_action(q, jnp.array([1, 0])), [2, 3])
    assert np.isnan(values.value_of_action(q, jnp.array([2, -1]))).all()
    with pytest.raises(AssertionError):
        values.value_of_action(q, jnp.array([1.0, 0.0]))
    for shape in [(), (2, 1), (2, 2), (1,)]:
        with pytest.raises(AssertionError):
            values.value_of_action(q, jnp.zeros(shape, int))


@pytest.mark.parametrize("size", [1e-30, 1e18])
def test_extremes_stay_finite(case, size):
    function, arrays, _ = case
    loss, gradient = jax.value_and_grad(lambda x, *rest: function(x, *rest).sum())(
        arrays[0] * size, *arrays[1:]
    )
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
