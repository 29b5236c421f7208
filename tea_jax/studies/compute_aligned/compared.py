"""The objectives and rules that the experiments on answers compare; the mean first."""

from __future__ import annotations

PASS_OBJECTIVES = (
  "cross_entropy",
  *(f"pass_at_n:budget={budget}" for budget in (4, 16, 64)),
)
MAJORITY_OBJECTIVES = (
  "cross_entropy",
  "majority:budget=8,threshold=3",
  "majority:budget=16,threshold=4",
  "majority:budget=64,threshold=26",
)
# As the paper has them: p is the probability of each completion.
PAPER_PASS_RULES = (
  "grpo:normalize=true",
  "cat_pass_at_n:budget=4",
  "cat_pass_at_n:budget=16",
)
PAPER_VOTE_RULES = (
  "cat_majority:budget=4,silence_penalty=0.5",
  "cat_majority:budget=8,silence_penalty=0.5",
)
# On short answers the share of right rollouts is the better p: by the probability of a completion,
# a rare wrong answer keeps its weight even where the prompt is solved. The silence penalty pushes
# down what is sampled for every prompt that is hard.
PASS_RULES = (
  "grpo:normalize=true",
  "cat_pass_at_n:budget=4,probability=group",
  "cat_pass_at_n:budget=16,probability=group",
)
VOTE_RULES = ("cat_majority:budget=4", "cat_majority:budget=8")
EVERY_RULE = (
  *PASS_RULES,
  *VOTE_RULES,
  "cat_pass_at_n:budget=4,probability=group,log_weighted=false",
  "cat_pass_at_n:budget=16,probability=group,log_weighted=false",
  "cat_majority:budget=8,log_weighted=true",
  PAPER_PASS_RULES[-1],
  PAPER_VOTE_RULES[-1],
  "max_at_k:k=8,normalize=true",
  "tea:budget=16",
)
