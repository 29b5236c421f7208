"""Is a higher reward a better answer? `python -m experiments.judge POLICY BASELINE [flags]`

POLICY and BASELINE are folders of records that experiments.evaluate wrote. A judge compares, in
both orders, the answers that each deploys: the best of N of its samples, by reward. The judge is a
model behind an OpenAI-compatible endpoint (`--url`), or a policy of ours (`--model` alone). The
same command again goes on where it was.
"""

from __future__ import annotations

import dataclasses
import sys

import tyro

from experiments import command
from tea_jax.evaluation.judgement import Judgement, answer_pairs, judge_pairs, judgement
from tea_jax.evaluation.records import read_records
from tea_jax.models.weights.load import load_policy
from tea_jax.rewards.judge import ChatJudge, PolicyJudge, judge_template
from tea_jax.runtime.files import write_text


@dataclasses.dataclass(frozen=True)
class Flags:
  """Who judges what.

  Attributes:
    output: folder of the verdicts and judge.md.
    budget: N, samples of which each policy deploys the best.
    pairs_per_prompt: groups of N compared for each prompt.
    url: base of the endpoint, e.g. http://localhost:8000/v1; none: --model is a policy of ours.
    model: name that the endpoint knows, or of a policy, e.g. smollm2-135m-instruct.
    headers: of the requests, e.g. Authorization "Bearer ${OPENAI_API_KEY}" (the judge fills it in).
    template: file with the judge's prompt: {prompt}, {first}, {second} and the verdicts [[A]],
      [[B]], [[C]]; none for the one of the package.
    max_tokens, concurrency: of the endpoint.
  """

  output: str = "runs/judge"
  budget: int = 16
  pairs_per_prompt: int = 1
  url: str | None = None
  model: str = "smollm2-135m-instruct"
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  template: str | None = None
  max_tokens: int = 512
  concurrency: int = 4


def parse(arguments: list[str]) -> tuple[list[str], Flags]:
  """`([policy's folder, baseline's folder], flags)`."""
  split = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
  folders = arguments[:split]
  flags = tyro.cli(Flags, args=arguments[split:], description=__doc__)
  if len(folders) != 2:
    raise ValueError("name two folders of records, the policy's and its baseline's")
  return folders, flags


def main(arguments: list[str] | None = None) -> int:
  return command.run(lambda: work(sys.argv[1:] if arguments is None else arguments))


def work(arguments: list[str]) -> None:
  folders, flags = parse(arguments)
  if flags.url is None:
    judge = PolicyJudge(load_policy(flags.model), flags.model)
  else:
    judge = ChatJudge(
      flags.url,
      flags.model,
      flags.headers,
      max_tokens=flags.max_tokens,
      concurrency=flags.concurrency,
    )
  policy, baseline = (read_records(folder) for folder in folders)
  verdicts = judge_pairs(
    judge,
    answer_pairs(policy, baseline, budget=flags.budget, pairs_per_prompt=flags.pairs_per_prompt),
    judge_template(flags.template),
    folder=flags.output,
    name=judge.name,
    progress=lambda done, total: print(f"  {done}/{total} pairs", flush=True),
  )
  text = report(judgement(verdicts), folders[0], folders[1], judge=judge.name, budget=flags.budget)
  write_text(f"{flags.output}/judge.md", text)
  print(text)


def report(result: Judgement, policy: str, baseline: str, *, judge: str, budget: int) -> str:
  """judge.md: the finding first, then what it rests on."""
  pairs = result.wins + result.ties + result.losses + result.inconsistent
  share = "-" if result.first_share is None else f"{result.first_share:.0%}"
  lines = [
    f"# {policy} against {baseline}, best of {budget} by reward",
    "",
    "No pair got two readable verdicts."
    if result.win_rate is None
    else f"Win rate {result.win_rate} (95 % over prompts, ties one half).",
    "",
    "| pairs judged | wins | ties | losses | orders disagree | left out | first place chosen |",
    "|---|---|---|---|---|---|---|",
    f"| {pairs} | {result.wins} | {result.ties} | {result.losses} | {result.inconsistent} | "
    f"{result.left_out} | {share} |",
    "",
    f"Judge: {judge}; {result.refused} replies refused, {result.unreadable} unreadable.",
  ]
  if result.is_position_biased:
    lines += ["", "**The judge goes by the place of an answer more than by the answer.**"]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  sys.exit(main())
