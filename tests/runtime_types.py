"""Shapes in the signatures of what takes arrays and gives arrays, checked in every test.

Only shapes: a test that gives a wrong name or number wants to see what the function says to it.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

CHECKED = (
  *("tea_jax.tail", "tea_jax.strategies", "tea_jax.advantages", "tea_jax.scaling"),
  *("tea_jax.evaluation.best_of_n", "tea_jax.evaluation.pass_at_k"),
  *("tea_jax.training.kl", "tea_jax.training.objective", "tea_jax.training.ratios"),
  "tea_jax.training.supervised_objective",
)


def check_shapes() -> None:
  """Checks the calls of every function of the rooms and files that is imported after this."""
  jaxtyping.install_import_hook(CHECKED, f"{__name__}.checked")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
  """The function with its annotations that name a shape enforced."""
  hints = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
  function.__annotations__ = hints
  return beartype.beartype(function)


def has_shape(hint: Any) -> bool:
  """Whether a jaxtyping array is in a type hint."""
  if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
    return True
  return any(map(has_shape, typing.get_args(hint)))
