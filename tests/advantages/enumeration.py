"""A small discrete policy whose groups can be listed: expectations without sampling, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np


class DiscretePolicy:
  """Softmax over outcomes with fixed rewards; scores are gradients of log-probabilities."""

  def __init__(self, rewards, logits):
    self.rewards = np.asarray(rewards, np.float64)
    self.logits = np.asarray(logits, np.float64)
    weights = np.exp(self.logits - self.logits.max())
    self.probabilities = weights / weights.sum()
    self.scores = np.eye(len(self.rewards)) - self.probabilities

  def groups(self, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All outcomes^size groups as indices `[G, size]`, and their probabilities `[G]`."""
    index = np.array(list(itertools.product(range(len(self.rewards)), repeat=size)))
    return index, self.probabilities[index].prod(-1)

  def expected_gradient(self, rule, size: int, **inputs) -> np.ndarray:
    """E[sum_i A_i score_i] over all groups."""
    index, probability = self.groups(size)
    with jax.enable_x64(True):
      advantages = np.asarray(rule(jnp.asarray(self.rewards[index]), **inputs))
    assert advantages.dtype == np.float64
    return np.einsum("g,gi,gid->d", probability, advantages, self.scores[index])

  def gradient_of_expected_maximum(self, size: int) -> np.ndarray:
    """grad E[max of `size`] by the score function, exactly: E[max * sum of scores]."""
    index, probability = self.groups(size)
    return np.einsum("g,gid->d", probability * self.rewards[index].max(-1), self.scores[index])


DISTINCT = DiscretePolicy([0.3, -1.2, 2.0, 0.7], [0.1, 0.5, -0.9, 0.2])
TIED = DiscretePolicy([1.0, -0.5, 1.0, 0.2], [0.3, -0.2, 0.4, 0.0])
POLICIES = {"distinct": DISTINCT, "tied": TIED}
