"""SupervisedConfig: everything that decides a supervised run, as flags, YAML and dataclasses."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tea_jax.data.supervised import Target
from tea_jax.runs.checks import check_fields, require
from tea_jax.runs.groups import CheckpointConfig, LoggingConfig, MeshConfig, PolicyConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.strategies import Strategy, majority, majority_threshold, pass_at_n

SupervisedLoss = Literal[
  "cross_entropy", "pass_at_n", "majority", "pairwise", "hybrid", "token_margin"
]
# What the published implementation divides by.
_AGGREGATION = {"cross_entropy": "token_sum", "pass_at_n": "token_sum"}


@dataclasses.dataclass(frozen=True)
class SupervisedObjectiveConfig:
  """What supervised training minimises; p is the probability of the whole completion.

  Attributes:
    name: "cross_entropy", -log p. "pass_at_n", -log(1 - (1 - p)^N). "majority", -log of the
      probability that k of N votes are right. "pairwise": every token against `num_rivals` others,
      -mean log sigmoid(z_gold - z_rival). "hybrid": cross-entropy and pairwise. "token_margin":
      cross-entropy plus max(0, margin - (z_gold - largest other logit)) of every token.
    budget: N.
    threshold: k of majority, votes that win; 0 for `fraction`.
    fraction: of the votes that win, k = ceil(fraction N).
    aggregation: what a batch's loss is divided by. "token_sum": by the pairs. "sequence_mean": each
      pair's loss by its tokens, then by the pairs. "token_mean": by all tokens of the batch; not
      for pass_at_n and majority. None: token_sum for cross_entropy and pass_at_n, else
      sequence_mean.
    num_rivals: R of pairwise and hybrid.
    pairwise_weight: of the pairwise part of hybrid; cross-entropy has the rest.
    margin: of token_margin, in logits.
  """

  name: SupervisedLoss = "cross_entropy"
  budget: int = 16
  threshold: int = 0
  fraction: float = 0.4
  aggregation: Literal["token_sum", "sequence_mean", "token_mean"] | None = None
  num_rivals: int = 4
  pairwise_weight: float = 0.5
  margin: float = 1.0

  def __post_init__(self) -> None:
    check_fields(self, "objective")
    require(self.budget >= 1, f"budget={self.budget} must be at least 1.")
    require(
      0 <= self.threshold <= self.budget,
      f"threshold={self.threshold} must be between 1 and budget={self.budget}, or 0 for fraction.",
    )
    require(0 < self.fraction <= 1, f"fraction={self.fraction} must be above 0 and at most 1.")
    require(self.num_rivals >= 1, f"num_rivals={self.num_rivals} must be at least 1.")
    require(
      0 <= self.pairwise_weight <= 1, f"pairwise_weight={self.pairwise_weight} must be in [0, 1]."
    )
    require(self.margin > 0, f"margin={self.margin} must be positive.")
    require(
      self.aggregation != "token_mean" or self.name not in ("pass_at_n", "majority"),
      f'aggregation="token_mean" has no meaning for {self.name}, a loss of whole completions; use '
      "token_sum or sequence_mean.",
    )

  @property
  def strategy(self) -> Strategy:
    """Whose -log S is minimised, or whose weights are logged; Pass@1 for token losses."""
    if self.name == "majority":
      threshold = self.threshold or majority_threshold(self.budget, self.fraction)
      return majority(self.budget, threshold)
    return pass_at_n(self.budget if self.name == "pass_at_n" else 1)

  @property
  def resolved_aggregation(self) -> str:
    return self.aggregation or _AGGREGATION.get(self.name, "sequence_mean")

  @property
  def needs_rivals(self) -> bool:
    """Whether logits of other tokens are compared with the gold one's."""
    return self.name in ("pairwise", "hybrid", "token_margin")

  @property
  def draws_rivals(self) -> int:
    """Rivals that are drawn for each token."""
    return self.num_rivals if self.name in ("pairwise", "hybrid") else 0


@dataclasses.dataclass(frozen=True)
class PairConfig:
  """The pairs of prompt and completion.

  Attributes:
    pairs: a recipe ("gsm8k", "math"), a task "reasoning_gym:name?option=value", a .jsonl or
      .parquet file, a Hugging Face dataset id, or a function "module:function".
    prompt_column: of the prompt; None for the first usual name.
    completion_column: of the completion; None for the first of completion, response, output,
      chosen, solution, answer.
    target: what is learnt: the "completion", the row's "answer" alone, the same in \\boxed{}
      ("boxed_answer"), or the full "solution".
    levels: keep rows of these levels (MATH has 1 to 5); empty for all.
    limit: keep so many training pairs; 0 for all.
    chat: render prompts with the tokenizer's chat template; False continues the plain text.
    system_prompt: put before every prompt; None for the recipe's own, if any.
    end_token: learn to end the completion.
    max_length: of prompt and completion in tokens; longer pairs are dropped and counted.
    batch_size: pairs of one update.
    num_validation: pairs held out for the validation loss (a recipe has its own split).
    num_test: pairs held out for evaluation (a recipe has its own split).
  """

  pairs: str = ""
  prompt_column: str | None = None
  completion_column: str | None = None
  target: Target = "completion"
  levels: tuple[int, ...] = ()
  limit: int = 0
  chat: bool = True
  system_prompt: str | None = None
  end_token: bool = True
  max_length: int = 512
  batch_size: int = 8
  num_validation: int = 64
  num_test: int = 64

  def __post_init__(self) -> None:
    check_fields(self, "data")
    require(self.max_length >= 2, f"max_length={self.max_length} must be at least 2.")
    require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1.")
    for name in ("num_validation", "num_test", "limit"):
      require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative.")


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
  """A supervised run.

  Attributes:
    run_folder: where everything goes; running the same command again goes on from there.
    steps: updates; 0 for `epochs`.
    epochs: passes over the training pairs, where steps is 0.
    validation_every: steps between validation losses, and one after the last; 0 for none.
    seed: root of all random keys.
  """

  run_folder: str = "runs/supervised"
  steps: int = 0
  epochs: int = 1
  validation_every: int = 50
  seed: int = 0
  model: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
  data: PairConfig = dataclasses.field(default_factory=PairConfig)
  objective: SupervisedObjectiveConfig = dataclasses.field(
    default_factory=SupervisedObjectiveConfig
  )
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  checkpoint: CheckpointConfig = dataclasses.field(
    default_factory=lambda: CheckpointConfig(final_policy="last")
  )
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)

  def __post_init__(self) -> None:
    require(self.steps >= 0, f"steps={self.steps} must be >= 0 (0: epochs).")
    require(self.steps > 0 or self.epochs >= 1, f"epochs={self.epochs} must be at least 1.")
    require(self.validation_every >= 0, f"validation_every={self.validation_every} is negative.")
    require(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2^32).")
    micro = self.optimizer.micro_batch_rollouts
    require(
      micro == 0 or self.data.batch_size % micro == 0,
      f"optimizer.micro_batch_rollouts={micro} must divide data.batch_size={self.data.batch_size}.",
    )
    require(
      self.optimizer.updates_per_batch == 1,
      f"optimizer.updates_per_batch={self.optimizer.updates_per_batch} is for rollouts; supervised "
      "runs see every batch once, set epochs.",
    )

    require(
      self.optimizer.length_buckets == 1,
      f"optimizer.length_buckets={self.optimizer.length_buckets} is for rollouts; a batch of pairs "
      "has one width already.",
    )

  def num_steps(self, num_pairs: int) -> int:
    """Updates of the run on so many training pairs."""
    return self.steps or self.epochs * (num_pairs // self.data.batch_size)
