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
# # A sweep is one more axis
#
# How far should a policy move on one batch? MDPO has two knobs for it: the step size
# $t$ of mirror descent, which says where the optimum of the batch's problem lies, and
# the learning rate of the optimiser, which says how near the gradient steps come to it.
# They cannot be tuned one at a time.
#
# In rlx hyper-parameters that are floats can be traced, so that a grid of them is an
# axis of an array beside the seeds: **one compiled program trains the whole grid**.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

import envs
from envs import probe
from rlx import evaluate, sharding, train
from rlx.data.rollout import rollout
from rlx.methods import mdpo
from rlx.ops import statistics
from rlx.types import Policy

sharding.use_cpu_cores()  # one JAX device per core: runs train side by side
plt.rcParams.update({"figure.dpi": 110})

# %% [markdown]
# ## The grid
#
# The problem is a cart with linear dynamics and quadratic cost, whose best policy is
# known. `hyper` takes arrays of one length, one entry a setting: a grid is a flattened
# `meshgrid`, a random search would be two columns of random numbers. `make` gets one
# setting and returns a method.

# %%
learning_rates = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
step_sizes = [0.03, 0.1, 0.3, 1.0, 3.0]
SEEDS = 4

env = envs.make("probe/lqr")
source = rollout(env, num_envs=32, length=32)


def make(hyper):
    config = mdpo.Config(
        learning_rate=hyper["learning_rate"],
        step_size=hyper["step_size"],
        gamma=0.95,
        num_epochs=5,
        num_minibatches=4,
        hidden_sizes=(32, 32),
    )
    return mdpo.make(env.spec, config)


first, second = np.meshgrid(learning_rates, step_sizes)
result = train.fit(
    make,
    source,
    seeds=SEEDS,
    hyper={"learning_rate": first.ravel(), "step_size": second.ravel()},
    num_steps=24 * 1024,
    settings=train.Settings(evaluations=12, episodes=32, stop_on_nan=False),
    on_row=lambda row: print(
        f"step {row['step']:>6,}   median return {np.median(row['return']):9.1f}   "
        f"best {np.max(row['return']):6.2f}   "
        f"{row['time']['steps_per_second']:8,.0f} steps/s"
    ),
)
print(f"{len(result.runs)} runs, one program")

# %% [markdown]
# ## The answer
#
# `result.returns` is `[evaluations, runs]`, and `result.runs` says what each run was:
# settings outermost, seeds innermost. The best cost is that of the Riccati gain.

# %%
gain = jnp.asarray(probe.lqr_solution(0.95).gain, jnp.float32)
riccati = Policy(
    act=lambda observation, carry, key: (-observation @ gain.T, carry, {}),
    init_carry=lambda: (),
)
best = -float(
    jax.jit(lambda key: evaluate.episodes(env, riccati, key, num_episodes=4096))(
        jax.random.key(3)
    ).returns.mean()
)
costs = (-result.returns / best).reshape(-1, first.size, SEEDS)
# The interquartile mean over seeds, of logarithms: costs span orders of magnitude.
middle = np.exp(statistics.iqm(np.log(costs)[..., None]))
final = middle[-1].reshape(first.shape)  # [step sizes, learning rates]

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(10.4, 4.3), layout="constrained", width_ratios=(1.1, 1)
)
image = left.imshow(final, cmap="viridis_r", norm=LogNorm(), origin="lower")
left.set_xticks(range(len(learning_rates)), [f"{x:g}" for x in learning_rates])
left.set_yticks(range(len(step_sizes)), [f"{x:g}" for x in step_sizes])
left.set_xlabel("learning rate of Adam")
left.set_ylabel("step size t of mirror descent")
left.set_title("cost / best cost, after all steps", fontsize=10, loc="left")
threshold = np.sqrt(final.min() * final.max())
for (row, column), value in np.ndenumerate(final):
    colour = "white" if value > threshold else "#222222"
    label = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    left.text(column, row, label, ha="center", va="center", color=colour, size=9)
figure.colorbar(image, ax=left, shrink=0.85)

colours = plt.get_cmap("plasma")(np.linspace(0.05, 0.85, len(step_sizes)))
last = costs[-1].reshape(*first.shape, SEEDS)
for row, (step_size, colour) in enumerate(zip(step_sizes, colours, strict=True)):
    right.plot(
        learning_rates, final[row], color=colour, lw=2, label=f"t = {step_size:g}"
    )
    right.plot(learning_rates, last[row], "o", color=colour, ms=3, alpha=0.5)
right.axhline(1, color="#999999", lw=1)
right.set_xscale("log")
right.set_yscale("log")
right.set_xlabel("learning rate of Adam")
right.set_ylabel("cost / best cost")
right.set_title("the same, with every seed as a dot", fontsize=10, loc="left")
right.spines[["top", "right"]].set_visible(False)
right.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# 1 is perfection. The two knobs make up for each other: where $t$ is small, a larger
# learning rate is needed to get anywhere, and at the smallest $t$ none is large enough,
# since the optimum of each batch's problem lies too near the old policy. At a learning
# rate of 0.0003, the default, one would think that $t$ hardly matters: the gradient
# steps are too short to reach it. The figures say more than one best setting: beyond a
# learning rate of 0.001 and a step size of 0.3 little is left to gain, but some seeds
# begin to fail, which the mean of a single setting would not have shown.
#
# Twenty-five settings times four seeds were **one** compilation. On an accelerator the
# runs of a group are computed side by side (`vmap`), in groups as large as memory
# allows; on a CPU, where small matrix products do not gain by it, they follow one
# another on every core. The numbers are the same. From a shell:
#
#     rlx sweep mdpo --env probe/lqr --grid learning_rate=1e-3,3e-3 --seeds 4
