"""A reward for JSON that satisfies a schema: no completion stops it, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tea_jax.rewards.base import RewardFunction, row_wise
from tea_jax.rewards.text_checks import TextCheck
from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import read_json


def json_schema_reward(
  schema: dict[str, Any] | str,
  *,
  valid: float = 1.0,
  parsed: float = 0.0,
  invalid: float = 0.0,
) -> RewardFunction:
  """Scores whether the completion is JSON that satisfies a schema.

  Args:
    schema: JSON schema as a dict, or the path of a JSON file.
    valid: score of JSON that satisfies the schema.
    parsed: score of JSON that does not.
    invalid: score of anything else. The JSON is the whole completion or its first fenced block.

  JSON that takes more than a second to compare counts as parsed.
  """
  with extra("rewards", "the json_schema reward"):
    import jsonschema
    import jsonschema.validators
  rules: dict[str, Any]
  if isinstance(schema, str):
    rules = read_json(schema)
  else:
    rules = schema
  validator_class = jsonschema.validators.validator_for(rules)
  try:
    validator_class.check_schema(rules)
  except jsonschema.SchemaError as error:
    raise ValueError(f"this is not a JSON schema: {error.message}") from error
  _check_references(rules)
  check = TextCheck("schema", rules)

  @row_wise
  def json_schema(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    worth = {"valid": valid, "parsed": parsed, "invalid": invalid}
    return np.array([worth[standing] for standing in check(completions)], np.float64)

  return json_schema


def _check_references(rules: Any) -> None:
  """Refuses references to other documents than the standard's own: nothing is fetched."""
  import jsonschema_specifications
  import referencing
  import referencing.exceptions
  import referencing.jsonschema

  if not isinstance(rules, Mapping):
    return
  resource = referencing.Resource.from_contents(
    rules, default_specification=referencing.jsonschema.DRAFT202012
  )
  registry = jsonschema_specifications.REGISTRY.with_resource("", resource)
  resolver = registry.crawl().resolver()
  for reference in _references(rules):
    try:
      resolver.lookup(reference)
    except referencing.exceptions.Unresolvable as error:
      raise ValueError(
        f"the JSON schema refers to {reference!r}, which is not in it; nothing is fetched, "
        "so put it under $defs"
      ) from error


def _references(rules: Any) -> Iterator[str]:
  """Every reference to another document."""
  if isinstance(rules, Mapping):
    for key, value in rules.items():
      if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
        yield value
      else:
        yield from _references(value)
  elif isinstance(rules, list):
    for value in rules:
      yield from _references(value)
