"""Segments never cross an end, and labels that teach nothing are counted aloud."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import probe
from rlx.data import labels as labels_lib
from rlx.data import ring, segments
from rlx.ops import segments as ops
from rlx.ops.preference import Answer
from rlx.types import Box, EnvSpec, Policy, Transition

SPEC = EnvSpec("small", Box((1,)), Box((1,), -1.0, 1.0), time_limit=9)


def experience(num_steps=12, num_streams=3, ends=((4, 0), (7, 1), (8, 1))):
    """Observation: 100 · stream + step; ends of both kinds at the places named."""
    step, stream = jnp.meshgrid(
        jnp.arange(num_steps), jnp.arange(num_streams), indexing="ij"
    )
    place = (100.0 * stream + step)[..., None]
    ended = np.zeros((num_steps, num_streams), bool)
    for at in ends:
        ended[at] = True
    terminated = ended & (np.arange(num_streams) == 0)
    return Transition(
        observation=place,
        action=place,
        reward=place[..., 0],
        discount=1.0 - terminated.astype(np.float32),
        truncated=jnp.asarray(ended & ~terminated),
        next_observation=place + 1,
    )


def assert_within_episodes(pairs, ended, offset=0):
    """Each segment counts up, and no step but its last one is an end."""
    place = np.asarray(pairs.observation)[np.asarray(pairs.whole)][..., 0]
    assert np.all(np.diff(place, axis=-1) == 1)
    step, stream = (place % 100).astype(int) - offset, (place // 100).astype(int)
    assert not np.asarray(ended)[step[..., :-1], stream[..., :-1]].any()
    return step, stream


def test_segments_of_a_rollout_stay_in_one_episode_and_reach_its_end(key):
    batch = experience()
    where = jax.jit(lambda k: ops.draw(k, batch, 2000, 4))(key)
    pairs = ops.cut(batch, where, 4)
    assert bool(jnp.all(pairs.whole))
    step, stream = assert_within_episodes(pairs, ops.ends(batch))
    # Every place from which 4 steps stay in one episode, and no other, by hand.
    expected = {(t, 0) for t in (0, 1, 5, 6, 7, 8)}
    expected |= {(t, 1) for t in range(5)} | {(t, 2) for t in range(9)}
    found = set(zip(step[..., 0].ravel(), stream[..., 0].ravel(), strict=True))
    assert found == expected
    assert np.all(stream[:, 0, 0] != stream[:, 1, 0])


def test_where_no_segment_is_whole_none_is_shown_and_the_count_says_so(key):
    batch = experience(ends=[(t, b) for t in range(12) for b in range(3)])
    pairs = ops.cut(batch, ops.draw(key, batch, 5, 2), 2)
    assert not bool(jnp.any(pairs.whole))
    buffer = ops.write(ops.empty(SPEC, 8, 2), pairs, Answer(jnp.ones(5), jnp.ones(5)))
    assert (int(buffer.size), int(buffer.asked), int(buffer.missing)) == (0, 0, 5)
    with pytest.warns(UserWarning, match="5 of 5 queries found no segment"):
        labels_lib.warn(buffer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.empty(SPEC, 8, 10), "longer than an episode"),
        (lambda: ops.draw(jax.random.key(0), experience(), 2, 13), "does not fit"),
        (
            lambda: ops.draw(
                jax.random.key(0), experience(num_streams=1, ends=()), 2, 3
            ),
            "two independent streams",
        ),
        (
            lambda: segments.segments(
                probe.make("pendulum", time_limit=5), segment_length=6
            ),
            "longer than an episode",
        ),
        (lambda: ops.crops(jax.random.key(0), 2, 5, 5), "margin"),
    ],
)
def test_impossible_segments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_segments_of_a_ring_are_recent_and_stay_in_one_episode(key):
    batch = experience()
    kept = ring.write(ring.empty(batch, 12), batch)
    later = jax.tree.map(lambda x: x[:6], batch)
    later = later.replace(observation=later.observation + 12)
    kept = ring.write(kept, later)  # rows 0 ... 5 are now steps 12 ... 17
    pairs = jax.jit(lambda k: segments.draw(kept, k, (500, 2), 4, 10))(key)
    place = np.asarray(pairs.observation)[np.asarray(pairs.whole)][..., 0]
    assert len(place) > 400
    assert np.all(np.diff(place, axis=-1) == 1)
    step = (place % 100).astype(int)
    assert step.min() >= 8
    assert step.max() == 17
    # Ends: at steps 4, 7 and 8 of the first batch, and again at 12 + 4.
    ends = {(16, 0), (8, 1)}
    stream = (place // 100).astype(int)
    inside = zip(step[..., :-1].ravel(), stream[..., :-1].ravel(), strict=True)
    assert not ends & set(inside)


def test_the_source_gives_what_replay_gives_and_pairs(key):
    env = probe.make("pendulum", time_limit=6)
    source = segments.segments(
        env, segment_length=4, num_candidates=5, recent=24, num_envs=2, capacity=24,
        warmup=24, batch_size=4,
    )  # fmt: skip
    policy = Policy(lambda o, c, k: (jnp.zeros((2, 1)), c, {}), lambda: ())
    state = source.init(key, policy)
    _, batch, _ = jax.jit(lambda s, k: source.next(s, policy, k))(state, key)
    assert batch.experience.reward.shape == (1, 4)
    assert batch.candidates.observation.shape == (5, 2, 4, 3)
    # The reward of a step is that of its own observation and action.
    angle = jnp.arctan2(
        batch.candidates.observation[..., 1], batch.candidates.observation[..., 0]
    )
    speed = 8.0 * batch.candidates.observation[..., 2]
    torque = 2.0 * batch.candidates.action[..., 0]
    expected = -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2)
    np.testing.assert_allclose(batch.candidates.reward, expected, atol=1e-3)


def pairs_of(first, second):
    """Pairs of segments of one step that are the numbers given."""
    place = jnp.stack([jnp.asarray(first), jnp.asarray(second)], 1)
    place = place.astype(jnp.float32)[..., None, None]
    whole = jnp.ones(place.shape[0], bool)
    return ops.Pairs(place, place, place[..., 0], whole)


def test_the_buffer_keeps_what_was_answered_and_overwrites_the_oldest():
    buffer = ops.empty(SPEC, 4, 1)
    pairs = pairs_of([0, 1, 2], [10, 11, 12])
    answer = Answer(jnp.array([1.0, 0.5, 0.0]), jnp.array([1.0, 0.0, 1.0]))
    buffer = ops.write(buffer, pairs, answer)
    assert (int(buffer.size), int(buffer.asked), int(buffer.skipped)) == (2, 3, 1)
    buffer = ops.write(buffer, pairs_of([3, 4, 5], [13, 14, 15]), Answer(
        jnp.array([0.5, 1.0, 1.0]), jnp.ones(3)))  # fmt: skip
    assert (int(buffer.size), int(buffer.asked), int(buffer.ties)) == (4, 6, 1)
    np.testing.assert_allclose(buffer.observation[:, 0, 0, 0], [5, 2, 3, 4])
    np.testing.assert_allclose(buffer.preference, [1.0, 0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match="same segment length"):
        ops.write(ops.empty(SPEC, 4, 2), pairs, answer)
    with pytest.raises(ValueError, match="larger capacity"):
        ops.write(ops.empty(SPEC, 2, 1), pairs, answer)


def labelled(first, second, preference, weight=None):
    number = len(first)
    weight = jnp.ones(number) if weight is None else jnp.asarray(weight)
    answer = Answer(jnp.asarray(preference, jnp.float32), weight)
    return ops.write(ops.empty(SPEC, 16, 1), pairs_of(first, second), answer)


def test_cycles_are_counted():
    # 0 > 1 > 2 > 0 is a cycle; 3 > 0 and 2 > 4 hang on it; 5 > 6 and 6 > 5 is one.
    buffer = labelled(
        [0, 1, 0, 3, 4, 5, 6, 7], [1, 2, 2, 0, 2, 6, 5, 8], [1, 1, 0, 1, 0, 1, 1, 0.5]
    )
    found = labels_lib.diagnose(buffer)
    assert (found.labels, found.ties, found.intransitive) == (8, 1, 5)
    with pytest.warns(UserWarning, match="5 of 8 labels are intransitive"):
        labels_lib.warn(buffer)


def test_two_cycles_in_a_row_do_not_count_the_edge_between_them():
    buffer = labelled([0, 1, 1, 2, 3], [1, 0, 2, 3, 2], [1, 1, 1, 1, 1])
    assert labels_lib.diagnose(buffer).intransitive == 4


def test_ties_and_silence_are_told_and_good_labels_are_not():
    with pytest.warns(UserWarning, match="3 of 3 labels are ties"):
        labels_lib.warn(labelled([0, 1, 2], [3, 4, 5], [0.5, 0.5, 0.5]))
    silent = labelled([0, 1], [2, 3], [0.5, 0.5], [0.0, 0.0])
    with pytest.warns(UserWarning, match="answered none of 2 queries"):
        labels_lib.warn(silent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels_lib.warn(labelled([0, 1], [1, 2], [1, 1])).labels == 2
    several = jax.tree.map(lambda x: jnp.stack([x, x]), silent)
    with pytest.raises(ValueError, match="several runs"):
        labels_lib.diagnose(several)


def test_crops_are_windows_of_one_length_for_both_segments(key):
    masks = np.asarray(ops.crops(key, 400, 6, 2))
    sizes = masks.sum(-1)
    assert np.all(sizes[:, 0] == sizes[:, 1])
    assert set(sizes.ravel()) == {4, 5, 6, 7, 8}
    # A window: the mask changes at most twice.
    assert np.all(np.abs(np.diff(masks.astype(int), axis=-1)).sum(-1) <= 2)
    assert masks.any(0).all()
    assert ops.crops(key, 3, 6, 0).all()
