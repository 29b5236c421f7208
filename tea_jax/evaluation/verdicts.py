"""What a comparison found, in sentences for readers without statistics."""

from __future__ import annotations

from tea_jax.evaluation.comparison import Comparison


def verdicts(comparison: Comparison, baseline: str) -> list[str]:
  """One sentence or two on each method against the baseline, at the largest budget.

  Says "higher" or "lower" only where the interval over held-out prompts excludes 0, and adds what
  the training runs say where there are several.
  """
  found = []
  for name in comparison.values:
    if name not in (baseline, "base"):
      found.append(_verdict(comparison, name, baseline))
  return found


def _verdict(comparison: Comparison, name: str, baseline: str) -> str:
  budget, prompts = comparison.budgets[-1], len(comparison.prompts)
  interval = comparison.difference(name, baseline)[-1]
  size, low, high = float(interval.estimate), float(interval.low), float(interval.high)
  if not interval.excludes_zero:
    if low == high:
      return (
        f"No difference between {name} and {baseline} can be judged at best-of-{budget}: "
        f"{size:+.2f} on {prompts} prompt{'s' if prompts > 1 else ''}, without any spread."
      )
    return (
      f"No difference between {name} and {baseline} is shown at best-of-{budget}: it is "
      f"{size:+.2f} on these {prompts} prompts, and could be anything from {low:+.2f} to "
      f"{high:+.2f} on others."
    )
  direction = "higher" if size > 0 else "lower"
  sentence = (
    f"The best of {budget} answers of {name} scores {abs(size):.2f} {direction} than that of "
    f"{baseline}, averaged over {prompts} held-out prompts; on other prompts it would most likely "
    f"lie between {low:+.2f} and {high:+.2f}."
  )
  runs = comparison.seed_differences(name, baseline)[:, -1]
  if len(runs) == 1:
    return f"{sentence} One training run each: another seed may say something else."
  same = sum((run > 0) == (size > 0) for run in runs)
  over = comparison.difference_over_seeds(name, baseline)[-1]
  sure = "hold" if over.excludes_zero else "are too few to hold"
  return (
    f"{sentence} {same} of {len(runs)} pairs of training runs agree; they {sure} for other seeds "
    f"too ({float(over.low):+.2f} to {float(over.high):+.2f})."
  )
