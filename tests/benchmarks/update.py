"""One update of SmolLM2's shape: log-probs, backward, AdamW; against torch with a chunked loss.

One group of rollouts; torch repeats the prompt for each, as trainers do, and computes the head in
chunks under checkpointing, so that it holds no logits of the batch either. Each side is a process
of its own for its peak memory; run both, one after the other:

  python -m tests.benchmarks.update --side jax
  python -m tests.benchmarks.update --side torch
"""

from __future__ import annotations

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tea_jax.models.causal_lm import init_params
from tea_jax.models.logprobs import group_logprobs
from tea_jax.models.policy import Policy
from tea_jax.rollout.types import Rollouts
from tea_jax.runtime.compilation import enable_compilation_cache
from tests.benchmarks.common import SMOLLM2, peak_gib, seconds, torch_model


def jax_side(arguments, prompt: np.ndarray, completions: np.ndarray, advantages: np.ndarray):
  # The policy carries no weights of its own, so that the step may donate the only copy.
  policy = Policy(SMOLLM2, {}, compute_dtype=arguments.dtype, remat=arguments.remat)
  rollouts = Rollouts(
    prompt_tokens=jnp.asarray(prompt)[None],
    prompt_lengths=jnp.asarray([prompt.size]),
    completion_tokens=jnp.asarray(completions)[None],
    completion_lengths=jnp.full((1, len(completions)), completions.shape[1]),
    finished=jnp.ones((1, len(completions)), bool),
    logprobs=jnp.zeros((1, *completions.shape)),
    sampling_logprobs=jnp.zeros((1, *completions.shape)),
  )
  optimizer = optax.adamw(1e-5)

  def loss(params):
    scored = group_logprobs(policy, params, rollouts, temperature=1.0)
    return -jnp.mean(scored.logprobs * advantages[None, :, None])

  def update(params, state):
    value, gradient = jax.value_and_grad(loss)(params)
    change, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, change), state, value

  step = jax.jit(update, donate_argnums=(0, 1))
  params = init_params(SMOLLM2, jax.random.key(0))
  carry = [params, optimizer.init(params)]
  del params

  def run() -> None:
    params, state, value = step(*carry)
    carry[:] = [params, state]
    float(value)

  return run


def torch_side(arguments, prompt: np.ndarray, completions: np.ndarray, advantages: np.ndarray):
  import torch
  from torch.utils.checkpoint import checkpoint

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = torch_model(arguments.dtype).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
  rows = np.concatenate([np.tile(prompt, (len(completions), 1)), completions], axis=1)
  rows = torch.as_tensor(rows)
  targets = torch.as_tensor(completions).reshape(-1)
  weights = torch.as_tensor(advantages).repeat_interleave(completions.shape[1])

  def chunk_loss(hidden, wanted, weight):
    logits = model.lm_head(hidden).float()
    logprobs = -torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return -(logprobs * weight).sum()

  def run() -> None:
    hidden = model.model(rows, use_cache=False).last_hidden_state
    hidden = hidden[:, prompt.size - 1 : -1].reshape(-1, hidden.shape[-1])
    parts = (hidden.split(512), targets.split(512), weights.split(512))
    total = sum(
      checkpoint(chunk_loss, *part, use_reentrant=False) for part in zip(*parts, strict=True)
    )
    (total / targets.numel()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return run


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--side", choices=["jax", "torch"], required=True)
  parser.add_argument("--group", type=int, default=64)
  parser.add_argument("--prompt", type=int, default=32)
  parser.add_argument("--new-tokens", type=int, default=64)
  parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  parser.add_argument("--remat", default="full", choices=["none", "dots", "full"])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--cache", action="store_true", help="use the compilation cache")
  arguments = parser.parse_args()
  if arguments.cache:
    enable_compilation_cache()
  rng = np.random.default_rng(0)
  prompt = rng.integers(0, SMOLLM2.vocab_size, arguments.prompt)
  completions = rng.integers(0, SMOLLM2.vocab_size, (arguments.group, arguments.new_tokens))
  advantages = rng.normal(size=arguments.group).astype(np.float32)
  make = jax_side if arguments.side == "jax" else torch_side
  run = make(arguments, prompt, completions, advantages)
  times = seconds({arguments.side: run}, arguments.repeats)[arguments.side]
  print(
    f"{arguments.side} {arguments.dtype} update of {arguments.group} x"
    f" ({arguments.prompt} + {arguments.new_tokens}): {times}, peak {peak_gib():.1f} GiB"
  )


if __name__ == "__main__":
  main()
