"""A search problem whose laws are known: Gaussian states, Gaussian rewards around each."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


class TwoLevelGaussian:
  """A `RolloutSource` of states s ~ N(0, state_scale^2) and rewards N(s, reward_scale^2).

  Attributes:
    states: `[P, drawn so far]` states of the prompts' own rollouts.
  """

  def __init__(
    self,
    num_prompts: int,
    *,
    seed: int = 0,
    state_scale: float = 1.0,
    reward_scale: float = 1.0,
    ended_share: float = 0.0,
    failed_share: float = 0.0,
  ):
    """Args:
    num_prompts: P.
    seed: of all draws.
    state_scale, reward_scale: standard deviations.
    ended_share: chance that a rollout ends within its state, which then cannot be extended.
    failed_share: chance that a rollout cannot be scored.
    """
    self._num_prompts = num_prompts
    self._rng = np.random.default_rng(seed)
    self._state_scale, self._reward_scale = state_scale, reward_scale
    self._ended_share, self._failed_share = ended_share, failed_share
    self.states = np.empty((num_prompts, 0))
    self._goes_on = np.empty((num_prompts, 0), bool)

  @property
  def num_prompts(self) -> int:
    return self._num_prompts

  def draw(
    self,
    nodes: Int[np.ndarray, "P S"],
    first: Int[np.ndarray, "P S"],
    counts: Int[np.ndarray, "P S"],
  ) -> Float[np.ndarray, "P S max_count"]:
    width = int(counts.max())
    places = first[..., None] + np.arange(width)
    at_root = nodes == 0
    self._extend(int(np.where(at_root, first + counts, 0).max(initial=0)))
    prompt = np.arange(self.num_prompts)[:, None]
    own = self.states[prompt, np.maximum(nodes - 1, 0)][..., None]
    fresh = self.states[prompt[..., None], np.minimum(places, self.states.shape[1] - 1)]
    means = np.where(at_root[..., None], fresh, own)
    rewards = means + self._reward_scale * self._rng.standard_normal(means.shape)
    if self._failed_share:
      rewards[self._rng.random(means.shape) < self._failed_share] = np.nan
    return np.where(np.arange(width) < counts[..., None], rewards, np.nan)

  def extendable(self, num_rollouts: int) -> Bool[np.ndarray, "P num_rollouts"]:
    self._extend(num_rollouts)
    return self._goes_on[:, :num_rollouts]

  def _extend(self, num_rollouts: int) -> None:
    missing = num_rollouts - self.states.shape[1]
    if missing <= 0:
      return
    shape = (self.num_prompts, missing)
    states = self._state_scale * self._rng.standard_normal(shape)
    goes_on = self._rng.random(shape) >= self._ended_share
    self.states = np.concatenate([self.states, states], axis=1)
    self._goes_on = np.concatenate([self._goes_on, goes_on], axis=1)
