"""Disjoint splits by content hash: the same prompt lands in the same split on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tea_jax.data.prompts import Prompt, content_digest


def split_by_hash(
  prompts: Sequence[Prompt], sizes: Mapping[str, int], *, salt: str = "tea_jax", rest: str = "train"
) -> dict[str, list[Prompt]]:
  """Cuts prompts into disjoint parts of exact sizes, in the order of their hashes.

  The result does not depend on the order of `prompts`, and enlarging a later part does not change
  an earlier one.

  Args:
    prompts: distinct prompts.
    sizes: part -> number of prompts, in the order in which they are cut.
    salt: another salt gives other splits.
    rest: name of the part that gets what is left.

  Raises:
    ValueError: fewer prompts than the parts need, or repeated prompts.
  """
  ordered = sorted(prompts, key=lambda prompt: content_digest(prompt, salt))
  digests = {content_digest(prompt) for prompt in ordered}
  if len(digests) < len(ordered):
    raise ValueError(
      f"{len(ordered) - len(digests)} of {len(ordered)} prompts are repeated; "
      "splits of repeated prompts would not be disjoint"
    )
  needed = sum(sizes.values())
  if any(size < 0 for size in sizes.values()) or rest in sizes:
    raise ValueError(f"sizes {dict(sizes)} must be counts and must not contain '{rest}'")
  if needed > len(ordered):
    raise ValueError(
      f"the splits {dict(sizes)} need {needed} prompts, but there are {len(ordered)}"
    )
  parts: dict[str, list[Prompt]] = {}
  start = 0
  for name, size in sizes.items():
    parts[name] = ordered[start : start + size]
    start += size
  parts[rest] = ordered[start:]
  return parts


def without(prompts: Sequence[Prompt], excluded: Sequence[Prompt]) -> list[Prompt]:
  """The prompts that say nothing that an excluded prompt says."""
  digests = {content_digest(prompt) for prompt in excluded}
  return [prompt for prompt in prompts if content_digest(prompt) not in digests]
