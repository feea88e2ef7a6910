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
# # You are the reward
#
# PEBBLE learns what you want from your answers to one question: *which of these two
# clips is better?* Here the agent is a pendulum, and what it should do is up to you:
# answer 1 for the clip on the left, 2 for the one on the right, = for a tie, or nothing
# to skip the question. Where nobody can answer, as when this notebook runs by itself, a
# script answers in your place: it prefers the pendulum upright.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import envs
from rlx import evaluate, learner, train
from rlx.data import labels
from rlx.data.segments import segments
from rlx.methods import pebble
from rlx.ops.preference import Answer

plt.rcParams.update({"figure.dpi": 90})

# %% [markdown]
# ## The method, and a session in two halves
#
# A compiled program cannot wait for a person. So the method gets a budget of no labels
# and asks nobody, while `make_session` gives the two halves of a session: choose
# queries, and learn from answers. In between you may take your time.

# %%
env = envs.make("probe/pendulum")
fields = {
    "hidden_sizes": (64, 64),
    "num_minibatches": 4,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "gamma": 0.95,
    "automatic_temperature": False,
    "pretraining_batches": 100,
    "segment_length": 20,
    "queries_per_session": 8,
    "label_capacity": 100,
    "reward_hidden_sizes": (64, 64),
    "reward_batch_size": 32,
    "reward_learning_rate": 1e-3,
}
method = pebble.make(env.spec, pebble.Config(num_labels=0, **fields))
session = pebble.make_session(env.spec, pebble.Config(num_labels=100, **fields))
source = segments(
    env,
    segment_length=20,
    num_candidates=80,
    num_envs=8,
    capacity=16_000,
    warmup=800,
    batch_size=128,
    num_minibatches=4,
)
advance = jax.jit(lambda state: train.run(method, source, state, 100)[0])
choose, learn = jax.jit(session.choose), jax.jit(session.learn)


@jax.jit
def candidates(state, key):
    """Pairs of recent segments; the run itself does not move."""
    policy = learner.policy(method, state.learner)
    return source.next(state.source, policy, key)[1].candidates


# %% [markdown]
# ## Two clips, side by side


# %%
def show(observation):
    """Every fourth moment of both segments `[2, L, 3]`: pale first, dark last."""
    figure, axes = plt.subplots(1, 2, figsize=(6, 3))
    for axis, segment, name in zip(axes, observation, ("1", "2"), strict=True):
        moments = segment[::4]
        for age, (cosine, sine, _) in enumerate(moments):
            shade = 0.2 + 0.8 * age / (len(moments) - 1)
            axis.plot([0, -sine], [0, cosine], color="#0072B2", alpha=shade, lw=4)
        axis.plot(0, 0, "ko")
        axis.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", title=name)
        axis.axis("off")
    plt.show()
    plt.close(figure)


def script(observation):
    """Prefers the segment in which the pendulum is higher."""
    height = observation[..., 0].mean(axis=1)
    return "1" if height[0] > height[1] else "2"


def answers(queries, shown=1):
    """Asks about each query in turn; a script answers where nobody can."""
    words, person = [], True
    for number, observation in enumerate(np.asarray(queries.observation)):
        if person or number < shown:
            show(observation)
        if person:
            try:
                words.append(input("Which is better, 1 or 2 (= tie, empty: skip)? "))
                continue
            except (EOFError, NotImplementedError, RuntimeError):
                person = False  # nobody is there
        words.append(script(observation))
    meaning = {"1": 1.0, "2": 0.0, "=": 0.5}
    said = [word.strip() for word in words]
    return Answer(
        preference=jnp.array([meaning.get(word, 0.5) for word in said]),
        weight=jnp.array([float(word in meaning) for word in said]),
    )


# %% [markdown]
# ## Learning from you
#
# The state of the run holds the labels and the reward, too. Save it with
# `rlx.checkpoint` between two sessions, and go on tomorrow.

# %%
state = train.init(method, source, jax.random.key(0))
for number in range(5):
    state = advance(state)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), number), 3)
    pairs = candidates(state, keys[0])
    queries = choose(state.learner, pairs, keys[1])
    asked = pebble.Asked(queries, answers(queries, shown=int(number == 0)), pairs)
    state = state.replace(learner=learn(state.learner, asked, keys[2]))
    stats = state.learner.stats
    print(
        f"session {number + 1}: {int(stats.labels.size)} labels, the reward predicts "
        f"{float(stats.agreement):.0%} of them"
    )
for _ in range(6):
    state = advance(state)
print(labels.warn(state.learner.stats.labels))

# %% [markdown]
# ## What it makes of your wishes
#
# The learned reward over all positions of the pendulum at rest, and how high the
# pendulum gets now. The true reward of the task was never used.

# %%
angle = np.linspace(-np.pi, np.pi, 101)
at_rest = jnp.stack([jnp.cos(angle), jnp.sin(angle), 0 * angle], -1).astype(jnp.float32)
learned = session.reward(state.learner, at_rest, jnp.zeros((101, 1)))

policy = learner.policy(method, state.learner)
result = jax.jit(
    lambda key: evaluate.episodes(env, policy, key, num_episodes=16, max_steps=200)
)(jax.random.key(2))
print(f"true return {float(result.returns.mean()):.0f} (hanging still: about -1,900)")

figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(angle, learned)
axis.set(xlabel="angle from upright", ylabel="learned reward, at rest")
plt.show()
