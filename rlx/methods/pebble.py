"""Preference-based learning with relabelling and unsupervised pre-training (PEBBLE).

Lee, Smith and Abbeel 2021, https://arxiv.org/abs/2106.05091: pre-train the policy to
visit new states; then, session by session, ask a teacher which of two segments is
better, refit an ensemble of rewards to all labels (equation 4), relabel all
experience, and go on with soft actor-critic.

Special cases that hold exactly: without labels it is soft actor-critic on a random
reward; the gradient of its fit is that of A-PARL with κ = 0. Unlike the authors' code,
a fit draws its minibatches with replacement, novelty is measured within a batch, not
against the whole memory, and thresholds of the teacher count their fraction once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import chex

from rlx.methods import _pebble, _pebble_learning, _preference
from rlx.ops import preference
from rlx.ops.segments import Labels, Pairs
from rlx.types import Array, EnvSpec, Key, Method, Params

SOURCE = "segments"
Asked = _pebble.Asked
"""What a session asked, and what it was told."""


@dataclasses.dataclass(frozen=True)
class Config(_pebble_learning.Config):
    """PEBBLE's fields are all shared with SURF."""


def loss(difference: Array, preference_: Array) -> Array:
    """Cross-entropy of a preference (Lee et al. 2021, equation 4).

    L = −y log σ(Δ) − (1 − y) log σ(−Δ), Δ = Σ r̂(first) − Σ r̂(second).

    Elementwise.

    Args:
      difference: `[...]` Δ.
      preference_: `[...]` y: 1 the first is the better, 0 the second, ½ neither.

    Returns:
      `[...]` the loss to minimise.

    Raises:
      AssertionError: the arrays' shapes differ, or one does not hold floats.
    """
    chex.assert_equal_shape([difference, preference_])
    return -preference.log_likelihood(difference, preference_)


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    ask: _preference.Ask | None = None,
) -> Method:
    """PEBBLE for an environment with continuous, bounded actions.

    Its data come from `rlx.data.segments.segments`.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      ask: a teacher of one's own; the scripted one of the config if None.

    Raises:
      ValueError: a field of the config has an impossible value, a segment is longer
        than an episode, or the actions are no vectors with finite bounds.
    """
    return _pebble.build(spec, config, _fit_loss(config), ask, margin=0)


def make_session(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
) -> _pebble.Session:
    """A session in two parts, for teachers outside of the compiled program.

    Train with `num_labels=0`, so that the method asks nobody; between two runs choose
    queries among a batch's candidates, show them to a person, and learn from what they
    say. The learner's state stays all that a run is.

    Args:
      spec: the environment's.
      config: as of the method, with the budget that the person grants.
    """
    _pebble_learning.check(config)
    return _pebble.make_session(spec, config, _fit_loss(config))


def _fit_loss(
    config: Config,
) -> Callable[[_preference.Reward], _pebble_learning.FitLoss]:
    def fit_loss(reward: _preference.Reward) -> _pebble_learning.FitLoss:
        def total(
            params: Params, labels: Labels, candidates: Pairs, key: Key
        ) -> _preference.Fit:
            del candidates
            index = _preference.minibatch(key, config, labels)
            return _preference.label_loss(
                reward, params, labels, index, smoothing=config.label_smoothing
            )

        return total

    return fit_loss
