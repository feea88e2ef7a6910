# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # An option priced from paths alone
#
# A European call pays $h(S_T) = \max(S_T - K, 0)$. Its price $J(t, S)$ is the value
# function of a "policy" that does nothing; $M_t = e^{-rt} J(t, S_t)$ is a martingale.
# So we look for a function that makes $M$ a martingale *on the paths that we saw*; no
# volatility is estimated and no partial differential equation is solved
# ([Jia & Zhou 2022](https://arxiv.org/abs/2108.06655)).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from envs import diffusion
from rlx import loop
from rlx.data.paths import recorded
from rlx.methods import martingale
from rlx.networks.features import linear_family

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# The paths. They come from a geometric Brownian motion with 30 % volatility, which the
# rest of the notebook does not know.

# %%
problem = diffusion.call_option(strike=1.0, rate=0.01, volatility=0.3)
# Starting prices are spread out, to see the whole curve.
problem = problem._replace(
    initial=lambda key: jax.random.uniform(key, (1,), minval=0.6, maxval=1.5)
)
time = diffusion.mesh(1.0, 1 / 50)
paths = diffusion.simulate(problem, jax.random.key(0), time, 4000, "exact")
batch = diffusion.transitions(problem, paths)

plt.plot(time, paths.state[:, :40, 0], lw=0.6)
plt.xlabel("years")
plt.ylabel("stock")
plt.title("40 of 4000 paths")
plt.show()

# %% [markdown]
# The family. Today's payoff, plus bumps in the log-moneyness that grow like
# $\sqrt{T - t}$: bell curves of four widths, each level or sloping. It says that an
# option is worth most above its payoff near the strike, and nothing about how much.


# %%
def payoff(observation):
    left, stock = 1.0 - observation[..., 0], observation[..., 1]
    return jnp.maximum(stock - jnp.exp(-0.01 * left), 0.0)


def bumps(observation):
    left = jnp.maximum(1.0 - observation[..., 0], 1e-9)[..., None]
    money = jnp.log(observation[..., 1])[..., None]
    widths = jnp.array([0.1, 0.2, 0.4, 0.8]).reshape((1,) * (money.ndim - 1) + (4,))
    level = jnp.exp(-0.5 * money**2 / (widths**2 * left)) * jnp.sqrt(left)
    return jnp.concatenate([level, level * money], -1)


family = linear_family(bumps, 8, payoff)
spec = diffusion.make(problem, 1 / 50).spec

# %% [markdown]
# Three criteria on the same recorded paths. `clstd` solves the orthogonality conditions
# at once; `ml` descends the martingale loss; `mean_square_td` descends the error that
# the theory rejects. Each is one word of a configuration.


# %%
def learn(algorithm, iterations, **options):
    config = martingale.Config(algorithm, discount_rate=0.01, **options)
    method = martingale.make(spec, config, family)
    source = recorded(batch)
    state = loop.init(method, source, jax.random.key(1))
    state, _ = jax.jit(lambda s: loop.run(method, source, s, iterations))(state)
    return state.learner.params["value"]


found = {
    "clstd": learn("clstd", 1),
    "clstd, λ = 1": learn("clstd", 1, lambda_=1.0),
    "ml": learn("ml", 200, learning_rate=0.02),
    "mean_square_td": learn("mean_square_td", 200, learning_rate=2e-3),
}

# %%
stocks = jnp.linspace(0.6, 1.5, 91)
today = jnp.stack([jnp.zeros_like(stocks), stocks], -1)
exact = np.asarray(diffusion.black_scholes(stocks, 1.0, 1.0, 0.01, 0.3))

figure, axes = plt.subplots(1, 2, figsize=(11, 4))
axes[0].plot(stocks, exact, "k", lw=3, alpha=0.3, label="Black-Scholes, σ = 0.3")
axes[0].plot(stocks, payoff(today), "k:", label="payoff")
for name, params in found.items():
    price = np.asarray(family.apply(params, today))
    axes[0].plot(stocks, price, label=name)
    axes[1].plot(stocks, price - exact, label=name)
axes[0].set(xlabel="stock today", ylabel="price")
axes[1].set(xlabel="stock today", title="price minus Black-Scholes")
axes[1].axhline(0, color="black", lw=0.8)
for axis in axes:
    axis.legend()
plt.show()

# %%
for name, params in found.items():
    price = float(family.apply(params, jnp.array([0.0, 1.0])))
    print(f"{name:15s} at the money {price:.4f}  error {price / exact[40] - 1:+.1%}")

# %% [markdown]
# The hedge comes for free: delta is the derivative of the learned price.

# %%
delta = jax.vmap(
    jax.grad(lambda s: family.apply(found["clstd"], jnp.stack([0.0 * s, s])))
)
exact_delta = jax.vmap(
    jax.grad(lambda s: diffusion.black_scholes(s, jnp.ones(()), 1.0, 0.01, 0.3))
)
plt.plot(stocks, exact_delta(stocks), "k", lw=3, alpha=0.3, label="exact")
plt.plot(stocks, delta(stocks), label="from paths")
plt.xlabel("stock today")
plt.title("delta")
plt.legend()
plt.show()

# %%
at_the_money = {
    k: float(family.apply(v, jnp.array([0.0, 1.0]))) for k, v in found.items()
}
assert abs(at_the_money["ml"] / exact[40] - 1) < 0.03
# The test function decides the sense of "nearest": λ = 0 puts it where J bends.
assert abs(at_the_money["clstd"] / exact[40] - 1) < 0.06
assert abs(at_the_money["mean_square_td"] / exact[40] - 1) > 0.1
