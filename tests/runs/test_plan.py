"""The dry run's estimate: parameter counts are exact, memory follows the shapes."""

import dataclasses

import jax
import pytest

from tea_jax.rollout.cache import batch_shape, bucket, prompt_bytes, row_bytes
from tea_jax.runs import plan
from tea_jax.runs.build import build
from tea_jax.runs.plan import decode_memory, describe, estimate_memory
from tea_jax.training.learner import make_learner
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


def test_a_frozen_base_in_bfloat16_takes_half(tmp_path):
  model = {"lora_rank": 2, "compute_dtype": "bfloat16"}
  full = _estimate(tmp_path, model=model)
  half = _estimate(tmp_path, model=model | {"param_dtype": "bfloat16"})
  for phase, name in (("always", "parameters"), ("rollout", "merged weights")):
    assert 2 * getattr(half, phase)[name] == getattr(full, phase)[name]
  assert half.always["adapters"] == full.always["adapters"]


def test_a_reference_and_micro_batches_cost_a_copy(tmp_path):
  plain = _estimate(tmp_path)
  assert "reference" in _estimate(tmp_path, objective={"kl_coefficient": 0.1}).always
  assert "gradient sum" in _estimate(tmp_path, optimizer={"micro_batch_rollouts": 4}).update
  assert plain.always["optimiser"] == 8 * plain.num_parameters


@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_sharding_divides_the_weights(tmp_path, axis):
  split = _estimate(tmp_path, mesh={axis: 4}, num_devices=4)
  assert split.always["parameters"] == _estimate(tmp_path).always["parameters"] // 4


def test_copies_of_the_model_share_the_caches(tmp_path):
  one = _estimate(tmp_path).rollout["caches and logits"]
  assert _estimate(tmp_path, num_devices=4).rollout["caches and logits"] == one // 4
  tensor = _estimate(tmp_path, mesh={"tensor": 4}, num_devices=4)
  assert tensor.rollout["caches and logits"] == one


def test_devices_of_fsdp_hold_all_weights_and_a_share_of_the_rows_while_they_decode(tmp_path):
  one, four = _estimate(tmp_path), _estimate(tmp_path, mesh={"fsdp": 4}, num_devices=4)
  assert four.rollout["decoding weights"] == one.rollout["decoding weights"]
  assert four.rollout["caches and logits"] == one.rollout["caches and logits"] // 4


def test_length_buckets_are_told_and_cut_the_batch(tmp_path):
  estimate = _estimate(tmp_path, optimizer={"length_buckets": 3})
  assert estimate.shapes["update"] == (
    "2 x (2 prompts x 16 tokens, 4 rollouts each x 2 or 4 or 6 tokens)"
  )
  whole = _estimate(tmp_path)
  assert whole.shapes["update"] == "1 x (2 prompts x 16 tokens, 8 rollouts each x 6 tokens)"
  assert estimate.update["activations"] < whole.update["activations"]


def test_recomputation_saves_activations(tmp_path):
  none, dots, full = (
    _estimate(tmp_path, model={"remat": remat}).update["activations"]
    for remat in ("none", "dots", "full")
  )
  assert none > dots > full


def test_fused_attention_holds_the_scores_of_one_block_of_keys(tmp_path):
  def activations(attention, length):
    model = {"remat": "none", "attention": attention}
    sampling = {"max_completion_length": length}
    estimate = _estimate(tmp_path, model=model, sampling=sampling)
    return estimate.update["activations"]

  assert activations("fused", 8) == activations("auto", 8)
  assert activations("fused", 1024) < 0.5 * activations("auto", 1024)


@pytest.mark.parametrize("rollouts, prompts", [(8, 2), (8, 5), (6, 1)])
def test_shapes_are_those_of_the_engine(tmp_path, monkeypatch, rollouts, prompts):
  changes = {"sampling": {"num_rollouts": rollouts}, "data": {"prompts_per_step": prompts}}
  config = tiny.config(tmp_path, **changes)
  parts = build(config, policy=tiny.policy(), splits=tiny.splits(), reward=tiny.reward)
  engine = make_learner(
    parts.policy,
    sampler=parts.sampler,
    objective=parts.objective,
    optimizer=parts.optimizer,
    prompt_length=5,
  ).engine
  compiled = []
  generate = engine._generate_batch

  def watch(params, weights, tokens, lengths, key, ids, rollout_ids, progress):
    compiled.append((bucket(len(tokens)), bucket(len(tokens)) * len(rollout_ids)))
    return generate(params, weights, tokens, lengths, key, ids, rollout_ids, progress)

  monkeypatch.setattr(engine, "_generate_batch", watch)
  engine.generate(
    tiny.policy().params, [[1, 2, 3, 4, 5]] * prompts, key=jax.random.key(0), num_rollouts=rollouts
  )
  shapes = _estimate(tmp_path, **changes).shapes
  assert shapes["prefill"].startswith(f"{compiled[0][0]} prompts")
  assert shapes["decode"].startswith(f"{compiled[0][1]} rows")


def test_a_large_group_is_sampled_in_parts_of_two_gibibytes():
  model = dataclasses.replace(tiny.MODEL, vocab_size=128256, num_layers=16, num_heads=32)
  model = dataclasses.replace(model, num_kv_heads=8, head_dim=64)
  height, part = batch_shape(model, 256, prompt_length=1024, completion_length=512, item_size=2)
  assert height == 1
  parts = -(-256 // part)
  fewer = -(-256 // (parts - 1))
  one = row_bytes(model, 512, item_size=2)
  prompt = prompt_bytes(model, 1024, item_size=2)
  assert one * part + prompt <= 2 << 30 < one * fewer + prompt


LLAMA_1B = dataclasses.replace(
  tiny.MODEL,
  vocab_size=128256,
  hidden_size=2048,
  intermediate_size=8192,
  num_layers=16,
  num_heads=32,
  num_kv_heads=8,
  head_dim=64,
  max_positions=4096,
)


def _paper(tmp_path, **sampling):
  return tiny.config(
    tmp_path,
    data={"prompts_per_step": 16, "max_prompt_length": 1024},
    sampling={"num_rollouts": 64, "max_completion_length": 1024, **sampling},
    model={"compute_dtype": "bfloat16"},
  )


def test_an_accelerator_decodes_as_many_rows_as_it_has_memory_for(tmp_path, monkeypatch):
  assert decode_memory(_paper(tmp_path), LLAMA_1B) == 2 << 30
  monkeypatch.setattr(plan, "device_limit_bytes", lambda: 80 << 30)
  memory = decode_memory(_paper(tmp_path), LLAMA_1B)
  estimate = estimate_memory(_paper(tmp_path), LLAMA_1B)
  assert sum(estimate.always.values()) + sum(estimate.rollout.values()) < 80 << 30
  assert 40 << 30 < memory < 64 << 30
  assert estimate.shapes["decode"] == "1024 rows x 1024 tokens"
  assert decode_memory(_paper(tmp_path, memory_gb=3.0), LLAMA_1B) == 3 << 30


def test_every_prompt_counts_in_what_a_call_may_take():
  model = dataclasses.replace(LLAMA_1B, num_kv_heads=32)
  shape = {"prompt_length": 1024, "completion_length": 16, "item_size": 4}
  prompts, rollouts = batch_shape(model, 8, **shape)
  assert rollouts == 8
  group = prompt_bytes(model, 1024, item_size=4) + 8 * row_bytes(model, 16, item_size=4)
  assert prompts * group <= 2 << 30 < (prompts + 1) * group


def test_description_names_every_part(tmp_path):
  estimate = _estimate(tmp_path)
  text = describe(estimate)
  assert f"{estimate.num_parameters:,}" in text
  for part in (*estimate.always, *estimate.rollout, *estimate.update, *estimate.shapes):
    assert part in text
