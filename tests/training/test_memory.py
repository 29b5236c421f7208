"""The dry run's estimate: parameter counts are exact, memory follows the shapes."""

import jax
import pytest

from tea_jax.training.memory import describe, estimate_memory
from tests.training import tiny


def _estimate(tmp_path, *, num_devices=1, **changes):
  return estimate_memory(
    tiny.config(tmp_path, **changes), tiny.MODEL, prompt_length=5, num_devices=num_devices
  )


def test_parameters_are_counted_exactly(tmp_path):
  counted = sum(leaf.size for leaf in jax.tree.leaves(tiny.policy().params))
  assert _estimate(tmp_path).num_parameters == counted


def test_adapters_are_what_is_trained(tmp_path):
  estimate = _estimate(tmp_path, model={"lora_rank": 2, "lora_targets": ("query",)})
  assert estimate.num_trainable == 2 * (16 * 2 + 2 * 16)
  assert estimate.always["optimiser"] == 8 * estimate.num_trainable


def test_a_reference_and_micro_batches_cost_a_copy(tmp_path):
  plain = _estimate(tmp_path)
  assert "reference" in _estimate(tmp_path, objective={"kl_coefficient": 0.1}).always
  assert "gradient sum" in _estimate(tmp_path, optimizer={"micro_batch_rollouts": 4}).update
  assert plain.always["optimiser"] == 8 * plain.num_parameters


@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_sharding_divides_the_weights(tmp_path, axis):
  split = _estimate(tmp_path, mesh={axis: 4}, num_devices=4)
  assert split.always["parameters"] == _estimate(tmp_path).always["parameters"] // 4


def test_recomputation_saves_activations(tmp_path):
  none, dots, full = (
    _estimate(tmp_path, model={"remat": remat}).update["activations"]
    for remat in ("none", "dots", "full")
  )
  assert none > dots > full


def test_description_names_every_part(tmp_path):
  estimate = _estimate(tmp_path)
  text = describe(estimate)
  assert f"{estimate.num_parameters:,}" in text
  for part in (*estimate.always, *estimate.rollout, *estimate.update, *estimate.shapes):
    assert part in text
