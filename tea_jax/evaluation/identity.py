"""What identifies an evaluation, so that stored completions are never taken for others."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tea_jax.training.config import to_dict
from tea_jax.training.options import DataOptions, ModelOptions, SamplingOptions


def evaluation_spec(
  params: Any, *, model: ModelOptions, data: DataOptions, sampling: SamplingOptions, seed: int
) -> dict[str, Any]:
  """Everything beside prompts and reward on which the completions of a policy depend.

  Args:
    params: the weights that are sampled from.
    model: of which the compute dtype counts; the weights speak for the rest.
    data: of which the way from a prompt to its tokens counts.
    sampling: all of it; the group size decides the random keys.
    seed: of the evaluation.

  Returns:
    JSON for `evaluate_policy` or `sample_pools`.
  """
  template = {name: getattr(data, name) for name in ("chat", "system_prompt", "max_prompt_length")}
  return {
    "weights": parameters_digest(params),
    "compute_dtype": model.compute_dtype,
    "template": template,
    "sampling": to_dict(sampling),
    "seed": seed,
  }


def parameters_digest(params: Any) -> str:
  """A short fingerprint of weights for a record's spec: retrained weights are not mixed up.

  It covers every tensor, by its sum and its first 1024 numbers.
  """
  digest = hashlib.blake2b(digest_size=8)
  for path, leaf in sorted(jax.tree.leaves_with_path(params), key=lambda item: str(item[0])):
    digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
    flat = leaf.reshape(-1)
    digest.update(_fetch(flat[:1024]).astype(np.float32).tobytes())
    digest.update(_fetch(flat.sum()).astype(np.float32).tobytes())
  return digest.hexdigest()


def _fetch(values: Any) -> np.ndarray:
  """The whole array on this process, wherever its shards are."""
  if getattr(values, "is_fully_addressable", True):
    return np.asarray(values)
  return np.asarray(multihost_utils.process_allgather(values, tiled=True))
