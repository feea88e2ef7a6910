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
# # Losses are functions
#
# In rlx a method is a record of pure functions, and the one that carries the science
# is the loss. So a loss can be drawn, differentiated, mapped over seeds and added to
# another loss, like any other formula. This notebook does each of these once:
#
# 1. the losses of PPO and of mirror descent (MDPO) as **mathematics**, next to their
#    gradients;
# 2. a whole training run as **one function of a key**, mapped over seeds;
# 3. a loss **of your own** added to a method, and whether it was worth it, on a problem
#    whose best return is known exactly.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import envs
from envs import probe
from rlx import evaluate, learner, sharding, train
from rlx.data.rollout import rollout
from rlx.methods import mdpo, ppo
from rlx.ops import statistics
from rlx.types import Policy

sharding.use_cpu_cores()  # one JAX device per core: runs train side by side
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}
)

# %% [markdown]
# ## 1. A loss alone
#
# `ppo.loss` and `mdpo.loss` know arrays and nothing else: no network, no batch, no
# mean. Both ask how much better the return gets if an action that turned out to be
# worth $A$ becomes $\rho = \pi(a|s) / \pi_\text{old}(a|s)$ times as likely. They differ
# in how they keep $\rho$ from running away:
#
# $$L_\text{PPO} = -\min\bigl(\rho A,\ \text{clip}(\rho, 1-\varepsilon, 1+\varepsilon)
# A\bigr) \qquad L_\text{MDPO} = -\rho A + \tfrac1t\,
# \text{KL}(\pi\,\|\,\pi_\text{old})$$
#
# To draw both over the same axis, take a Gaussian policy of unit width whose mean moves
# by $\mu$, and an action one deviation above the old mean. Then
# $\log\rho = \mu - \mu^2/2$ and $\text{KL} = \mu^2/2$. The gradient of an elementwise
# loss is a `vmap` of a `grad`.


# %%
def log_ratio(shift):
    return shift - shift**2 / 2


def ppo_of(shift, advantage):
    return ppo.loss(log_ratio(shift), jnp.zeros(()), advantage, clip=0.2)


def mdpo_of(shift, advantage):
    kl = shift**2 / 2
    return mdpo.loss(log_ratio(shift), jnp.zeros(()), advantage, kl, step_size=1.0)


shifts = jnp.linspace(-1.0, 1.0, 401)
figure, axes = plt.subplots(2, 2, figsize=(8.4, 5.2), sharex=True, layout="constrained")
for column, advantage in enumerate((1.0, -1.0)):
    for name, loss, colour in (
        ("PPO, ε = 0.2", ppo_of, BLUE),
        ("MDPO, t = 1", mdpo_of, ORANGE),
    ):
        value = jax.vmap(loss, (0, None))(shifts, jnp.asarray(advantage))
        slope = jax.vmap(jax.grad(loss), (0, None))(shifts, jnp.asarray(advantage))
        axes[0, column].plot(shifts, value - value[200], color=colour, label=name)
        axes[1, column].plot(shifts, slope, color=colour)
    word = "good" if advantage > 0 else "bad"
    axes[0, column].set_title(f"a {word} action: A = {advantage:+.0f}", fontsize=10)
    axes[1, column].set_xlabel("shift μ of the policy's mean")
    axes[1, column].axhline(0, color=GREY, lw=0.6)
axes[0, 0].set_ylabel("change of the loss")
axes[1, 0].set_ylabel("gradient dL/dμ")
axes[0, 0].legend(frameon=False)
plt.show()

# %% [markdown]
# The two gradients agree at $\mu = 0$: the first step on a batch is the policy gradient
# in either case. Further out, PPO's gradient *stops* where the ratio leaves
# $[0.8, 1.2]$ in the profitable direction: nothing pulls the policy back. MDPO's grows
# into a restoring force, and the loss has its minimum at a finite distance.

# %% [markdown]
# ## 2. A training run is a function of a key
#
# `train.init` and `train.run` are pure. The test bed is a cart on a rail that must be
# pushed to the origin: linear dynamics, quadratic cost, so that the best gain $K$ of
# $u = -Kx$ and the best return follow from a Riccati equation.

# %%
env = envs.make("probe/lqr")
source = rollout(env, num_envs=32, length=32)
NUM_STEPS = 32 * source.steps_per_batch

config = mdpo.Config(
    learning_rate=1e-3,
    num_epochs=5,
    num_minibatches=4,
    anneal_steps=32 * 20,  # gradient steps in which schedules run out
    anneal_step_size=False,
)
method = mdpo.make(env.spec, config)


@jax.jit
def short_run(key):
    """The value function's loss in each of five batches."""
    state = train.init(method, source, key)
    _, metrics = train.run(method, source, state, 5)
    return metrics["value_loss"]


keys = jax.random.split(jax.random.key(0), 3)
alone = short_run(keys[1])
together = jax.vmap(short_run)(keys)
print(f"seed 1 alone:    {alone}")
print(f"seed 1 of three: {together[1]}")
print(f"difference:      {jnp.abs(alone - together[1]).max():.1e}")

# %% [markdown]
# Three seeds are an axis of an array. Nothing in the method knows of it.

# %% [markdown]
# ## 3. A term of your own
#
# Suppose a cautious engineer once moved the cart by hand, and 64 pairs of state and
# push survive. Her gain is only a third of the best, but it is stable, while an
# untrained policy lets the cart run away. Can her notes help?
#
# A loss is any function `(params, target_params, stats, batch, key) -> (scalar,
# metrics)`. This one says "push as she did", ever more softly as training goes on. It
# needs no access to the network: `method.act` without a key is the deterministic
# policy, and one can differentiate it.

# %%
solution = probe.lqr_solution(config.gamma)
states = jax.random.uniform(jax.random.key(7), (64, 2), minval=-1.0, maxval=1.0)
pushes = -states @ jnp.asarray(solution.gain.T / 3, jnp.float32)


def imitation(params, target_params, stats, batch, key):
    """Mean squared distance from the demonstrated pushes, fading with time."""
    del target_params, key
    action, _, _ = method.act(params, stats, states, method.init_carry(), None)
    error = jnp.mean((action - pushes) ** 2)
    return (1 - jnp.mean(batch.progress)) * error, {"error": error}


# %% [markdown]
# Losses over the same parameters add up. `weighted_sum` keeps their metrics apart by a
# prefix, and `_replace` puts the sum where the method's own loss was. Advantages, value
# function, normalisation and optimiser stay what they are.

# %%
combined = learner.weighted_sum(
    mdpo=(1.0, method.loss_fn), demonstrations=(1.0, imitation)
)
with_notes = method._replace(loss_fn=combined)
notes_alone = method._replace(
    loss_fn=learner.weighted_sum(
        mdpo=(0.0, method.loss_fn), demonstrations=(1.0, imitation)
    )
)

settings = train.Settings(evaluations=16, episodes=64)
results = {
    name: train.fit(chosen, source, seeds=8, num_steps=NUM_STEPS, settings=settings)
    for name, chosen in {
        "MDPO alone": method,
        "MDPO + notes": with_notes,
        "notes alone": notes_alone,
    }.items()
}

# %% [markdown]
# Costs span five orders of magnitude, so they are drawn as multiples of the best cost
# there is, on a logarithmic axis: 1 is perfection. A policy written by hand is a policy
# like any other: that is how the best and the engineer's own are evaluated.


# %%
def cost_of(gain):
    """Mean cost of an episode under the pushes u = -Kx."""
    by_hand = Policy(
        act=lambda observation, carry, key: (-observation @ gain.T, carry, {}),
        init_carry=lambda: (),
    )
    run = jax.jit(lambda key: evaluate.episodes(env, by_hand, key, num_episodes=4096))
    return -float(run(jax.random.key(3)).returns.mean())


best = cost_of(jnp.asarray(solution.gain, jnp.float32))
hers = cost_of(jnp.asarray(solution.gain / 3, jnp.float32)) / best

figure, axes = plt.subplots(figsize=(7.4, 4.4), layout="constrained")
for (name, result), colour in zip(results.items(), (BLUE, ORANGE, GREEN), strict=True):
    costs = -result.returns / best
    axes.plot(result.steps, costs, color=colour, lw=0.6, alpha=0.35)
    middle = np.exp(statistics.iqm(np.log(costs)[..., None]))
    axes.plot(result.steps, middle, color=colour, lw=2.2, label=name)
for level, text in ((hers, "the engineer"), (1, "the best")):
    axes.axhline(level, color=GREY, ls="--", lw=1)
    axes.annotate(
        text,
        (1.01, level),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        color="#666666",
    )
axes.set_yscale("log")
axes.set_xlabel("environment steps")
axes.set_ylabel("cost of an episode / best cost")
axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
plt.show()

for name, result in results.items():
    final = np.log(-result.returns[-1] / best)[:, None]
    print(f"{name:>14}: {np.exp(statistics.iqm(final)):7.2f} times the best cost")

# %% [markdown]
# Alone, mirror descent flails: while its policy knows nothing the cart runs away, and a
# few thousand steps of a runaway cart teach little about balancing one. The notes alone
# teach what the engineer knew, and no more. Together, the notes carry the policy to
# where the return has something to say, and the return takes it past its teacher.
#
# Two lines did it: a function of six lines and a `_replace`. An entropy bonus of your
# own, a penalty on jerky pushes, or the loss of a second method over the same
# parameters go the same way.
