"""Policies at the same KL after the fact: trained weights drawn back towards those they began with.

Runs that were steered to one KL end near it, not at it. On the straight line from the base to a
trained policy the KL grows about with the square of the way, so a few samples find the place where
it has a given value: rules are then compared at one KL, whatever their coefficients were. The line
is not the path of the training; averaged weights are known to keep most of the reward at each KL
(WARP, arXiv 2406.16768).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from tea_jax.data import EncodedPrompts
from tea_jax.evaluation.sampling import sample_calls
from tea_jax.evaluation.sources import HeldOut, engine_of, load_finished, spec_of
from tea_jax.models.digest import parameters_digest
from tea_jax.models.logprobs import group_logprobs
from tea_jax.models.policy import Policy
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.runs.config import load_config
from tea_jax.runtime import processes
from tea_jax.runtime.files import read_json, write_text
from tea_jax.runtime.keys import make_key

_KL_KEY = 1  # folded in, so that the KL is not measured on the completions that are judged
_TOLERANCE = 0.05
_TRIES = 4
_PROMPTS_PER_CALL = 4


class DrawnBack(NamedTuple):
  """A policy on the line from its base.

  Attributes:
    share: of the way from the base, in (0, 1].
    kl: to the base, nats a completion, as measured.
    error: standard error of the KL.
  """

  share: float
  kl: float
  error: float

  def __str__(self) -> str:
    return f"{self.share:.3f} of the way from its base, KL {self.kl:.3f} +- {self.error:.3f}"


def blend(base: Any, trained: Any, share: float) -> Any:
  """base + share (trained - base), in the base's dtypes.

  Example:
    >>> import jax.numpy as jnp
    >>> blend({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, 0.25)["w"].tolist()
    [0.25, 0.25]
  """

  def between(start: Array, end: Array) -> Array:
    return (start + share * (end - start)).astype(start.dtype)

  return jax.tree.map(between, base, trained)


def draw_back(
  kl_of: Callable[[float], tuple[float, float]], target: float, *, name: str = "the policy"
) -> DrawnBack:
  """Finds the share of the way at which the KL is within 5 % of the target.

  Args:
    kl_of: share -> (KL, its standard error).
    target: KL to the base, nats a completion.
    name: of the policy, for the error.

  Raises:
    ValueError: if the policy itself is nearer to its base than the target.

  Example:
    >>> draw_back(lambda share: (2 * share**2, 0.0), 0.5).share
    0.5
  """
  if not (math.isfinite(target) and target > 0):
    raise ValueError(f"the KL {target} must be a positive number of nats a completion")
  tried: list[DrawnBack] = []
  share = 1.0
  for _ in range(_TRIES):
    tried.append(DrawnBack(share, *kl_of(share)))
    kl = tried[-1].kl
    if abs(kl / target - 1) <= _TOLERANCE:
      break
    if share == 1.0 and kl < target:
      raise ValueError(
        f"{name} is at a KL of {kl:.3f} +- {tried[-1].error:.3f} to its base, below {target:g}; "
        "choose a smaller KL, or train it further"
      )
    share = min(1.0, share * (target / max(kl, 1e-6)) ** (1 / _power(tried[-2:])))
  return min(tried, key=lambda each: abs(each.kl / target - 1))


def _power(last: Sequence[DrawnBack]) -> float:
  """With which power of the share the KL grows, by the last two tries; 2 where there is one."""
  if len(last) < 2 or last[0].share == last[1].share or min(each.kl for each in last) <= 0:
    return 2.0
  power = math.log(last[1].kl / last[0].kl) / math.log(last[1].share / last[0].share)
  return min(max(power, 1.0), 4.0)


def measured_kl(
  engine: RolloutEngine,
  policy: Policy,
  params: Any,
  base: Any,
  prompts: EncodedPrompts,
  *,
  key: Array,
  num_samples: int,
) -> tuple[float, float]:
  """KL of parameters to the base on prompts, in nats a completion, and its standard error.

  The mean over completions y of the parameters' policy of sum_t (r_t - 1 - log r_t), r_t the ratio
  of the base's probability of token t to the policy's: unbiased, and never negative.

  Args:
    engine: for the policy's sampling.
    policy: whose parameters both are.
    params, base: of the two.
    prompts: encoded.
    key: of the samples.
    num_samples: completions of each prompt.
  """
  temperature = engine.sampling.temperature
  found = []
  for call in sample_calls(
    engine,
    params,
    prompts.tokens,
    [prompt.id for prompt in prompts.prompts],
    key_of_part=lambda _: key,
    num_samples=num_samples,
    rollouts_per_call=num_samples,
    prompts_per_call=min(_PROMPTS_PER_CALL, len(prompts)),
  ):
    rollouts = call.rollouts
    reference = group_logprobs(policy, base, rollouts, temperature=temperature).logprobs
    ratio = processes.fetch(reference).astype(np.float64) - rollouts.logprobs
    places = np.arange(ratio.shape[-1]) < np.asarray(rollouts.completion_lengths)[..., None]
    found.append(np.where(places, np.expm1(ratio) - ratio, 0.0).sum(axis=-1).ravel())
  values = np.concatenate(found)
  return float(values.mean()), float(values.std() / math.sqrt(values.size))


def drawn_to_kl(
  policy: Policy,
  name: str,
  settings: HeldOut,
  prompts: EncodedPrompts,
  kl: float,
  *,
  found_before: str | os.PathLike[str],
) -> tuple[Policy, DrawnBack]:
  """The policy of a run drawn back to its base until it has a KL on the prompts; see `draw_back`.

  Args:
    policy: the finished one of the run.
    name: folder of the run.
    settings: of the sampling.
    prompts: encoded for the policy.
    kl: to the base, nats a completion.
    found_before: JSON file of what was found for the same weights, prompts and settings.

  Raises:
    ValueError: if the policy is nearer to its base than that.
  """
  own = load_config(pathlib.Path(name) / "config.yaml").model
  base = load_finished(own.name, dataclasses.replace(settings, model=own)).params
  asked = spec_of(policy.params, settings) | {
    "base": parameters_digest(base),
    "prompts": [prompt.text for prompt in prompts.prompts],
    "kl": kl,
  }
  file = pathlib.Path(found_before)

  def known() -> dict[str, float] | None:
    stored = read_json(file) if file.is_file() else {}
    return stored["found"] if stored.get("asked") == asked else None

  def keep(found: DrawnBack) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"asked": asked, "found": found._asdict()}, indent=2))

  stored = processes.on_first(known)
  if stored is not None:
    found = DrawnBack(**stored)
  else:
    engine = engine_of(policy, settings, prompts)
    options = {
      "key": jax.random.fold_in(make_key(settings.evaluation.seed), _KL_KEY),
      "num_samples": settings.sampling.num_rollouts,
    }

    def kl_of(share: float) -> tuple[float, float]:
      params = blend(base, policy.params, share)
      return processes.agree(measured_kl(engine, policy, params, base, prompts, **options))

    found = draw_back(kl_of, kl, name=name)
    processes.on_first(keep, found)
  return dataclasses.replace(policy, params=blend(base, policy.params, found.share)), found
