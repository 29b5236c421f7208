"""What a test-time strategy is: the probability S(p) that it succeeds, and what a sample is worth.

p is the probability that one sample succeeds and S(p) that the strategy does, with all its N
samples. Reinforcement learning weights a sample by S'(p); supervised learning minimises -log S(p),
whose gradient is that of -log p times p S'(p) / S(p). Everything is in logarithms of p and of
1 - p, so that p may be as close to 0 or to 1 as the logarithms can say.

Source: arXiv 2604.24957, Table 1.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

# -80 and -80.0 and an array of any shape: what else is given has to broadcast with it.
Logarithm = Real[ArrayLike, "*#batch"]


@dataclasses.dataclass(frozen=True)
class Strategy(abc.ABC):
  """A test-time strategy with a budget of N samples.

  Every method takes `log_probability`, log p <= 0 (-inf allowed), and optionally `log_failure`, the
  logarithm of the probability of a sample that does not help, where it is known better than from
  log p; both of any shape. All are pure, jitted by whoever calls them, and elementwise.

  Attributes:
    budget: N.

  Example:
    >>> strategy = tea_jax.strategies.pass_at_n(16)
    >>> print(f"{strategy.weight(jnp.log(0.01)):.3f}")  # S'(p) = 16 * 0.99^15
    13.761
    >>> print(jax.grad(strategy.loss)(-80.0))  # a sample that is never right learns as under NLL
    -1.0
  """

  budget: int

  def __post_init__(self) -> None:
    if self.budget != int(self.budget) or self.budget < 1:
      raise ValueError(f"budget={self.budget} must be a positive integer")

  def log_success(
    self, log_probability: Logarithm, log_failure: Logarithm | None = None
  ) -> Float[Array, "*#batch"]:
    """log S(p). Its derivative by log p is `supervised_weight`, exactly, at both ends too.

    `log_failure` moves with p: it takes no derivative of its own.
    """
    log_probability, log_failure = _logarithms(log_probability, log_failure)
    return _log_success(self, log_probability, log_failure)

  def loss(self, log_probability: Logarithm) -> Float[Array, "*#batch"]:
    """-log S(p), the supervised loss of a target whose log-probability is log p."""
    return -self.log_success(log_probability)

  def log_weight(
    self, log_probability: Logarithm, log_failure: Logarithm | None = None
  ) -> Float[Array, "*#batch"]:
    """log S'(p); -inf where the weight is 0."""
    return self._log_weight(*_logarithms(log_probability, log_failure))

  def log_supervised_weight(
    self, log_probability: Logarithm, log_failure: Logarithm | None = None
  ) -> Float[Array, "*#batch"]:
    """log(p S'(p) / S(p)); -inf where the weight is 0."""
    return self._log_supervised_weight(*_logarithms(log_probability, log_failure))

  def weight(
    self, log_probability: Logarithm, log_failure: Logarithm | None = None
  ) -> Float[Array, "*#batch"]:
    """S'(p), the weight of a sample in reinforcement learning."""
    return jnp.exp(self.log_weight(log_probability, log_failure))

  def supervised_weight(
    self, log_probability: Logarithm, log_failure: Logarithm | None = None
  ) -> Float[Array, "*#batch"]:
    """p S'(p) / S(p), the weight of a target's negative log-likelihood."""
    return jnp.exp(self.log_supervised_weight(log_probability, log_failure))

  @abc.abstractmethod
  def _log_success(self, log_probability: Array, log_failure: Array) -> Array: ...

  @abc.abstractmethod
  def _log_weight(self, log_probability: Array, log_failure: Array) -> Array: ...

  @abc.abstractmethod
  def _log_supervised_weight(self, log_probability: Array, log_failure: Array) -> Array: ...


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_success(strategy: Strategy, log_probability: Array, log_failure: Array) -> Array:
  return strategy._log_success(log_probability, log_failure)


@_log_success.defjvp
def _log_success_jvp(strategy: Strategy, primals: Any, tangents: Any) -> tuple[Array, Array]:
  # The closed form is finite where the derivative of log(1 - p) is not, at p = 1.
  weight = jnp.exp(strategy._log_supervised_weight(*primals))
  return strategy._log_success(*primals), weight * tangents[0]


def _logarithms(log_probability: Any, log_failure: Any) -> tuple[Array, Array]:
  log_probability = jnp.asarray(log_probability)
  if not jnp.issubdtype(log_probability.dtype, jnp.floating):
    log_probability = log_probability.astype(float)
  # Not `minimum`, whose derivative at p = 1 is a half.
  log_probability = jnp.where(log_probability > 0, 0, log_probability)
  if log_failure is None:
    log_failure = jax.lax.stop_gradient(log_complement(log_probability))
  return log_probability, jnp.minimum(jnp.asarray(log_failure, log_probability.dtype), 0)


def log_complement(log_probability: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
  """log(1 - p) from log p <= 0, without cancellation at either end."""
  log_probability = jnp.minimum(log_probability, 0)
  near_one = log_probability > -math.log(2)
  # Each branch sees only arguments at which it is finite.
  small = jnp.log(-jnp.expm1(jnp.where(near_one, log_probability, -1.0)))
  large = jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, log_probability)))
  return jnp.where(near_one, small, large)


def times_log(factor: Any, logarithm: Array) -> Array:
  """factor * logarithm, where 0 * -inf is 0."""
  factor = jnp.asarray(factor)
  return jnp.where(factor == 0, 0, jnp.where(factor == 0, 1, factor) * logarithm)
