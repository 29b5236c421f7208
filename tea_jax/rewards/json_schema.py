"""A reward for JSON that satisfies a schema: no completion stops it, and nothing is fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tea_jax.rewards.base import RewardFunction
from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import read_json

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


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
  validator = _validator(validator_class, rules)

  def score(completion: str) -> float:
    fenced = _FENCE.search(completion)
    try:
      value = json.loads(fenced.group(1) if fenced else completion, parse_constant=_refuse)
    except (ValueError, RecursionError):
      return invalid
    try:
      return valid if validator.is_valid(value) else parsed
    except Exception:  # numbers beyond floats, deep nesting: the completion's, and no match
      return parsed

  def json_schema(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    return np.array([score(completion) for completion in completions], np.float64)

  return json_schema


def _validator(validator_class: Any, rules: Any) -> Any:
  """A validator that fetches nothing, and whose time is linear in the number of unique items."""
  import jsonschema.validators
  import jsonschema_specifications
  import referencing
  import referencing.exceptions
  import referencing.jsonschema

  def unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
    if wanted and validator.is_type(instance, "array"):
      keys = [_item_key(item) for item in instance]
      if len(set(keys)) < len(keys):
        yield jsonschema.ValidationError("items are not unique")

  registry = jsonschema_specifications.REGISTRY
  if isinstance(rules, Mapping):
    resource = referencing.Resource.from_contents(
      rules, default_specification=referencing.jsonschema.DRAFT202012
    )
    resolver = registry.with_resource("", resource).crawl().resolver()
    for reference in _references(rules):
      try:
        resolver.lookup(reference)
      except referencing.exceptions.Unresolvable as error:
        raise ValueError(
          f"the JSON schema refers to {reference!r}, which is not in it; nothing is fetched, "
          "so put it under $defs"
        ) from error
  extended = jsonschema.validators.extend(validator_class, {"uniqueItems": unique_items})
  return extended(rules, registry=registry)


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


def _item_key(value: Any) -> Any:
  """Hashable; equal where JSON values are: 1 is 1.0, but not true."""
  if isinstance(value, list):
    return ("array", tuple(_item_key(item) for item in value))
  if isinstance(value, dict):
    return ("object", frozenset((key, _item_key(item)) for key, item in value.items()))
  return (isinstance(value, bool), value)


def _refuse(name: str) -> Any:
  raise ValueError(f"{name} is not JSON")
