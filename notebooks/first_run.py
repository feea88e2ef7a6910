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
# # A first run
#
# This notebook trains two methods on a pendulum and one on a hopping robot, looks at
# how well they learned and how certain that is, stops a run half-way and goes on with
# it, and loads a policy back to watch it act. It takes two minutes on two cores.
#
# The same from a shell: `rlx train mdpo --env probe/pendulum --seeds 4 --steps 122880`.

# %%
# %matplotlib inline
import io
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from PIL import Image as Picture

import envs
from rlx import checkpoint, evaluate, learner, plot, record, sharding, train
from rlx.data.rollout import rollout
from rlx.methods import mdpo, ppo

sharding.use_cpu_cores()  # one JAX device per core: seeds train side by side
RUNS = Path(tempfile.mkdtemp(prefix="rlx-"))  # use a folder of your own to keep runs
plt.rcParams.update({"figure.dpi": 110})

# %% [markdown]
# ## Environment, data, method
#
# Three records of functions. The environment is one pendulum, too weakly driven to be
# lifted in one go. The data source lets 32 of them run side by side, 64 steps at a
# time. The method is a loss with what surrounds it; its `Config` says every default and
# where it comes from.

# %%
env = envs.make("probe/pendulum")
source = rollout(env, num_envs=32, length=64)
BATCHES = 60
STEPS = BATCHES * source.steps_per_batch
SEEDS = 4

shared = {
    "gamma": 0.95,
    "learning_rate": 1e-3,
    "num_epochs": 10,
    "num_minibatches": 8,
}
shared["anneal_steps"] = BATCHES * shared["num_epochs"] * shared["num_minibatches"]
mirror_descent = mdpo.make(env.spec, mdpo.Config(**shared))
clipped = ppo.make(env.spec, ppo.Config(**shared, anneal_learning_rate=False))
print(env.spec)

# %% [markdown]
# ## Training
#
# `fit` compiles one program that trains all seeds. Now and then it evaluates the
# deterministic policy on fresh episodes and hands out a row; what is in the row is also
# in `metrics.jsonl` of the run folder. Every number in it is a list over the seeds.


# %%
def show(row):
    returns = np.array(row["return"])
    print(
        f"step {row['step']:>7,}   return {returns.mean():7.1f} "
        f"({returns.min():7.1f} to {returns.max():7.1f})   "
        f"{row['time']['steps_per_second']:8,.0f} steps/s",
        flush=True,
    )


watch = train.Settings(evaluations=5, episodes=16)
half = train.fit(
    mirror_descent,
    source,
    seeds=SEEDS,
    num_steps=STEPS // 2,
    save_to=RUNS / "mdpo",
    on_row=show,
    settings=watch,
)

# %% [markdown]
# ## Going on
#
# That was half of the run: suppose the machine was needed elsewhere. The folder holds
# *everything* the run was, down to the angle of every pendulum and the key of the next
# random number. `resume=True` goes on from there, and the result is the one of a run
# that was never stopped, to the last bit.

# %%
print(sorted(path.name for path in (RUNS / "mdpo").iterdir()))
whole = train.fit(
    mirror_descent,
    source,
    seeds=SEEDS,
    num_steps=STEPS,
    save_to=RUNS / "mdpo",
    resume=True,
    on_row=show,
    settings=train.Settings(evaluations=10, episodes=16),
)

# %% [markdown]
# The same for PPO, and both in one figure: the interquartile mean over the seeds (the
# mean of the middle half, which one lucky or unlucky seed cannot move far), a band
# that holds it with 95 % confidence, and each seed as a thin line.

# %%
other = train.fit(
    clipped,
    source,
    seeds=SEEDS,
    num_steps=STEPS,
    save_to=RUNS / "ppo",
    settings=train.Settings(evaluations=10, episodes=16),
)
plot.curve({"MDPO": whole, "PPO": other})

# %% [markdown]
# ## What has it learned?
#
# A run folder is enough to get the policy back. `load` wants to know the shapes of what
# it loads; `eval_shape` finds them without computing anything, and `part` names the
# piece of the checkpoint that is wanted.

# %%
folder = record.RunFolder.open(RUNS / "mdpo")
like = jax.eval_shape(
    jax.vmap(lambda key: learner.init(mirror_descent, key, source.num_envs)),
    jax.random.split(jax.random.key(0), SEEDS),
)
learners = checkpoint.load(folder.checkpoints, like, part=".state.learner")


@jax.jit
@jax.vmap
def judge(state, key):
    policy = learner.policy(mirror_descent, state)
    return evaluate.episodes(env, policy, key, num_episodes=64)


episodes = judge(learners, jax.random.split(jax.random.key(123), SEEDS))
for seed, returns in enumerate(episodes.returns):
    print(f"seed {seed}: return {returns.mean():7.1f} ± {returns.std():.1f}")

# %% [markdown]
# A pendulum has two numbers, so its policy is a picture: the torque at every angle and
# velocity. Upright and at rest is the middle. The lines are eight episodes: they gather
# speed by swinging to and fro, and once it suffices, they slide in along a narrow
# valley where the torque changes its sign.

# %%
first_seed = jax.tree.map(lambda leaf: leaf[0], learners)
policy = learner.policy(mirror_descent, first_seed)

angle, velocity = jnp.meshgrid(
    jnp.linspace(-jnp.pi, jnp.pi, 161), jnp.linspace(-8, 8, 121)
)
views = jnp.stack([jnp.cos(angle), jnp.sin(angle), velocity / 8], axis=-1)
torque = 2 * policy.act(views, policy.init_carry(), None)[0][..., 0]


@jax.jit
def swing(key):
    """Angle and velocity during one episode."""
    reset_key, step_key = jax.random.split(key)
    state, observation = env.reset(reset_key)

    def step(carry, _):
        state, observation = carry
        action, _, _ = policy.act(observation, policy.init_carry(), None)
        state, result = env.step(state, action, step_key)
        return (state, result.observation), (state.angle, state.velocity)

    return jax.lax.scan(step, (state, observation), length=env.spec.time_limit)[1]


figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
image = axes.pcolormesh(angle, velocity, torque, cmap="RdBu_r", rasterized=True)
for key in jax.random.split(jax.random.key(5), 8):
    angles, velocities = map(np.asarray, swing(key))
    wrapped = (angles + np.pi) % (2 * np.pi) - np.pi
    wrapped[1:][np.abs(np.diff(wrapped)) > np.pi] = np.nan  # break lines at the seam
    axes.plot(wrapped, velocities, color="white", lw=2.2, alpha=0.9)
    axes.plot(wrapped, velocities, color="#333333", lw=0.8)
axes.set_xlabel("angle (rad), 0 is upright")
axes.set_ylabel("velocity (rad/s)")
figure.colorbar(image, label="torque (N m)")
plt.show()

# %% [markdown]
# ## A robot
#
# `envs.make("hopper")` is MuJoCo's Hopper, stepped by MuJoCo's own engine inside the
# compiled program. Learning to run well takes a million steps; a hundred thousand are
# enough for the first hops.

# %%
hopper = envs.make("hopper")
hopper_source = rollout(hopper, num_envs=32, length=64)
HOPPER_STEPS = 48 * hopper_source.steps_per_batch
method = mdpo.make(hopper.spec)

started = time.perf_counter()
robot = train.fit(
    method,
    hopper_source,
    seeds=2,
    num_steps=HOPPER_STEPS,
    on_row=show,
    settings=train.Settings(evaluations=4, episodes=8),
)
print(f"{2 * HOPPER_STEPS:,} steps in {time.perf_counter() - started:.0f} s")

# %% [markdown]
# One episode of the deterministic policy, drawn without a GPU or a display.

# %%
best = int(np.argmax(robot.returns[-1]))
state = jax.tree.map(lambda leaf: leaf[best], robot.state.learner)
states = evaluate.trajectory(
    hopper, learner.policy(method, state), jax.random.key(1), max_steps=250
)
frequency = hopper.spec.control_frequency
stride = max(1, round(frequency / 25))
frames = [np.asarray(hopper.render(s)) for s in states[::stride]]
print(f"{len(states) - 1} steps, {(len(states) - 1) / frequency:.1f} s")


def encoded(pictures, kind, **options):
    """Pictures as the bytes of a PNG or a GIF."""
    first, *rest = [Picture.fromarray(picture) for picture in pictures]
    buffer = io.BytesIO()
    first.save(buffer, kind, **(options | {"append_images": rest} if rest else options))
    return buffer.getvalue()


chosen = np.linspace(0, len(frames) - 1, 6).round().astype(int)
middle = slice(frames[0].shape[1] // 4, -frames[0].shape[1] // 4)
strip = np.concatenate([frames[i][:, middle] for i in chosen], axis=1)
display(Image(encoded([strip], "PNG"), width=900))
film = encoded(frames, "GIF", save_all=True, duration=1000 * stride / frequency, loop=0)
display(Image(film, format="gif", width=420))

# %% [markdown]
# Where to go from here: `compose_losses` adds a term of your own to a method, `sweep`
# trains a grid of hyper-parameters in one program, and `make train ENV=hopper` runs the
# full million steps.
