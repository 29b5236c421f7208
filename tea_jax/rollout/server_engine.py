"""Rollouts from a vLLM server that takes over the policy's weights before it samples."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from tea_jax.models.digest import parameters_digest
from tea_jax.models.policy import Policy
from tea_jax.rollout.cache import bucket
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.rollout.types import Rollouts
from tea_jax.runtime.completions_client import CompletionsClient, CompletionsError


class ServerEngine:
  """Samples where `RolloutEngine` would, on a server: `train(config, engine=ServerEngine(...))`.

  Before the first call, and whenever the weights have changed, they are written into `folder` and
  the server reads them again:

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --dtype bfloat16

  The server's token ids and log-probabilities are what the trainer sees. Its kernels and dtype
  differ from the trainer's, by what `mismatch` in the metrics says; `objective.importance_cap`
  corrects for it. The tokens are the server's own: a run that resumes does not repeat its bits.
  """

  def __init__(
    self,
    policy: Policy,
    sampling: SamplingConfig,
    url: str,
    *,
    folder: str | os.PathLike[str],
    dtype: str = "bfloat16",
    processed_logprobs: bool = False,
    smallest_prompt: int = 1,
    model: str = "",
    concurrency: int = 16,
    timeout: float = 600.0,
    attempts: int = 5,
    first_pause: float = 1.0,
    headers: Mapping[str, str] | None = None,
  ):
    """Args:
    policy: names the end tokens, and writes its folder; its weights are not used.
    sampling: of every call; the whole softmax, since training needs its log-probabilities.
    url: of the server.
    folder: that the server was started on; trainer and server both see it.
    dtype: of the weights there.
    processed_logprobs: the server runs with `--logprobs-mode processed_logprobs`. Without it its
      log-probabilities are those at temperature 1, the only one that is then accepted.
    smallest_prompt: prompts are padded to at least this width.
    model: name that the server knows the folder by; the folder itself if empty.
    concurrency: prompts at the same time.
    timeout, attempts, first_pause, headers: see `CompletionsClient`.
    """
    if sampling.truncated or sampling.greedy:
      raise ValueError(
        f"temperature={sampling.temperature}, top_k={sampling.top_k}, top_p={sampling.top_p}, "
        f"min_p={sampling.min_p}, repetition_penalty={sampling.repetition_penalty}: a server's "
        "log-probabilities train the policy only if it samples from the whole softmax."
      )
    if sampling.temperature != 1 and not processed_logprobs:
      raise ValueError(
        f"temperature={sampling.temperature} needs a server that reports the log-probabilities it "
        "sampled from; start it with --logprobs-mode processed_logprobs and say "
        "processed_logprobs=True, or use temperature=1."
      )
    if concurrency < 1:
      raise ValueError(f"concurrency={concurrency} must be at least 1")
    self.policy, self.sampling = policy, sampling
    self.smallest_prompt = smallest_prompt
    self._folder, self._dtype, self._concurrency = os.fspath(folder), dtype, concurrency
    stop_tokens = policy.stop_tokens if sampling.stop_tokens is None else sampling.stop_tokens
    self._body: dict[str, Any] = {
      "model": model or self._folder,
      "max_tokens": sampling.max_completion_length,
      "temperature": sampling.temperature,
      "top_p": 1.0,
      "top_k": -1,
      "stop_token_ids": list(stop_tokens),
      "logprobs": 0,
      "return_token_ids": True,
    }
    if sampling.stop_strings:
      self._body |= {"stop": list(sampling.stop_strings), "include_stop_str_in_output": True}
    self._client = CompletionsClient(
      url, timeout=timeout, attempts=attempts, first_pause=first_pause, headers=headers
    )
    self._loaded: str | None = None

  def generate(
    self,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    key: Array,
    num_rollouts: int,
    prompt_ids: Sequence[int] | None = None,
  ) -> Rollouts:
    """Samples `num_rollouts` completions of every prompt; see `RolloutEngine.generate`.

    Raises:
      CompletionsError: the server does not answer, or its answer holds no ids or log-probabilities.
    """
    self._load(params)
    ids = range(len(prompts)) if prompt_ids is None else prompt_ids
    # 31 bits: what every server takes as a seed.
    seeds = [int(jax.random.bits(jax.random.fold_in(key, index))) >> 1 for index in ids]
    length = max(self.smallest_prompt, *map(len, prompts))
    width = min(bucket(length), self.policy.config.max_positions)
    shape = (len(prompts), num_rollouts, self.sampling.max_completion_length)
    result: dict[str, Any] = {
      "prompt_tokens": np.zeros((len(prompts), width), np.int32),
      "prompt_lengths": np.asarray([len(prompt) for prompt in prompts], np.int32),
      "completion_tokens": np.zeros(shape, np.int32),
      "completion_lengths": np.zeros(shape[:2], np.int32),
      "finished": np.zeros(shape[:2], bool),
      "logprobs": np.zeros(shape, np.float32),
    }
    with ThreadPoolExecutor(self._concurrency) as threads:
      tasks = [threads.submit(self._group, *each, num_rollouts) for each in zip(prompts, seeds)]
      try:
        groups = [task.result() for task in tasks]
      except BaseException:
        threads.shutdown(cancel_futures=True)
        raise
    for row, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
      result["prompt_tokens"][row, : len(prompt)] = prompt
      for column, (tokens, logprobs, finished) in enumerate(group):
        result["completion_tokens"][row, column, : len(tokens)] = tokens
        result["completion_lengths"][row, column] = len(tokens)
        result["finished"][row, column] = finished
        result["logprobs"][row, column, : len(tokens)] = logprobs
    # From the whole softmax: what was sampled from is what the trainer recomputes.
    return Rollouts(**result, sampling_logprobs=result["logprobs"].copy())

  def close(self) -> None:
    """Closes the connections."""
    self._client.close()

  def _load(self, params: Any) -> None:
    digest = parameters_digest(params)
    if digest == self._loaded:
      return
    self.policy.save_pretrained(self._folder, params, dtype=self._dtype)
    try:
      self._client.post("/collective_rpc", {"method": "reload_weights"})
      # What was computed with the old weights is no prefix of the new ones.
      self._client.post("/reset_prefix_cache", {})
    except CompletionsError as error:
      raise CompletionsError(
        f"{error}; the weights are in {self._folder}: start the server with "
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {self._folder} --dtype {self._dtype}"
      ) from error
    self._loaded = digest

  def _group(
    self, prompt: Sequence[int], seed: int, num_rollouts: int
  ) -> list[tuple[list[int], list[float], bool]]:
    """`(token ids, log-probabilities, finished)` of each rollout of a prompt."""
    found: list[tuple[list[int], list[float], bool]] = []
    while len(found) < num_rollouts:
      wanted = num_rollouts - len(found)
      body = self._body | {"prompt": [int(token) for token in prompt], "n": wanted}
      body["seed"] = (seed + len(found)) % 2**31
      choices = self._client.choices(body, f"a prompt of {len(prompt)} tokens")
      found += [self._completion(choice) for choice in choices[:wanted]]
    return found

  def _completion(self, choice: Mapping[str, Any]) -> tuple[list[int], list[float], bool]:
    ids, given = choice.get("token_ids"), choice.get("logprobs")
    logprobs = given.get("token_logprobs") if isinstance(given, Mapping) else None
    limit = self.sampling.max_completion_length
    if not (
      isinstance(ids, list)
      and isinstance(logprobs, list)
      and 0 < len(ids) == len(logprobs) <= limit
      and all(isinstance(i, int) and 0 <= i < self.policy.config.vocab_size for i in ids)
      and all(isinstance(p, int | float) and math.isfinite(p) and p <= 0 for p in logprobs)
    ):
      raise CompletionsError(
        f"{self._client.url} answered without usable token_ids and logprobs.token_logprobs (as "
        f"many of each, 1 to {limit}, ids of the policy's vocabulary); vLLM gives them with "
        "return_token_ids, from version 0.10.2."
      )
    return ids, logprobs, choice.get("finish_reason") != "length"
