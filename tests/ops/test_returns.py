"""Returns against hand-worked numbers, naive sums, rlax and each other."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlx.ops import returns

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # rlax imports tensorflow_probability
    import rlax

GAMMA, LAMBDA = 0.9, 0.7
NUM_STEPS, NUM_ENVS = 11, 3


def trajectory(seed=0, ends=True, shape=(NUM_STEPS, NUM_ENVS), dtype=np.float32):
    """Random steps whose next_value is value one row below, save where cut."""
    rng = np.random.default_rng(seed)
    reward, value, next_value, log_ratio = (
        rng.normal(size=shape).astype(dtype) for _ in range(4)
    )
    discount = np.where(ends & (rng.random(shape) < 0.2), 0, 1).astype(dtype)
    truncated = ends & (rng.random(shape) < 0.2)
    next_value[:-1] = np.where(truncated[:-1], next_value[:-1], value[1:])
    return reward, discount, truncated, value, next_value, 0.5 * log_ratio


def column_segments(truncated):
    """(column, start, end) of the pieces between truncations."""
    for b in range(truncated.shape[1]):
        ends = sorted({*(np.flatnonzero(truncated[:, b]) + 1), len(truncated)})
        yield from ((b, i, j) for i, j in zip([0, *ends[:-1]], ends, strict=True))


# ------------------------------------------------------------------------- goldens


def golden():
    """Three episodes in five rows; gamma = lambda = 1/2.

    row  reward  discount  truncated  value  next_value
     0     1        1        no        2        4
     1     2        0        no        4        9   terminated: the 9 must not count
     2     3        1        yes       1        8   truncated: the 8 must count
     3     4        1        no        5        6
     4     5        1        no        6        2   last row: the 2 must count
    """
    return (
        jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        jnp.array([1.0, 0.0, 1.0, 1.0, 1.0]),
        jnp.array([False, False, True, False, False]),
        jnp.array([2.0, 4.0, 1.0, 5.0, 6.0]),
        jnp.array([4.0, 9.0, 8.0, 6.0, 2.0]),
    )


def test_generalized_advantage_golden():
    # delta = 1+2-2, 2+0-4, 3+4-1, 4+3-5, 5+1-6 = 1, -2, 6, 2, 0; gamma lambda = 1/4.
    # A4 = 0; A3 = 2+0; A2 = 6 (cut); A1 = -2 (ended); A0 = 1 - 2/4 = 0.5.
    advantage = returns.generalized_advantage(*golden(), 0.5, 0.5)
    np.testing.assert_array_equal(advantage, [0.5, -2, 6, 2, 0])


def test_lambda_returns_golden():
    reward, discount, truncated, _, next_value = golden()
    # G4 = 5+2/2 = 6; G3 = 4 + (6/2+6/2)/2 = 7; G2 = 3+8/2 = 7; G1 = 2;
    # G0 = 1 + (4/2 + 2/2)/2 = 2.5.
    result = returns.lambda_returns(reward, discount, truncated, next_value, 0.5, 0.5)
    np.testing.assert_array_equal(result, [2.5, 2, 7, 7, 6])


def test_discounted_returns_golden():
    reward, discount, truncated, _, next_value = golden()
    # G4 = 5+2/2 = 6; G3 = 4+6/2 = 7; G2 = 3+8/2 = 7; G1 = 2; G0 = 1+2/2 = 2.
    result = returns.discounted_returns(reward, discount, truncated, next_value, 0.5)
    np.testing.assert_array_equal(result, [2, 2, 7, 7, 6])


def test_n_step_returns_golden():
    steps = (
        jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]),
        jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]),
        jnp.array([False, False, True, False, False]),
        jnp.array([4.0, 6.0, 10.0, 12.0, 14.0]),
    )
    # n = 2, gamma = 1/2: row 0: 1+2/2+6/4 = 3.5; row 1: 2+4/2+10/4 = 6.5; row 2 is
    # truncated: 4+10/2 = 9; row 3: 8+16/2, ended = 16; row 4: 16.
    result = returns.n_step_returns(*steps, 0.5, 2)
    np.testing.assert_array_equal(result, [3.5, 6.5, 9, 16, 16])


def test_vtrace_golden():
    # Two rows, gamma = 1, lambda = 1, ratios 4 and 1/2, rho_bar = 2, c_bar = 1.
    # delta0 = 1+3-2 = 2, delta1 = 2+5-3 = 4; rho = 2, 1/2; c = 1, 1/2.
    # error1 = 4/2 = 2; error0 = 2*2 + 1*2 = 6; v = 8, 5.
    # A1 = (2+5-3)/2 = 2; A0 = 2*(1 + v1 - 2) = 2*4 = 8.
    output = returns.vtrace(
        jnp.array([1.0, 2.0]),
        jnp.ones(2),
        jnp.zeros(2, bool),
        jnp.array([2.0, 3.0]),
        jnp.array([3.0, 5.0]),
        jnp.log(jnp.array([4.0, 0.5])),
        returns.TraceConfig(gamma=1.0, rho_bar=2.0, c_bar=1.0),
    )
    np.testing.assert_allclose(output.value_target, [8, 5], rtol=1e-6)
    np.testing.assert_allclose(output.advantage, [8, 2], rtol=1e-6)


def test_retrace_golden():
    # Rows of ratio 4, 1/2 (c = 1, 1/2), gamma = 1: G1 = 2+5 = 7;
    # G0 = 1 + 3 + 1/2*(7 - 6) = 4.5. The first row's own ratio does not matter.
    result = returns.retrace(
        jnp.array([1.0, 2.0]),
        jnp.ones(2),
        jnp.zeros(2, bool),
        jnp.array([2.0, 6.0]),
        jnp.array([3.0, 5.0]),
        jnp.log(jnp.array([4.0, 0.5])),
        returns.TraceConfig(gamma=1.0),
    )
    np.testing.assert_allclose(result, [4.5, 7], rtol=1e-6)


def test_time_limit_is_not_death():
    # One state that pays 1 for ever, V = 1/(1-gamma) = 10: every return is V, however
    # often a time limit cuts the episode, and every advantage is 0.
    truncated = jnp.arange(12) % 4 == 3
    ones = jnp.ones(12)
    for lambda_ in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(
            returns.lambda_returns(ones, ones, truncated, 10 * ones, 0.9, lambda_),
            np.full(12, 10.0),
            rtol=1e-6,
        )
        np.testing.assert_allclose(
            returns.generalized_advantage(
                ones, ones, truncated, 10 * ones, 10 * ones, 0.9, lambda_
            ),
            np.zeros(12),
            atol=1e-5,
        )


# ---------------------------------------------------------- naive sums from the papers


def continues(discount, truncated, t):
    return discount[t] > 0 and not truncated[t] and t + 1 < len(discount)


def naive_n_step(reward, discount, truncated, next_value, gamma, n):
    result = np.zeros(len(reward))
    for start in range(len(reward)):
        for k in range(n):
            t = start + k
            result[start] += gamma**k * reward[t]
            if k == n - 1 or not continues(discount, truncated, t):
                result[start] += gamma ** (k + 1) * discount[t] * next_value[t]
                break
    return result


def naive_vtrace(reward, discount, truncated, value, next_value, log_ratio, config):
    """Eq. 1 of the IMPALA paper: a sum over k of products over i."""
    ratio = np.exp(log_ratio)
    gamma, lambda_, rho_bar, c_bar = config
    target = value.astype(float)
    for start in range(len(reward)):
        weight = 1.0
        for t in range(start, len(reward)):
            delta = reward[t] + gamma * discount[t] * next_value[t] - value[t]
            target[start] += weight * min(rho_bar, ratio[t]) * delta
            weight *= gamma * lambda_ * min(c_bar, ratio[t])
            if not continues(discount, truncated, t):
                break
    advantage = np.zeros(len(reward))
    for t in range(len(reward)):
        follows = continues(discount, truncated, t)
        after = target[t + 1] if follows else next_value[t]
        after = lambda_ * after + (1 - lambda_) * next_value[t]
        q = reward[t] + gamma * discount[t] * after
        advantage[t] = min(rho_bar, ratio[t]) * (q - value[t])
    return target, advantage


def naive_retrace(reward, discount, truncated, action_value, next_value, log_ratio, c):
    """Eq. 3 of the Retrace paper: Q plus a sum of temporal differences."""
    target = action_value.astype(float)
    for start in range(len(reward)):
        weight = 1.0
        for t in range(start, len(reward)):
            delta = reward[t] + c.gamma * discount[t] * next_value[t] - action_value[t]
            target[start] += weight * delta
            if not continues(discount, truncated, t):
                break
            trace = c.lambda_ * min(c.c_bar, np.exp(log_ratio[t + 1]))
            weight *= c.gamma * trace
    return target


def by_column(function, arrays, *args):
    columns = [
        function(*(x[:, b] for x in arrays), *args) for b in range(arrays[0].shape[1])
    ]
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *columns)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 3, 50])
def test_n_step_returns_naive(seed, n):
    reward, discount, truncated, _, next_value, _ = trajectory(seed)
    steps = (reward, discount, truncated, next_value)
    expected = by_column(naive_n_step, steps, GAMMA, n)
    actual = returns.n_step_returns(*steps, GAMMA, n)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


CLIPS = [(1.0, 1.0), (2.0, 0.5), (np.inf, np.inf)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rho_bar", "c_bar"), CLIPS)
def test_vtrace_naive(seed, rho_bar, c_bar):
    steps = trajectory(seed)
    config = returns.TraceConfig(GAMMA, LAMBDA, rho_bar, c_bar)
    target, advantage = by_column(naive_vtrace, steps, config)
    actual = returns.vtrace(*steps, config)
    np.testing.assert_allclose(actual.value_target, target, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(actual.advantage, advantage, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("c_bar", [1.0, np.inf])
def test_retrace_naive(seed, c_bar):
    steps = trajectory(seed)
    config = returns.TraceConfig(GAMMA, LAMBDA, c_bar=c_bar)
    expected = by_column(naive_retrace, steps, config)
    actual = returns.retrace(*steps, config)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


# ------------------------------------------------- rlax, on the pieces between cuts


@pytest.mark.parametrize("seed", range(3))
def test_rlax_between_truncations(seed):
    reward, discount, truncated, value, next_value, log_ratio = trajectory(seed)
    config = returns.TraceConfig(GAMMA, LAMBDA)
    advantage = returns.generalized_advantage(
        reward, discount, truncated, value, next_value, GAMMA, LAMBDA
    )
    target = returns.lambda_returns(
        reward, discount, truncated, next_value, GAMMA, LAMBDA
    )
    vtrace = returns.vtrace(
        reward, discount, truncated, value, next_value, log_ratio, config
    )
    for b, i, j in column_segments(truncated):
        r, d, v, after = (x[i:j, b] for x in (reward, discount, value, next_value))
        ratio = jnp.exp(log_ratio[i:j, b])
        d = GAMMA * d
        values = np.append(v, after[-1])
        close = dict(rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(
            advantage[i:j, b],
            rlax.truncated_generalized_advantage_estimation(r, d, LAMBDA, values),
            **close,
        )
        np.testing.assert_allclose(
            target[i:j, b], rlax.lambda_returns(r, d, after, LAMBDA), **close
        )
        oracle = rlax.vtrace_td_error_and_advantage(v, after, r, d, ratio, LAMBDA)
        np.testing.assert_allclose(
            vtrace.value_target[i:j, b] - v, oracle.errors, **close
        )
        np.testing.assert_allclose(
            vtrace.advantage[i:j, b], oracle.pg_advantage, **close
        )


def test_rlax_n_step_and_retrace():
    reward, discount, truncated, value, next_value, log_ratio = trajectory(
        ends=False, shape=(NUM_STEPS,)
    )
    np.testing.assert_allclose(
        returns.n_step_returns(reward, discount, truncated, next_value, GAMMA, 4),
        rlax.n_step_bootstrapped_returns(reward, GAMMA * discount, next_value, 4),
        rtol=1e-5,
    )
    config = returns.TraceConfig(GAMMA, LAMBDA)
    # rlax takes traces and Q of rows 1 ... T-1 and state values of rows 1 ... T.
    oracle = rlax.general_off_policy_returns_from_q_and_v(
        value[1:],
        next_value,
        reward,
        GAMMA * discount,
        LAMBDA * jnp.minimum(1, jnp.exp(log_ratio[1:])),
    )
    actual = returns.retrace(
        reward, discount, truncated, value, next_value, log_ratio, config
    )
    np.testing.assert_allclose(actual, oracle, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------- reductions


@pytest.mark.parametrize("seed", range(3))
def test_reductions(seed):
    reward, discount, truncated, value, next_value, _ = trajectory(seed)
    steps = (reward, discount, truncated, next_value)
    close = dict(rtol=1e-5, atol=2e-6)
    monte_carlo = returns.discounted_returns(*steps, GAMMA)
    one_step = reward + GAMMA * discount * next_value
    np.testing.assert_array_equal(
        returns.lambda_returns(*steps, GAMMA, 1.0), monte_carlo
    )
    np.testing.assert_allclose(
        returns.n_step_returns(*steps, GAMMA, NUM_STEPS), monte_carlo, **close
    )
    np.testing.assert_allclose(
        returns.lambda_returns(*steps, GAMMA, 0.0), one_step, **close
    )
    np.testing.assert_array_equal(returns.n_step_returns(*steps, GAMMA, 1), one_step)
    target = returns.lambda_returns(*steps, GAMMA, LAMBDA)
    advantage = returns.generalized_advantage(
        reward, discount, truncated, value, next_value, GAMMA, LAMBDA
    )
    np.testing.assert_allclose(advantage + value, target, **close)

    # On-policy V-trace is the lambda-return, and its advantage is GAE.
    config = returns.TraceConfig(GAMMA, LAMBDA)
    on_policy = returns.vtrace(
        reward, discount, truncated, value, next_value, np.zeros_like(value), config
    )
    np.testing.assert_allclose(on_policy.value_target, target, **close)
    np.testing.assert_allclose(on_policy.advantage, advantage, **close)
    # On-policy Retrace with Q of the actions taken is the lambda-return.
    on_policy = returns.retrace(
        reward, discount, truncated, value, next_value, np.zeros_like(value), config
    )
    np.testing.assert_allclose(on_policy, target, **close)


def test_linear_recurrence_carries_the_final_value():
    # x1 = 1 + 2*5 = 11, x0 = 3 + 4*11 = 47.
    result = returns.linear_recurrence(
        jnp.array([3.0, 1.0]), jnp.array([4.0, 2.0]), jnp.array(5.0)
    )
    np.testing.assert_array_equal(result, [47, 11])


# --------------------------------------------------- every function: the same promises

STEPS_NO_VALUE = [0, 1, 2, 4]
TRACE = (GAMMA, LAMBDA, 1.5, 0.8)


def trace(function):
    """The same function with the fields of its TraceConfig spread out."""
    return lambda *args: function(*args[:6], returns.TraceConfig(*args[6:]))


FUNCTIONS = {
    "generalized_advantage": (
        returns.generalized_advantage,
        [0, 1, 2, 3, 4],
        (GAMMA, LAMBDA),
    ),
    "lambda_returns": (returns.lambda_returns, STEPS_NO_VALUE, (GAMMA, LAMBDA)),
    "discounted_returns": (returns.discounted_returns, STEPS_NO_VALUE, (GAMMA,)),
    "n_step_returns": (
        lambda *args: returns.n_step_returns(*args, 3),
        STEPS_NO_VALUE,
        (GAMMA,),
    ),
    "vtrace": (trace(returns.vtrace), range(6), TRACE),
    "retrace": (trace(returns.retrace), range(6), TRACE),
}


@pytest.fixture(params=FUNCTIONS, name="case")
def fixture_case(request):
    function, fields, weights = FUNCTIONS[request.param]
    return (
        function,
        lambda *args, **kw: [trajectory(*args, **kw)[i] for i in fields],
        (weights),
    )


def assert_close(actual, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6),
        actual,
        expected,
    )


def test_eager_jit_vmap_agree(case):
    function, make, weights = case
    steps = make()
    expected = function(*steps, *weights)
    assert_close(jax.jit(function)(*steps, *weights), expected)
    axes = (1,) * len(steps) + (None,) * len(weights)
    assert_close(jax.vmap(function, axes, out_axes=1)(*steps, *weights), expected)
    # A sweep over gamma is a vmap over a float.
    axes = (None,) * len(steps) + (0,) + (None,) * (len(weights) - 1)
    gammas = jnp.array([0.0, weights[0], 1.0])
    swept = jax.vmap(function, axes)(*steps, gammas, *weights[1:])
    assert_close(jax.tree.map(lambda x: x[1], swept), expected)


def test_any_trailing_axes(case):
    function, make, weights = case
    deep = make(shape=(NUM_STEPS, 2, 3))
    flat = [x.reshape(NUM_STEPS, 6) for x in deep]
    result = jax.tree.map(lambda x: x.reshape(NUM_STEPS, 6), function(*deep, *weights))
    assert_close(result, function(*flat, *weights))


def test_no_row_leaks_over_an_episode_end(case):
    function, make, weights = case
    steps = make(ends=False)
    changed = [x.copy() for x in steps]
    for ending in (steps, changed):
        ending[1][3, 0] = 0.0  # terminated
        ending[2][5, 1] = True  # truncated
    for x in changed:
        if x.dtype != bool:
            x[4:, 0], x[6:, 1] = 7.0, 7.0
    changed[1][4:, 0] = changed[1][6:, 1] = 1.0
    for x, y in zip(
        jax.tree.leaves(function(*steps, *weights)),
        jax.tree.leaves(function(*changed, *weights)),
        strict=True,
    ):
        np.testing.assert_array_equal(x[:4, 0], y[:4, 0])
        np.testing.assert_array_equal(x[:6, 1], y[:6, 1])


def test_gradients_equal_finite_differences(case):
    function, make, weights = case
    with jax.enable_x64(True):
        steps = [jnp.asarray(x) for x in make(shape=(5, 2), dtype=np.float64)]
        discount, truncated = steps[1:3]

        def of_floats(reward, *rest):
            return function(reward, discount, truncated, *rest)

        weights = tuple(jnp.float64(x) for x in weights)
        args = (steps[0], *steps[3:], *weights)
        check_grads(jax.jit(of_floats), args, order=1, rtol=1e-6)


def test_successor_of_a_terminated_step_has_no_gradient(case):
    function, make, weights = case
    steps = make()
    position = 3 if len(steps) == 4 else 4

    def total(next_value):
        replaced = [*steps[:position], next_value, *steps[position + 1 :]]
        return sum(x.sum() for x in jax.tree.leaves(function(*replaced, *weights)))

    gradient = jax.grad(total)(jnp.asarray(steps[position]))
    terminated = steps[1] == 0
    np.testing.assert_array_equal(gradient[terminated], 0)
    assert np.abs(gradient[steps[2] & ~terminated]).min() > 0


def test_wrong_shapes_raise(case):
    function, make, weights = case
    steps = make(shape=(NUM_STEPS,))
    for i, x in enumerate(steps):
        mixed = [*steps[:i], x[:, None], *steps[i + 1 :]]  # [T, 1] among [T]
        with pytest.raises(AssertionError):
            function(*mixed, *weights)


def test_bad_input_raises(case):
    function, make, weights = case
    steps = make()
    with pytest.raises(AssertionError):
        function(*steps, jnp.full(NUM_ENVS, GAMMA), *weights[1:])  # gamma is a scalar
    with pytest.raises(AssertionError):
        function(*(x[:0] for x in steps), *weights)  # no time steps
    with pytest.raises(AssertionError):
        function(*(np.asarray(x[0, 0]) for x in steps), *weights)  # no time axis
    steps[2] = steps[2].astype(np.float32)
    with pytest.raises(AssertionError):
        function(*steps, *weights)  # truncated is a bool


def test_n_below_one_raises():
    reward, discount, truncated, _, next_value, _ = trajectory()
    with pytest.raises(ValueError, match="at least 1"):
        returns.n_step_returns(reward, discount, truncated, next_value, GAMMA, 0)


def test_clipped_ratios_do_not_overflow():
    reward, discount, truncated, value, next_value, _ = trajectory()

    def total(log_ratio):
        output = returns.vtrace(
            reward,
            discount,
            truncated,
            value,
            next_value,
            log_ratio,
            returns.TraceConfig(GAMMA),
        )
        return output.value_target.sum() + output.advantage.sum()

    total, gradient = jax.value_and_grad(total)(jnp.full_like(reward, 1e4))
    assert np.isfinite(total)
    np.testing.assert_array_equal(gradient, 0)
