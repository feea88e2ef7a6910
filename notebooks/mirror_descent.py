# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Mirror descent, exact and by gradient steps
#
# Mirror descent policy optimisation (MDPO, Tomar et al. 2022) takes one idea from
# convex optimisation: improve the policy a little, and pay for distance from the old
# one. In every state the new policy maximises
#
# $$\mathbb E_{a\sim\pi}\,Q_k(s, a) \;-\; \tfrac1t\,\mathrm{KL}(\pi\,\|\,\pi_k)$$
#
# This notebook goes from the case where that can be done exactly to the one where it
# cannot:
#
# 1. a small decision process: **closed-form steps**, and the bound they obey;
# 2. one batch: **m gradient steps** towards the exact step;
# 3. a pendulum: MDPO beside **PPO** and **TRPO**.

# %%
# %matplotlib inline
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import envs
from rlx import sharding, train
from rlx.data.rollout import rollout
from rlx.methods import mdpo, ppo, trpo
from rlx.ops import distributions, mirror_descent, statistics

sharding.use_cpu_cores()  # one JAX device per core: runs train side by side
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}
)

# %% [markdown]
# ## 1. Exact steps
#
# Twenty states, four actions, random transitions and rewards in $[0, 1]$. The value of
# a policy is the solution of a linear system, and one step of mirror descent is
# $\pi_{k+1} \propto \pi_k \exp(t\,Q_k)$: `mirror_descent.mirror_step`.

# %%
STATES, ACTIONS, GAMMA = 20, 4, 0.9
transition_key, reward_key = jax.random.split(jax.random.key(0))
transition = jax.random.dirichlet(
    transition_key, jnp.full(STATES, 0.2), (STATES, ACTIONS)
)
reward = jax.random.uniform(reward_key, (STATES, ACTIONS))


def action_value(log_policy):
    """Q of a policy, exactly."""
    policy = jnp.exp(log_policy)
    moves = jnp.einsum("sa,sat->st", policy, transition)
    gains = jnp.sum(policy * reward, axis=1)
    value = jnp.linalg.solve(jnp.eye(STATES) - GAMMA * moves, gains)
    return reward + GAMMA * transition @ value


def best_value():
    """The optimal value, by value iteration."""

    def improve(_, value):
        return jnp.max(reward + GAMMA * transition @ value, axis=1)

    return jax.lax.fori_loop(0, 500, improve, jnp.zeros(STATES))


def gaps(step_size, num_steps=60):
    """Largest distance from the optimal value, after each step."""

    def step(log_policy, _):
        q = action_value(log_policy)
        log_policy = mirror_descent.mirror_step(log_policy, q, step_size)
        value = jnp.sum(jnp.exp(log_policy) * action_value(log_policy), axis=1)
        return log_policy, jnp.max(best_value() - value)

    uniform = jnp.full((STATES, ACTIONS), -jnp.log(ACTIONS))
    return jax.lax.scan(step, uniform, length=num_steps)[1]


sizes = jnp.array([0.1, 1.0, 10.0])
curves = jax.jit(jax.vmap(gaps))(sizes)
steps = np.arange(1, 61)

figure, axes = plt.subplots(figsize=(7.4, 4.0), layout="constrained")
for size, curve, colour in zip(sizes, curves, (BLUE, ORANGE, GREEN), strict=True):
    axes.plot(steps, np.maximum(curve, 1e-6), color=colour, lw=2, label=f"t = {size:g}")
    bound = np.log(ACTIONS) / ((1 - GAMMA) * size) + 1 / (1 - GAMMA) ** 2
    axes.plot(steps, bound / steps, color=colour, lw=1, ls=":")
axes.set(
    yscale="log",
    ylim=(1e-6, None),
    xlabel="steps of mirror descent",
    ylabel="distance from the optimal value",
)
axes.legend(frameon=False, title="solid: measured, dotted: bound", loc="lower left")
plt.show()

# %% [markdown]
# The dotted lines are the bound of Agarwal et al. (2021),
#
# $$V^* - V_T \le \frac{\log|A|}{(1-\gamma)\,t\,T} + \frac{1}{(1-\gamma)^2\,T}$$
#
# Every step improves every state, at any step size, and a large step size is close to
# policy iteration. (Single precision ends near $10^{-6}$.)

# %% [markdown]
# ## 2. Gradient steps towards the exact step
#
# With a network there is no closed form, and MDPO takes $m$ gradient steps on the same
# objective instead. Four actions and their advantages are enough to see what that
# means: parameters are the logits, the loss is `mdpo.loss` in expectation over the old
# policy, and the exact step is known.

# %%
advantage = jnp.array([1.0, 0.3, -0.4, -0.9])
old = jnp.zeros(ACTIONS)
exact = mirror_descent.mirror_step(jax.nn.log_softmax(old), advantage, 1.0)


def batch_loss(logits):
    """MDPO's loss, all four actions weighted as the old policy takes them."""
    new, before = jax.nn.log_softmax(logits), jax.nn.log_softmax(old)
    kl = distributions.kl_divergence(
        distributions.Categorical(logits), distributions.Categorical(old)
    )
    each = mdpo.loss(
        new, before, advantage, jnp.broadcast_to(kl, (ACTIONS,)), step_size=1.0
    )
    return jnp.sum(jnp.exp(before) * each)


def descend(learning_rate, num_steps=40):
    """The policy after every gradient step."""
    optimizer = optax.sgd(learning_rate)

    def step(carry, _):
        logits, state = carry
        updates, state = optimizer.update(jax.grad(batch_loss)(logits), state)
        logits = optax.apply_updates(logits, updates)
        return (logits, state), jax.nn.softmax(logits)

    return jax.lax.scan(step, (old, optimizer.init(old)), length=num_steps)[1]


policies = jax.jit(descend)(1.0)
figure, axes = plt.subplots(figsize=(7.4, 3.6), layout="constrained")
for action, colour in enumerate((BLUE, ORANGE, GREEN, GREY)):
    axes.plot(
        np.arange(41), np.r_[0.25, policies[:, action]], color=colour, lw=2, marker="."
    )
    axes.axhline(float(jnp.exp(exact[action])), color=colour, lw=1, ls="--")
axes.set(xlabel="gradient steps m on one batch", ylabel="probability of each action")
axes.set_title("dashed: the exact step of mirror descent", fontsize=10)
plt.show()

distance = float(jnp.abs(policies[-1] - jnp.exp(exact)).max())
print(f"after 40 gradient steps the policy is within {distance:.1e} of the exact step")

# %% [markdown]
# The first gradient step is the plain policy gradient: at the old policy the divergence
# is flat. What makes the method *mirror descent* are the steps after it, which feel the
# divergence and come to rest where it balances the advantage.

# %% [markdown]
# ## 3. A pendulum
#
# Swing a pendulum up and hold it. Same rollout, same networks, three ways to limit a
# step: a divergence in the loss (MDPO), a clipped ratio (PPO), a hard constraint
# (TRPO). One more: MDPO with an infinite step size, which is no limit at all.

# %%
env = envs.make("probe/pendulum")
source = rollout(env, num_envs=32, length=64)
NUM_STEPS = 74 * source.steps_per_batch


def make(module, **fields):
    """A method whose schedules end where training does."""
    config = module.Config(gamma=0.95, num_minibatches=8, **fields)
    ends = train.gradient_steps(config, source, NUM_STEPS)
    return module.make(env.spec, dataclasses.replace(config, anneal_steps=ends))


methods = {
    "MDPO": make(mdpo, learning_rate=1e-3),
    "PPO": make(ppo, learning_rate=1e-3),
    "TRPO": make(trpo),
    "no limit": make(mdpo, learning_rate=1e-3, step_size=float("inf")),
}
settings = train.Settings(evaluations=12, episodes=16)
results = {
    name: train.fit(method, source, seeds=4, num_steps=NUM_STEPS, settings=settings)
    for name, method in methods.items()
}

# %%
figure, axes = plt.subplots(figsize=(7.4, 4.2), layout="constrained")
for (name, result), colour in zip(
    results.items(), (ORANGE, BLUE, GREEN, GREY), strict=True
):
    axes.plot(result.steps, result.returns, color=colour, lw=0.6, alpha=0.4)
    middle = statistics.iqm(np.asarray(result.returns)[..., None])
    axes.plot(result.steps, middle, color=colour, lw=2.2, label=name)
axes.set(xlabel="environment steps", ylabel="return of an episode")
axes.legend(frameon=False, loc="lower right")
plt.show()

for name, result in results.items():
    last = np.sort(result.returns[-1])
    print(f"{name:>9}: {last.mean():6.0f}  ({last[0]:.0f} to {last[-1]:.0f})")

# %% [markdown]
# Four seeds of a toy are no evidence for or against a method: the runs on MuJoCo
# tasks, with intervals, are in `experiments/mdpo`.
