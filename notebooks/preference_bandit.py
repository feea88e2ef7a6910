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
# # Preference optimisation in a bandit you can see
#
# A language model is asked something, gives two answers, and somebody says which is
# better. Direct preference optimisation (DPO) turns such pairs into a policy without
# fitting a reward first. Here the "language" has twenty answers to one question: few
# enough to draw every probability, and the best policy is known exactly.
#
# 1. the world: rewards, a **reference** policy, and the **optimum** between the two;
# 2. offline: what **DPO** makes of a hundred pairs, and how it goes wrong later on;
# 3. **VPO**'s pessimism against that, and the **wrong sign** of it;
# 4. online: the policy asks for its own pairs, with the bonus of **VPO** or **XPO**.

# %%
# %matplotlib inline
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from envs.language import bandit
from rlx.methods import dpo, vpo, xpo

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999"
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}
)

# %% [markdown]
# ## 1. The world
#
# A policy is paid $r(y)$ for answer $y$ and pays for leaving the reference:
#
# $$J(\pi) = \mathbb E_\pi[r] - \beta\,\mathrm{KL}(\pi\,\|\,\pi_{\text{ref}}),\qquad
#   \pi^* \propto \pi_{\text{ref}}\,e^{r/\beta}$$

# %%
BETA, ANSWERS = 0.5, 20
world = bandit.tabular(jax.random.key(3), num_responses=ANSWERS)
order = np.argsort(world.reward[0])
best = bandit.optimum(world, BETA)

figure, axes = plt.subplots(1, 2, figsize=(10, 3))
axes[0].bar(range(ANSWERS), world.reward[0, order], color=GREY)
axes[0].set(xlabel="answer, worst to best", title="reward")
for log_prob, name, colour in (
    (world.reference, "reference", GREY),
    (best, "optimum", "k"),
):
    axes[1].plot(np.exp(log_prob[0, order]), "o-", ms=3, color=colour, label=name)
axes[1].set(xlabel="answer, worst to best", title="probability")
axes[1].legend(frameon=False)
plt.show()
print(f"J* = {float(bandit.optimal_value(world, BETA)):.3f}")

# %% [markdown]
# ## 2. A hundred pairs
#
# Somebody else chose the answers (a behaviour policy that likes a few of them), and a
# teacher said which of two is better, wrongly now and then (Bradley and Terry's
# model): a difference in reward of 0.2 decides little, one of 3 nearly always. Some
# answers were hardly ever seen.

# %%
behaviour = jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(4), (1, ANSWERS)))
told = bandit.collect(jax.random.key(5), world, behaviour, 100)
counts = np.asarray(bandit.counted(world, told)[0])
seen = counts.sum(0) + counts.sum(1)

plt.figure(figsize=(5, 2.2))
plt.bar(range(ANSWERS), seen[order], color=BLUE)
plt.xlabel("answer, worst to best")
plt.ylabel("times in a pair")
plt.show()

# %% [markdown]
# The losses are functions of $h = \log\pi - \log\pi_{\text{ref}}$ of the better and the
# worse answer, the same functions that train a transformer. Here the policy is a table
# of logits, so $h$ is a lookup, and the gap $J^* - J(\pi)$ can be plotted step by step.

# %%
STEPS, EVERY = 2000, 10


def log_ratio(logits):
    return jax.nn.log_softmax(logits, axis=-1) - world.reference


def descend(objective, start=world.reference, steps=STEPS, rate=0.02):
    """The gap every ten steps of Adam, and the last logits."""
    optimizer = optax.adam(rate)

    def step(carry, _):
        logits, state = carry
        updates, state = optimizer.update(jax.grad(objective)(logits), state)
        return (optax.apply_updates(logits, updates), state), None

    def several(carry, _):
        carry, _ = jax.lax.scan(step, carry, length=EVERY)
        return carry, bandit.gap(world, jax.nn.log_softmax(carry[0]), BETA)

    begin = (start, optimizer.init(start))
    (logits, _), gaps = jax.lax.scan(several, begin, length=steps // EVERY)
    return jax.nn.log_softmax(logits, axis=-1), gaps


def ratios(logits, answer):
    h = log_ratio(logits)
    return h[answer.prompt, answer.chosen], h[answer.prompt, answer.rejected]


def mean(each, weight):
    return jnp.sum(each * weight) / jnp.maximum(jnp.sum(weight), 1)


def dpo_objective(logits, link="sigmoid"):
    each = dpo.loss(*ratios(logits, told), beta=BETA, link=link)
    return mean(each, told.weight)


def vpo_objective(logits, optimism):
    """VPO calibrated by the reference, whose expectation is exact here."""
    expected = jnp.sum(jnp.exp(world.reference) * log_ratio(logits))
    calibration = jnp.full(told.weight.shape, expected)
    each = vpo.loss(
        *ratios(logits, told),
        calibration,
        beta=BETA,
        optimism=optimism,
        lowest=-50.0,
    )
    return mean(each, told.weight)


objectives = {
    "DPO": (dpo_objective, ORANGE),
    "IPO": (functools.partial(dpo_objective, link="ipo"), GREEN),
    "VPO, pessimism": (functools.partial(vpo_objective, optimism=-0.3), BLUE),
    "VPO, wrong sign": (functools.partial(vpo_objective, optimism=0.3), PINK),
}
found = {name: jax.jit(lambda f=f: descend(f))() for name, (f, _) in objectives.items()}

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
steps = np.arange(EVERY, STEPS + 1, EVERY)
for name, (log_prob, gaps) in found.items():
    colour = objectives[name][1]
    axes[0].plot(steps, gaps, color=colour, label=name)
    if name != "VPO, wrong sign":
        axes[1].plot(np.exp(log_prob[0, order]), "o-", ms=3, color=colour, label=name)
still = float(bandit.gap(world, world.reference, BETA))
axes[0].axhline(still, color=GREY, ls=":", label="reference")
axes[0].set(xscale="log", xlabel="gradient steps", ylabel="gap to the optimum")
axes[1].plot(np.exp(best[0, order]), "k--", lw=1, label="optimum")
axes[1].set(xlabel="answer, worst to best", title="probability, at the end")
axes[0].legend(frameon=False, fontsize=8)
axes[1].legend(frameon=False, fontsize=8)
plt.show()
for name, (_, gaps) in found.items():
    print(f"{name:16s} best {float(gaps.min()):.3f}   last {float(gaps[-1]):.3f}")

# %% [markdown]
# ## 3. Why it goes wrong, and what pessimism does
#
# Only differences of $h$ enter DPO's loss. An answer that never lost a pair can be
# made more probable for ever, and the mass comes from answers of which nothing is
# known. VPO adds $s\,\alpha\,\beta\,\mathbb E_{\text{ref}}[h]$. Offline $s = -1$: the
# answers of the reference are pulled back up. With the other sign the very same term
# ruins the policy.
#
# At $\alpha = 0$ it *is* DPO, and where the policy is the reference, the gradient of
# the new term is exactly nothing:

# %%
same = jnp.abs(vpo_objective(best, 0.0) - dpo_objective(best))
push = jax.grad(vpo_objective)(world.reference, 0.3)
push = push - jax.grad(dpo_objective)(world.reference)
print(f"|VPO(0) - DPO| = {float(same):.1e}, ", end="")
print(f"gradient of the term at the reference: {float(jnp.abs(push).max()):.1e}")

# %% [markdown]
# One world proves little. A hundred of them at once, with `vmap`:

# %%


def last_gaps(key):
    """Gaps at the last step: DPO, pessimism and the wrong sign in a new world."""
    keys = jax.random.split(key, 3)
    place = bandit.tabular(keys[0], num_responses=ANSWERS)
    said = jax.nn.log_softmax(2 * jax.random.normal(keys[1], (1, ANSWERS)))
    pairs = bandit.counted(place, bandit.collect(keys[2], place, said, 100))
    calibration = jnp.exp(place.reference)

    def gap(optimism):
        def objective(logits):
            return vpo.enumerated_loss(
                jax.nn.log_softmax(logits, axis=-1),
                place.reference,
                pairs / jnp.maximum(pairs.sum(), 1),
                calibration,
                beta=BETA,
                optimism=optimism,
            )

        log_prob, _ = descend(objective, place.reference, 1000, 0.04)
        return bandit.gap(place, log_prob, BETA)

    return jnp.stack([gap(x) for x in (0.0, -0.3, 0.3)])


gaps = np.asarray(
    jax.jit(jax.vmap(last_gaps))(jax.random.split(jax.random.key(6), 100))
)
plt.figure(figsize=(4, 4))
limit = gaps[:, :2].max()
plt.plot([0, limit], [0, limit], color=GREY, lw=1)
plt.plot(gaps[:, 0], gaps[:, 1], "o", ms=4, color=BLUE, alpha=0.6)
plt.xlabel("gap of DPO")
plt.ylabel("gap of VPO, pessimism")
plt.title("100 worlds, last step")
plt.show()
print("mean gaps (DPO, pessimism, wrong sign):", gaps.mean(0).round(2))
print(f"pessimism is better in {np.mean(gaps[:, 1] < gaps[:, 0]):.0%} of the worlds")

# %% [markdown]
# ## 4. Online: the policy asks
#
# Now nobody gives data: in every round the policy answers, the reference answers, too,
# and the teacher says which is better. The bonus of VPO (here with $s = +1$, optimism)
# and of XPO push the policy away from what the reference says; they are one and the
# same up to a factor of $\beta$. We draw the mean gap over 150 rounds, in 16 worlds
# where the reference hardly ever gives the best answer.

# %%
ROUNDS = 150


def rounds(key, bonus, alpha):
    """Gaps `[ROUNDS]`, twenty steps of Adam after each question."""
    world_key, run_key = jax.random.split(key)
    place = bandit.hidden_best(bandit.tabular(world_key, num_responses=10))
    optimizer = optax.adam(0.02)

    def objective(logits, pairs):
        log_prob = jax.nn.log_softmax(logits, axis=-1)
        h = (log_prob - place.reference)[0]
        said = {"vpo": h, "xpo": log_prob[0]}[bonus]
        # All answers of the reference at once: its expectation, not a sample.
        expected = jnp.sum(jnp.exp(place.reference[0]) * said)
        better, worse = jnp.broadcast_arrays(h[:, None], h[None, :])
        calibration = jnp.full(better.shape, expected)
        if bonus == "vpo":
            each = vpo.loss(better, worse, calibration, beta=BETA, optimism=alpha)
        else:
            each = xpo.loss(
                better, worse, calibration, beta=BETA, alpha_mean=alpha * BETA
            )
        return jnp.sum(each * pairs) / jnp.maximum(pairs.sum(), 1)

    def one_round(carry, key):
        logits, state, pairs = carry
        mine = jax.nn.log_softmax(logits, axis=-1)
        answer = bandit.ask(key, place, mine, place.reference)
        pairs = pairs + bandit.counted(place, answer)[0]

        def step(carry, _):
            logits, state = carry
            updates, state = optimizer.update(jax.grad(objective)(logits, pairs), state)
            return (optax.apply_updates(logits, updates), state), None

        (logits, state), _ = jax.lax.scan(step, (logits, state), length=20)
        return (logits, state, pairs), bandit.gap(place, mine, BETA)

    start = place.reference
    begin = (start, optimizer.init(start), jnp.zeros((10, 10)))
    return jax.lax.scan(one_round, begin, jax.random.split(run_key, ROUNDS))[1]


keys = jax.random.split(jax.random.key(7), 16)
arms = {
    "online DPO": ("vpo", 0.0, ORANGE),
    "VPO, α = 0.03": ("vpo", 0.03, BLUE),
    "XPO, α = 0.03 β": ("xpo", 0.03, GREEN),
    "VPO, α = 0.3": ("vpo", 0.3, PINK),
}
curves = {
    name: np.asarray(
        jax.jit(jax.vmap(lambda key, b=bonus, a=alpha: rounds(key, b, a)))(keys)
    )
    for name, (bonus, alpha, _) in arms.items()
}
plt.figure(figsize=(6, 3.6))
for name, each in curves.items():
    middle = each.mean(0)
    error = 1.96 * each.std(0, ddof=1) / np.sqrt(len(each))
    dashes = "--" if name.startswith("XPO") else "-"
    plt.plot(middle, color=arms[name][2], ls=dashes, label=name)
    plt.fill_between(
        range(ROUNDS), middle - error, middle + error, color=arms[name][2], alpha=0.12
    )
plt.xlabel("round")
plt.ylabel("gap to the optimum")
plt.legend(frameon=False, fontsize=8)
plt.show()
for name, each in curves.items():
    print(f"{name:16s} cumulative regret {each.sum(1).mean():6.1f}")

# %% [markdown]
# VPO and XPO at the same strength are the same curve, as their equations say. Optimism
# does not pay here: these gradient steps start from the last policy, and the more
# optimism, the more regret. [The study](../experiments/vpo/README.md) finds the one
# corner where it does pay, and several where pessimism is better, even online.

# %%
assert gaps[:, 1].mean() < gaps[:, 0].mean() < gaps[:, 2].mean()
assert float(same) < 1e-6 and float(jnp.abs(push).max()) < 1e-6
apart = np.abs(curves["VPO, α = 0.03"] - curves["XPO, α = 0.03 β"]).mean()
assert apart < 0.05 * curves["online DPO"].mean()
