"""The groups of flags of a run: frozen dataclasses that refuse impossible values.

Each docstring is the help text of its flags. `config.RunConfig` holds one of each. Those of the
reward, objective and optimiser have files of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from tea_jax.models.attention import AttentionKind
from tea_jax.models.lora import LoraConfig
from tea_jax.runs.checks import check_fields, require
from tea_jax.runtime.processes import Distributed

LoggerName = Literal["tensorboard", "wandb", "trackio"]

_PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
  """The policy.

  Attributes:
    name: Hugging Face id or folder, GGUF file, or "smollm2-135m-instruct" (in the package).
    compute_dtype: of activations and matrix products; norms, softmax and log-probs are float32.
    param_dtype: of the weights; "bfloat16" halves frozen ones, beside adapters (lora_rank > 0).
      What is trained is float32.
    remat: what the backward pass recomputes: "none", "full" (each layer) or "dots" (all but the
      matrix products). "full" needs the least memory.
    scan_layers: scan over the layers (short compiles), or unroll them (a little faster; a CPU then
      ignores remat).
    attention: "auto", "xla", "cudnn", or "fused": by blocks of keys, which saves memory in updates
      of long prompts and completions.
    lora_rank: train low-rank adapters of this rank instead of all weights; 0 trains all weights.
    lora_alpha: scale of the adapters, alpha / rank; None for alpha = 2 rank.
    lora_targets: projections that get adapters.
  """

  name: str = "smollm2-135m-instruct"
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "full", "dots"] = "full"
  scan_layers: bool = True
  attention: AttentionKind = "auto"
  lora_rank: int = 0
  lora_alpha: float | None = None
  lora_targets: tuple[str, ...] = _PROJECTIONS

  def __post_init__(self) -> None:
    check_fields(self, "model")
    unknown = sorted(set(self.lora_targets) - set(_PROJECTIONS))
    require(
      not unknown, f"lora_targets {unknown} are unknown; choose among {', '.join(_PROJECTIONS)}."
    )
    require(self.lora_rank >= 0, f"lora_rank={self.lora_rank} must be >= 0 (0: all weights).")
    require(
      self.lora_rank > 0 or self.param_dtype == "float32",
      f'param_dtype="{self.param_dtype}" is for frozen weights, since small steps would round to '
      "nothing; set lora_rank, or leave it at float32.",
    )
    require(
      self.lora_rank > 0 or self.lora_alpha is None,
      f"lora_alpha={self.lora_alpha} has no effect with lora_rank=0; set lora_rank.",
    )

  @property
  def lora(self) -> LoraConfig | None:
    """The adapters that the flags ask for; None if all weights are trained."""
    if self.lora_rank == 0:
      return None
    alpha = 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
    return LoraConfig(rank=self.lora_rank, alpha=alpha, targets=self.lora_targets)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The prompts.

  Attributes:
    prompts: "openers" (in the package), a recipe ("ultrafeedback", "hh_helpful", "gsm8k", "math"),
      a .jsonl, .parquet or .txt file, a Hugging Face dataset id, or a function "module:function".
    column: of the prompt in a file or dataset; None for the first usual name.
    chat: render prompts with the tokenizer's chat template; False continues the plain text.
    system_prompt: put before every prompt; None for the recipe's own, if any.
    max_prompt_length: in tokens; longer prompts are dropped and counted.
    prompts_per_step: P, prompts of one step.
    num_validation: prompts held out for checkpoint selection (a recipe has its own split).
    num_test: prompts held out for evaluation (a recipe has its own split).
    test_split: of a recipe that evaluation reads: "core250" or "core500".
  """

  prompts: str = "openers"
  column: str | None = None
  chat: bool = True
  system_prompt: str | None = None
  max_prompt_length: int = 256
  prompts_per_step: int = 4
  num_validation: int = 32
  num_test: int = 64
  test_split: Literal["core250", "core500"] = "core250"

  def __post_init__(self) -> None:
    check_fields(self, "data")
    for name in ("max_prompt_length", "prompts_per_step"):
      require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
    for name in ("num_validation", "num_test"):
      require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative.")


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How rollouts are drawn.

  Attributes:
    num_rollouts: m, completions of each prompt and step (the group).
    max_completion_length: in tokens, the end token counted.
    temperature: > 0; of sampler and trainer alike.
    top_k: sample from the k likeliest tokens; 0 for all.
    top_p: sample from the smallest set of this mass; 1 for all.
    min_p: sample from tokens of at least this share of the likeliest one's probability; 0 for all.
    memory_gb: for caches and logits of the rows that are decoded together, on each device; 0 for
      most of what an accelerator has left after parameters, optimiser and reference (2 on a CPU).
      It decides how rows are called together, and so their last bits: resume with the same.
    compactions: times (0 to 3) that rows which still write move together while a batch decodes,
      once they fit into half the places: worth it where completions end at very different
      lengths. Each compiles one more shape; tokens stay the same but for last bits of logits.
    cache_buckets: sizes (1 to 8) through which the completions' caches grow while a batch decodes:
      a token reads the places that were written, not all of them. Worth it for long completions,
      where caches outweigh the weights; each size compiles one more shape, as above.
    decode_attention: of a decoding step: "xla", or "pallas" for a kernel that reads the written
      places of a row only, on NVIDIA GPUs. No GPU has run it yet.
    allow_truncated_sampling: accept top_k, top_p or min_p in training, where the importance ratio
      does not know the mass that was cut off.
  """

  num_rollouts: int = 32
  max_completion_length: int = 64
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  memory_gb: float = 0.0
  compactions: int = 0
  cache_buckets: int = 1
  decode_attention: Literal["xla", "pallas"] = "xla"
  allow_truncated_sampling: bool = False

  def __post_init__(self) -> None:
    check_fields(self, "sampling")
    for name in ("num_rollouts", "max_completion_length"):
      require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
    require(
      self.temperature > 0,
      f"temperature={self.temperature} must be positive: training needs a distribution to sample "
      "from.",
    )
    require(
      0 <= self.memory_gb < float("inf"),
      f"sampling.memory_gb={self.memory_gb} must be >= 0 (0: what the device has left).",
    )
    require(
      0 <= self.compactions <= 3,
      f"compactions={self.compactions} must be from 0 to 3: each compiles one more shape.",
    )
    require(
      1 <= self.cache_buckets <= 8,
      f"cache_buckets={self.cache_buckets} must be from 1 to 8: each compiles one more shape.",
    )
    for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
      value = getattr(self, name)
      require(
        value == off or self.allow_truncated_sampling,
        f"{name}={value} changes the sampling distribution: the kept mass is not part of the "
        f"importance ratio; set {name}={off} or --sampling.allow-truncated-sampling.",
      )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """What is kept of a run.

  Attributes:
    every: steps between checkpoints; 0 for one at the end only.
    keep: latest checkpoints that stay on disk.
    asynchronous: write while training goes on; None does so on accelerators. A CPU keeps a second
      copy of the state until it is written.
    final_policy: which weights `policy/` holds: "best" of the validation (see validation; without
      one the last) or "last".
    policy_dtype: of the weights in `policy/`; "float32" is exact.
    accept_changes: go on with a run although its reward, rule, data columns or base weights are
      not those it began with.
  """

  every: int = 25
  keep: int = 2
  asynchronous: bool | None = None
  final_policy: Literal["best", "last"] = "best"
  policy_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
  accept_changes: bool = False

  def __post_init__(self) -> None:
    check_fields(self, "checkpoint")
    require(self.every >= 0, f"checkpoint.every={self.every} must be >= 0 (0: only the last).")
    require(self.keep >= 1, f"checkpoint.keep={self.keep} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
  """Validation during training: mean of the best rewards of each validation prompt.

  Attributes:
    every: steps between validations; 0 for none.
    num_prompts: of the validation split; fewer if it is smaller.
    num_samples: completions of each prompt.
    top: how many of the best rewards of a prompt are averaged.
  """

  every: int = 25
  num_prompts: int = 128
  num_samples: int = 32
  top: int = 10

  def __post_init__(self) -> None:
    check_fields(self, "validation")
    require(self.every >= 0, f"validation.every={self.every} must be >= 0 (0: none).")
    require(
      1 <= self.top <= self.num_samples,
      f"validation.top={self.top} must be between 1 and validation.num_samples={self.num_samples}.",
    )
    require(self.num_prompts >= 1, f"validation.num_prompts={self.num_prompts} must be >= 1.")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Held-out evaluation after training (`experiments.compare`, `experiments.evaluate`).

  Attributes:
    num_prompts: held-out prompts; fewer if the split is smaller.
    num_samples: completions of each prompt, n.
    budgets: best-of-N for these N; empty for all powers of two up to num_samples.
    seed: of the sampling.
  """

  num_prompts: int = 32
  num_samples: int = 128
  budgets: tuple[int, ...] = ()
  seed: int = 1000

  def __post_init__(self) -> None:
    check_fields(self, "evaluation")
    for name in ("num_prompts", "num_samples"):
      require(getattr(self, name) >= 1, f"evaluation.{name} must be at least 1.")
    require(0 <= self.seed < 2**32, f"evaluation.seed={self.seed} must be in [0, 2^32).")
    too_large = [n for n in self.budgets if not 1 <= n <= self.num_samples]
    require(
      not too_large,
      f"evaluation.budgets {too_large} are not between 1 and "
      f"evaluation.num_samples={self.num_samples}.",
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices: one mesh of data x fsdp x tensor.

  Attributes:
    data: copies of the weights, each with its share of the batch; -1 for all devices left over.
    fsdp: parts into which weights and optimiser are split, gathered when used.
    tensor: parts into which each matrix product is split.
    distributed: joins several processes to one: "auto" if the environment says that there are
      several (JAX_COORDINATOR_ADDRESS, a Slurm step, Open MPI, a TPU slice), "always", "never".
    memory_gb: of one device, for --dry-run, which says what to change where a run does not fit; 0
      for what the accelerator reports.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  distributed: Distributed = "auto"
  memory_gb: float = 0.0

  def __post_init__(self) -> None:
    check_fields(self, "mesh")
    require(
      self.data == -1 or self.data >= 1, f"mesh.data={self.data} must be at least 1, or -1 (rest)."
    )
    for name in ("fsdp", "tensor"):
      require(getattr(self, name) >= 1, f"mesh.{name}={getattr(self, name)} must be at least 1.")
    require(
      0 <= self.memory_gb < float("inf"),
      f"mesh.memory_gb={self.memory_gb} must be >= 0 (0: what the accelerator reports).",
    )


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
  """What is shown and written.

  Attributes:
    live: a live table and progress bar on a terminal; False for one line a step.
    to: where the numbers go beside the run's own files; tensorboard needs tea-jax[logging], the
      others the extra of their name.
    project: of Weights & Biases and trackio.
    samples_every: steps between rollouts written as text to `rollouts/`; 0 for none.
    samples_per_prompt: rollouts of each prompt written (the best, the worst, then in order).
    profile_steps: steps, counted from 1, that JAX's profiler records into `profile/`.
    peak_teraflops: of one device; adds the share of it that the model's arithmetic takes
      (`utilization/*`), and --dry-run the seconds that a step takes at least. 0 for none.
    peak_bandwidth: of one device's memory, in GB a second, for those seconds. 0 for none.
  """

  live: bool = True
  to: tuple[LoggerName, ...] = ()
  project: str = "tea_jax"
  samples_every: int = 10
  samples_per_prompt: int = 4
  profile_steps: tuple[int, ...] = ()
  peak_teraflops: float = 0.0
  peak_bandwidth: float = 0.0

  def __post_init__(self) -> None:
    check_fields(self, "logging")
    require(
      all(step >= 1 for step in self.profile_steps),
      f"logging.profile_steps={self.profile_steps} must be steps, counted from 1.",
    )
    for name in ("peak_teraflops", "peak_bandwidth"):
      value = getattr(self, name)
      require(value >= 0, f"logging.{name}={value} is negative.")
    for name in ("samples_every", "samples_per_prompt"):
      value = getattr(self, name)
      require(value >= 0, f"logging.{name}={value} must be >= 0 (0: none).")
