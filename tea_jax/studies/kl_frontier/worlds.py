"""Small worlds in which the policy, its KL to the base and its best of N are exact.

A world is a policy with d parameters and rewards that are known for everything it can say. Groups
are drawn as a trainer draws them; KL, best-of-N and the Fisher matrix are sums, not estimates.

Axes: G groups of m rollouts, d parameters, P prompts with K responses each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special, stats

from tea_jax.tail import expected_maximum

WORLDS = ("gaussian_policy", "gaussian", "skewed", "two_modes", "bounded")


class Draw(NamedTuple):
  """Groups of rollouts, with all that an advantage rule may ask for.

  Attributes:
    rewards, logprobs: `[G, m]`.
    quantiles: `[G, m]` probability that the policy's reward is below this one.
    scores: `[G, m, d]` gradient of the log-probability.
  """

  rewards: Float[Array, "G m"]
  logprobs: Float[Array, "G m"]
  quantiles: Float[Array, "G m"]
  scores: Float[Array, "G m d"]


class World(Protocol):
  """What `equilibria` and `ceiling` need of a world; instances are pytrees of arrays."""

  def start(self) -> Float[Array, "d"]:
    """Parameters of the base policy."""
    ...

  def draw(self, params: Array, key: Array, *, num_groups: int, num_rollouts: int) -> Draw:
    """Groups sampled from the policy."""
    ...

  def natural(self, params: Array, gradient: Array) -> Float[Array, "d"]:
    """Fisher matrix of the policy, inverted, times a gradient."""
    ...

  def kl(self, params: Array) -> Float[Array, ""]:
    """KL(policy || base), mean over prompts."""
    ...

  def kl_natural_gradient(self, params: Array) -> Float[Array, "d"]:
    """`natural` of the gradient of `kl`."""
    ...

  def best_of_n(self, params: Array, budget: int) -> Float[Array, ""]:
    """Expected maximum of `budget` rewards, mean over prompts; no sampling."""
    ...


class GaussianWorld(NamedTuple):
  """The reward is Normal(mean, scale^2); parameters are the mean and the log of the scale.

  Maximising best-of-N - beta KL gives mean = 1 / beta and scale - 1 / scale = c_N / beta, c_N the
  expected maximum of N standard normals; maximising the mean gives the same mean and scale 1.

  Attributes:
    base: `[2]` parameters of the base policy.
  """

  base: Any = np.zeros(2, np.float32)

  def start(self) -> Float[Array, "2"]:
    return jnp.asarray(self.base)

  def draw(self, params: Array, key: Array, *, num_groups: int, num_rollouts: int) -> Draw:
    mean, scale = params[0], jnp.exp(params[1])
    z = jax.random.normal(key, (num_groups, num_rollouts))
    return Draw(
      rewards=mean + scale * z,
      logprobs=-0.5 * z**2 - params[1] - 0.5 * np.log(2 * np.pi),
      quantiles=jax.scipy.special.ndtr(z),
      scores=jnp.stack([z / scale, z**2 - 1], -1),
    )

  def natural(self, params: Array, gradient: Array) -> Float[Array, "2"]:
    return gradient * jnp.stack([jnp.exp(2 * params[1]), jnp.asarray(0.5)])

  def kl(self, params: Array) -> Float[Array, ""]:
    mean, log_scale = params[0] - self.base[0], params[1] - self.base[1]
    spread = jnp.exp(2 * self.base[1])
    return 0.5 * (jnp.expm1(2 * log_scale) + mean**2 / spread) - log_scale

  def kl_natural_gradient(self, params: Array) -> Float[Array, "2"]:
    return self.natural(params, jax.grad(self.kl)(params))

  def best_of_n(self, params: Array, budget: int) -> Float[Array, ""]:
    return params[0] + expected_maximum(budget) * jnp.exp(params[1])


class SoftmaxWorld(NamedTuple):
  """Softmax over K responses of each prompt, of features that all prompts share.

  log policy = log base + features . params - log sum. With few shared features a policy cannot put
  its mass on single responses: it can only learn directions that raise or spread the rewards of
  every prompt.

  Attributes:
    rewards: `[P, K]`, ascending along the responses.
    features: `[P, K, d]`.
    base_logprobs: `[P, K]`.
  """

  rewards: Float[Array, "P K"]
  features: Float[Array, "P K d"]
  base_logprobs: Float[Array, "P K"]

  def start(self) -> Float[Array, "d"]:
    return jnp.zeros(self.features.shape[-1])

  def draw(self, params: Array, key: Array, *, num_groups: int, num_rollouts: int) -> Draw:
    num_prompts, num_responses = self.rewards.shape
    if num_groups % num_prompts:
      raise ValueError(f"num_groups={num_groups} must be a multiple of the {num_prompts} prompts")
    logprobs = self._logprobs(params)
    probabilities = jnp.exp(logprobs)
    below = jnp.cumsum(probabilities, -1)
    shape = (num_prompts, num_groups // num_prompts * num_rollouts)
    uniform = jax.random.uniform(key, shape) * below[:, -1:]
    search = jax.vmap(lambda cdf, u: jnp.searchsorted(cdf, u, method="scan_unrolled"))
    chosen = jnp.minimum(search(below, uniform), num_responses - 1)

    def take(values: Array) -> Array:
      taken = jax.vmap(lambda row, index: row[index])(values, chosen)
      return taken.reshape(num_groups, num_rollouts, *values.shape[2:])

    centre = jnp.einsum("pk,pkd->pd", probabilities, self.features)
    return Draw(
      rewards=take(self.rewards),
      logprobs=take(logprobs),
      quantiles=take(below - probabilities),
      scores=take(self.features - centre[:, None]),
    )

  def natural(self, params: Array, gradient: Array) -> Float[Array, "d"]:
    probabilities = jnp.exp(self._logprobs(params))
    centre = jnp.einsum("pk,pkd->pd", probabilities, self.features)
    second = jnp.einsum("pk,pkd,pke->de", probabilities, self.features, self.features)
    num_prompts = self.rewards.shape[0]
    fisher = (second - jnp.einsum("pd,pe->de", centre, centre)) / num_prompts
    return jnp.linalg.solve(fisher + 1e-5 * jnp.eye(fisher.shape[0]), gradient)

  def kl(self, params: Array) -> Float[Array, ""]:
    logprobs = self._logprobs(params)
    return jnp.mean(jnp.sum(jnp.exp(logprobs) * (logprobs - self.base_logprobs), -1))

  def kl_natural_gradient(self, params: Array) -> Float[Array, "d"]:
    # grad KL = Fisher . params, since log policy - log base is linear in the parameters.
    return params

  def best_of_n(self, params: Array, budget: int) -> Float[Array, ""]:
    # E max = r_K - sum_j (r_{j+1} - r_j) F_j^N: ties have no gap, so they need no care.
    below = jnp.cumsum(jnp.exp(self._logprobs(params)), -1)[:, :-1]
    gaps = jnp.diff(self.rewards, axis=-1)
    powers = jnp.clip(below, 0, 1) ** budget
    return jnp.mean(self.rewards[:, -1] - jnp.sum(gaps * powers, -1))

  def _logprobs(self, params: Array) -> Float[Array, "P K"]:
    return jax.nn.log_softmax(self.base_logprobs + self.features @ params, -1)


def make_world(
  name: str, *, num_prompts: int = 8, num_responses: int = 256, seed: int = 0
) -> GaussianWorld | SoftmaxWorld:
  """A named world; the base's rewards have mean 0 and standard deviation 1.

  In a softmax world the base's latents x are Normal(0, I_3) and the quality of a response is
  u = 0.9 w . x + 0.44 e, w = (0.8, 0.6, 0), e ~ Normal(0, 1); its reward is a function of u.
  Features are x and (x^2 - 1) / sqrt(2): the first shift a policy, the second widen it, neither
  exactly along u. Latents are drawn from a wider law and weighted back, so that there is somewhere
  to go beyond the base's best responses.

  - gaussian_policy: `GaussianWorld`, free in mean and scale;
  - gaussian: the reward is u;
  - skewed: counts, Poisson with mean 2 (the lexicon reward counts words);
  - two_modes: a local optimum below a valley; 2 % of the base lie beyond it;
  - bounded: uniform.

  Args:
    name: one of `WORLDS`.
    num_prompts: P.
    num_responses: K.
    seed: of the latents.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in WORLDS:
    raise ValueError(f"unknown world {name!r}; known: {', '.join(WORLDS)}")
  if name == "gaussian_policy":
    return GaussianWorld()
  generator = np.random.default_rng(seed)
  z = generator.standard_normal((num_prompts, num_responses, 4))
  drawn = _WIDENING * z
  log_weights = 0.5 * np.sum(z**2 - drawn**2, -1)
  latent, noise = drawn[..., :3], drawn[..., 3]
  quality = 0.9 * latent @ np.array([0.8, 0.6, 0.0]) + np.sqrt(1 - 0.9**2) * noise
  rewards = _REWARDS[name](quality)
  base = np.exp(special.log_softmax(log_weights, axis=-1))
  rewards = rewards - np.sum(base * rewards, -1, keepdims=True)
  rewards = rewards / np.sqrt(np.mean(np.sum(base * rewards**2, -1)))
  order = np.argsort(rewards, axis=-1)
  features = np.concatenate([latent, (latent**2 - 1) / np.sqrt(2)], -1)
  return SoftmaxWorld(
    rewards=jnp.asarray(np.take_along_axis(rewards, order, -1), jnp.float32),
    features=jnp.asarray(np.take_along_axis(features, order[..., None], 1), jnp.float32),
    base_logprobs=jnp.asarray(np.log(np.take_along_axis(base, order, -1)), jnp.float32),
  )


_WIDENING = np.array([1.4, 1.4, 1.2, 1.2])


def _two_modes(quality: np.ndarray) -> np.ndarray:
  return np.interp(quality, [-3.0, 0.7, 1.8, 3.0], [-2.0, 1.0, -1.0, 6.0])


_REWARDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "gaussian": lambda quality: quality,
  "skewed": lambda quality: stats.poisson.ppf(stats.norm.cdf(quality), 2.0),
  "two_modes": _two_modes,
  "bounded": stats.norm.cdf,
}
