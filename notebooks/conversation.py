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
# # The graph around a conversation
#
# A user has an item in mind and names one attribute of it. UNICORN then asks for more
# attributes or recommends ten items, and decides between the two, and which, by one
# value function over one graph: the user, the attributes that were accepted, those that
# could be asked for, and the items that are still possible. Every answer changes that
# graph. Here a policy learns on an invented catalogue, and we watch the graph while it
# talks.
#
# Set `PATH` to a file of edge lists (`envs.conversation.files` says what is in one) to
# talk about your own items.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import envs
from rlx import evaluate, learner, train
from rlx.data.prioritised import prioritised
from rlx.methods import unicorn

plt.rcParams.update({"figure.dpi": 90})
PATH = None

# %%
options = {"max_turns": 10, "num_nodes": 24, "num_items": 10, "num_questions": 8}
if PATH is None:
    # `num_items` is the catalogue's here; ten of them can be recommended. Users are
    # less predictable than by default, so that asking pays.
    options |= {"num_items": 1500, "num_attributes": 24, "sharpness": 0.7}
    env = envs.make("conversation/synthetic_graph", **options)
else:
    env = envs.make("conversation/file_graph", path=PATH, groups=True, **options)
catalogue = env.spec.catalogue
print(
    f"{catalogue.num_users} users, {catalogue.num_items} items, "
    f"{catalogue.num_attributes} attributes; "
    f"{env.spec.pruning.list_size} items make a list"
)

# %% [markdown]
# ## Learning to ask
#
# Double DQN with prioritised replay. `state_features` tells the value of the turn and
# of the number of candidates left, which the paper's state does not hold.

# %%
config = unicorn.Config(
    hidden_size=48,
    feedforward=96,
    learning_rate=1e-3,
    batch_size=64,
    num_minibatches=4,
    epsilon_steps=400,
    state_features=True,
    action_features=True,
)
method = unicorn.make(env.spec, config)
source = prioritised(
    env,
    num_envs=64,
    batch_size=config.batch_size,
    num_minibatches=config.num_minibatches,
    capacity=64 * 200,
    warmup=0,
    gamma=config.gamma,
    beta_steps=1000,
)
ROUNDS, EACH = 6, 40


@jax.jit
def advance(state):
    return train.run(method, source, state, EACH)[0]


@jax.jit
def success(state, key):
    """The share of 256 conversations that find the item: only a hit brings +1."""
    policy = learner.policy(method, state.learner)
    found = evaluate.episodes(
        env, policy, key, num_episodes=256, max_steps=env.spec.time_limit
    )
    return jnp.mean(found.returns > 0), jnp.mean(found.lengths)


state = jax.jit(lambda key: train.init(method, source, key))(jax.random.key(0))
curve = [success(state, jax.random.key(1))]
for _ in range(ROUNDS):
    state = advance(state)
    curve.append(success(state, jax.random.key(1)))

updates = np.arange(ROUNDS + 1) * EACH * config.num_minibatches
found, turns = np.array(curve).T
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8))
for axis, values, name in zip(
    axes, (found, turns), ("items found", "turns"), strict=True
):
    axis.plot(updates, values, "o-", color="#0072B2")
    axis.set(xlabel="gradient steps", title=name)
    axis.set_ylim(bottom=0)
figure.tight_layout()
plt.show()
print(f"found {found[-1]:.0%} in {env.spec.time_limit} turns, before {found[0]:.0%}")

# %% [markdown]
# ## One conversation
#
# At every turn the policy compares the values of the ten best items and of the
# attributes that it might ask for. The greatest wins: an item means a list of ten.

# %%
step = jax.jit(lambda state, action: env.step(state, action, None))
network = jax.jit(lambda params, seen: method.act(params, jnp.int32(0), seen, (), None))
params = state.learner.target_params


def talk(seed):
    """The turns of a conversation: what was seen, what was done, what came of it."""
    hidden, seen = jax.jit(env.reset)(jax.random.key(seed))
    record = []
    for _ in range(env.spec.time_limit):
        action = network(params, seen)[0]
        size = int(hidden.candidate.sum())
        hidden, new = step(hidden, action)
        asked = int(action.attribute)
        hit = bool(new.info["hit"])
        if asked >= 0:
            said = asked in np.asarray(hidden.accepted_order)
            text = f"attribute {asked}? {'yes' if said else 'no'}"
        else:
            text = "ten items: found" if hit else "ten items: none of them"
        record.append((seen, action, size, text))
        seen = new.observation
        if bool(new.terminated):
            break
    return hidden, record, hit


def worth_seeing(conversation):
    """It ends well, and has many answers of yes."""
    _, record, hit = conversation
    return hit, sum(text.endswith("yes") for *_, text in record), len(record)


hidden, record, hit = max(map(talk, range(16)), key=worth_seeing)
print(f"user {int(hidden.user)} looks for item {int(hidden.target)}")
for turn, (_, _, size, text) in enumerate(record, 1):
    print(f"{turn}. {size:4d} candidates, {text}")

# %% [markdown]
# ## The graph, turn by turn
#
# In the middle the items: those that the policy keeps as nodes, best above, with one
# node for all the others. To the left the user, whose edges are as wide as the item
# suits. To the right attributes: accepted ones filled, those that could be asked for
# open. The item that the user wants is orange, where it is among the nodes; what the
# policy does next is blue.

# %%
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#BBBBBB"
known = unicorn.knowledge_of(env.spec)


def draw(axis, seen, action, title):
    """The graph that the policy sees."""
    items = np.asarray(seen.items)[np.asarray(seen.items) >= 0]
    accepted = np.asarray(seen.accepted)[np.asarray(seen.accepted) >= 0]
    open_ = np.asarray(seen.attribute_actions)
    open_ = open_[open_ >= 0]
    attributes = np.concatenate([accepted, open_])
    rest = float(seen.rest[0]) > 0
    heights = np.linspace(1, 0, len(items) + 1)
    where = {"user": (0.0, 0.5)}
    where |= {("item", v): (1.0, y) for v, y in zip(items, heights, strict=False)}
    sides = np.linspace(1, 0, len(attributes)) if len(attributes) > 1 else [0.5]
    where |= {
        ("attribute", p): (2.0, y) for p, y in zip(attributes, sides, strict=True)
    }
    has = np.asarray(known.has(jnp.asarray(items), jnp.asarray(attributes)))
    listed = set(np.asarray(action.items).tolist()) if int(action.attribute) < 0 else {}
    asked = int(action.attribute)

    def line(one, other, width, colour):
        (x0, y0), (x1, y1) = where[one], where[other]
        axis.plot([x0, x1], [y0, y1], color=colour, lw=width, zorder=1)

    weights = np.asarray(seen.weights)[: len(items)]
    for v, weight, row in zip(items, weights, has, strict=True):
        line("user", ("item", v), 0.3 + 2 * weight, GREY)
        for p, there in zip(attributes, row, strict=True):
            if there:
                colour = BLUE if p == asked else GREY
                line(("item", v), ("attribute", p), 1.0 if p == asked else 0.4, colour)
    for v in items:
        colour = ORANGE if v == int(hidden.target) else BLUE if v in listed else GREY
        axis.scatter(*where["item", v], s=26, color=colour, zorder=2)
    if rest:
        axis.scatter(1.0, heights[-1], s=120, marker="s", color=GREY, zorder=2)
    axis.scatter(*where["user"], s=110, color="black", zorder=2)
    for p in attributes:
        edge = BLUE if p == asked else "black"
        fill = edge if p in accepted else "white"
        axis.scatter(*where["attribute", p], s=60, color=fill, edgecolor=edge, zorder=2)
        x, y = where["attribute", p]
        axis.text(x + 0.12, y, str(p), va="center", fontsize=7, color=edge)
    axis.set(title=title, xlim=(-0.15, 2.4))
    axis.title.set_fontsize(9)
    axis.axis("off")


chosen = np.unique(np.linspace(0, len(record) - 1, min(6, len(record))).astype(int))
figure, axes = plt.subplots(2, 3, figsize=(10, 7))
for axis in axes.flat:
    axis.axis("off")
for axis, turn in zip(axes.flat, chosen, strict=False):
    seen, action, size, text = record[turn]
    draw(axis, seen, action, f"turn {turn + 1}, {size} candidates\n{text}")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What each turn leaves
#
# A yes removes all items without the attribute, a list its ten items. A no removes
# nothing, but lowers what the items with that attribute score.

# %%
figure, axis = plt.subplots(figsize=(5.5, 3))
sizes = np.array([size for *_, size, _ in record])
asks = np.array([int(action.attribute) >= 0 for _, action, _, _ in record])
turns = np.arange(1, len(sizes) + 1)
axis.plot(turns, sizes, color=GREY, zorder=1)
for kind, colour, name in ((asks, BLUE, "asks"), (~asks, ORANGE, "recommends")):
    axis.scatter(turns[kind], sizes[kind], color=colour, label=name, zorder=2)
axis.set(xlabel="turn", ylabel="candidates before it", ylim=(0, None))
axis.legend(frameon=False)
figure.tight_layout()
plt.show()
