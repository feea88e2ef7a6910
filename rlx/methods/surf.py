"""Semi-supervised reward learning with data augmentation (SURF).

Park, Seo, Shin, Lee, Abbeel and Lee 2022, https://arxiv.org/abs/2203.10050: PEBBLE
whose reward is also fitted to pairs that nobody labelled, where a member is sure
enough of its own answer (equation 4), and to segments cropped in time (section 4.2).

Special cases that hold exactly: with `unlabelled_weight=0` and `crop=0` it is PEBBLE.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from rlx.methods import _pebble, _pebble_learning, _preference
from rlx.ops import preference, segments
from rlx.ops.preference import Answer
from rlx.ops.segments import Labels, Pairs
from rlx.types import Array, EnvSpec, Key, Method, Params

SOURCE = "segments"


@dataclasses.dataclass(frozen=True)
class Config(_pebble_learning.Config):
    """SURF's own fields."""

    confidence: float = 0.99
    """τ: a member's answer counts as a label above this probability."""
    unlabelled_ratio: int = 4
    """μ: unlabelled pairs for each labelled one in a minibatch."""
    unlabelled_weight: float = 1.0
    """λ: weight of the pseudo-labels' loss."""
    crop: int = 5
    """Segments are cropped to `segment_length` ± this many steps. The data source's
    segments must be longer by twice as many."""


def loss(difference: Array, own_difference: Array, *, confidence: float) -> Array:
    """Cross-entropy with a member's own answer where it is sure (equation 4).

    L = 1[max(σ(Δ̄), σ(−Δ̄)) > τ] · (−log σ(Δ sign Δ̄)), Δ̄ of the segments as they are,
    Δ of their crops.

    Elementwise.

    Args:
      difference: `[...]` Δ.
      own_difference: `[...]` Δ̄, a constant of the gradient.
      confidence: τ in [0.5, 1).

    Returns:
      `[...]` the loss to minimise; 0 where the member is not sure.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([difference, own_difference])
    chex.assert_type([difference, own_difference], float)
    label = pseudo_label(own_difference, confidence)
    return -label.weight * preference.log_likelihood(difference, label.preference)


def pseudo_label(own_difference: Array, confidence: float | Array) -> Answer:
    """What a reward answers itself: preferences 0 or 1, weight 0 where it is not sure.

    Args:
      own_difference: `[...]` Δ̄.
      confidence: τ.
    """
    fixed = jax.lax.stop_gradient(own_difference)
    first = (fixed > 0).astype(fixed.dtype)
    sure = jax.nn.sigmoid(jnp.abs(fixed)) > confidence
    return Answer(first, sure.astype(fixed.dtype))


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    ask: _preference.Ask | None = None,
) -> Method:
    """SURF for an environment with continuous, bounded actions.

    Its data come from `rlx.data.segments.segments` with a `segment_length` of
    `config.segment_length + 2 * config.crop`; the teacher sees the middle.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      ask: a teacher of one's own; the scripted one of the config if None.

    Raises:
      ValueError: a field of the config has an impossible value, a segment is longer
        than an episode, or the actions are no vectors with finite bounds.
    """
    _check(config)

    def fit_loss(reward: _preference.Reward) -> _pebble_learning.FitLoss:
        def total(
            params: Params, labels: Labels, candidates: Pairs, key: Key
        ) -> _preference.Fit:
            label_key, own_key = jax.random.split(key)
            labelled = _labelled(reward, config, params, labels, label_key)
            own = _unlabelled(reward, config, params, candidates, own_key)
            return labelled._replace(
                loss=labelled.loss + config.unlabelled_weight * own
            )

        return total

    return _pebble.build(spec, config, fit_loss, ask, margin=config.crop)


def _labelled(
    reward: _preference.Reward, config: Config, params: Params, labels: Labels, key: Key
) -> _preference.Fit:
    index_key, crop_key = jax.random.split(key)
    index = _preference.minibatch(index_key, config, labels)
    mask = _crops(config, crop_key, config.reward_batch_size)
    return _preference.label_loss(
        reward, params, labels, index, mask, config.label_smoothing
    )


def _unlabelled(
    reward: _preference.Reward, config: Config, params: Params, pairs: Pairs, key: Key
) -> Array:
    """Mean loss on pseudo-labels, over all pairs whether sure or not."""
    index_key, crop_key = jax.random.split(key)
    number = config.unlabelled_ratio * config.reward_batch_size
    shape = (config.reward_members, number)
    index = jax.random.randint(index_key, shape, 0, pairs.whole.shape[0])
    masks = _crops(config, crop_key, number)

    def one(member: Params, rows: Array, mask: Array) -> Array:
        observation, action = pairs.observation[rows], pairs.action[rows]
        middle = _middle(config, mask)
        own, cropped = (
            _preference.differences(reward.member, member, observation, action, kept)
            for kept in (middle, mask)
        )
        losses = loss(cropped, own, confidence=config.confidence)
        return jnp.mean(jnp.where(pairs.whole[rows], losses, 0.0))

    return jnp.mean(jax.vmap(one)(params, index, masks))


def _crops(config: Config, key: Key, number: int) -> Array:
    """`bool[E, number, 2, L]`."""
    keys = jax.random.split(key, config.reward_members)

    def one(key: Key) -> Array:
        return segments.crops(key, number, config.segment_length, config.crop)

    return jax.vmap(one)(keys)


def _middle(config: Config, like: Array) -> Array:
    """A mask of what the teacher would see."""
    step = jnp.arange(like.shape[-1])
    inside = (step >= config.crop) & (step < config.crop + config.segment_length)
    return jnp.broadcast_to(inside, like.shape)


def _check(config: Config) -> None:
    confidence, ratio = config.confidence, config.unlabelled_ratio
    if isinstance(confidence, int | float) and not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must lie in [0.5, 1), got {confidence}")
    if ratio < 1:
        raise ValueError(f"unlabelled_ratio must be at least 1, got {ratio}")
    if not 0 <= config.crop < config.segment_length:
        raise ValueError(
            f"crop must lie in 0 ... segment_length - 1 = {config.segment_length - 1}, "
            f"got {config.crop}"
        )
