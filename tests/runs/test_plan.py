"""The dry run's estimate: parameter counts are exact, memory follows the shapes."""

import dataclasses

import jax
import numpy as np
import pytest

from tea_jax.models.sequence_classifier import abstract_classifier_params
from tea_jax.models.weights import huggingface
from tea_jax.rollout.cache import batch_shape, bucket, prompt_bytes, row_bytes
from tea_jax.runs import plan
from tea_jax.runs.build import build
from tea_jax.runs.plan import decode_memory, describe, estimate_memory
from tea_jax.training.learner import make_learner
from tests.benchmarks import plan_memory
from tests.benchmarks.common import LLAMA_1B
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


def test_sharding_divides_the_weights_but_not_what_it_cannot(tmp_path):
  whole = _estimate(tmp_path).always["parameters"]
  norms = 4 * 5 * tiny.MODEL.hidden_size
  split = _estimate(tmp_path, mesh={"fsdp": 4}, num_devices=4).always["parameters"]
  assert split == (whole - norms) // 4 + norms
  # Two heads, and one of keys, are not divided by four devices.
  heads = 4 * 2 * (2 * 16 * 16 + 2 * 16 * 8)
  split = _estimate(tmp_path, mesh={"tensor": 4}, num_devices=4).always["parameters"]
  assert split == (whole - norms - heads) // 4 + norms + heads


def test_adapters_lie_on_every_device(tmp_path):
  model = {"lora_rank": 2}
  one = _estimate(tmp_path, model=model)
  four = _estimate(tmp_path, model=model, mesh={"fsdp": 4}, num_devices=4)
  assert four.always["adapters"] == one.always["adapters"]
  assert four.always["optimiser"] == one.always["optimiser"]


def test_copies_of_the_model_share_the_caches(tmp_path):
  one = _estimate(tmp_path).rollout["caches and logits"]
  assert _estimate(tmp_path, num_devices=4).rollout["caches and logits"] == one // 4
  tensor = _estimate(tmp_path, mesh={"tensor": 4}, num_devices=4)
  assert tensor.rollout["caches and logits"] == one


def test_devices_of_fsdp_hold_all_weights_and_a_share_of_the_rows_while_they_decode(tmp_path):
  one, four = _estimate(tmp_path), _estimate(tmp_path, mesh={"fsdp": 4}, num_devices=4)
  # One device decodes with the table that it trains; four need a whole one each.
  table = 4 * tiny.MODEL.vocab_size * tiny.MODEL.hidden_size
  assert four.rollout["decoding weights"] == one.rollout["decoding weights"] + table
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


def test_fused_attention_keeps_no_scores_and_holds_those_of_one_block_of_keys(tmp_path):
  def sizes(attention, length):
    model = {"remat": "none", "attention": attention}
    sampling = {"max_completion_length": length}
    update = _estimate(tmp_path, model=model, sampling=sampling).update
    return update["activations"], update["one layer or the head"]

  (fused, short), (auto, same) = sizes("fused", 8), sizes("auto", 8)
  assert fused < auto
  assert short >= same  # nothing kept need not be recomputed, and 16 + 7 keys are one block
  assert sizes("fused", 1024)[0] < 0.5 * sizes("auto", 1024)[0]


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


SMALL = dataclasses.replace(
  plan_memory.MODEL, vocab_size=4096, hidden_size=256, intermediate_size=768, num_layers=4
)


def _ratio(cell, phase):
  """The plan over XLA's own, for a model of 4 million parameters."""
  config = plan_memory.run_config(plan_memory.CELLS[cell])
  estimate = plan_memory.plan(config, SMALL)
  always = sum(estimate.always.values())
  if phase == "update":
    planned = sum(estimate.update.values())
    return (always + planned) / plan_memory.update_bytes(config, SMALL)
  planned = sum(estimate.rollout.values())
  return (always + planned) / plan_memory.rollout_bytes(config, SMALL, estimate)


def test_the_update_is_planned_as_xla_plans_it():
  assert _ratio("float32", "update") == pytest.approx(1, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
  "cell",
  [
    "float32, dots",
    "float32, none",
    "float32, micro-batches",
    "float32, long",
    "bfloat16",
    "lora",
    "lora on bfloat16",
  ],
)
def test_every_kind_of_update_is_planned_as_xla_plans_it(cell):
  assert _ratio(cell, "update") == pytest.approx(1, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["float32", "bfloat16", "lora"])
def test_rollouts_are_planned_as_xla_plans_them(cell):
  assert _ratio(cell, "rollouts") == pytest.approx(1, abs=0.15)


def test_an_accelerator_is_planned_without_what_a_cpu_copies(tmp_path):
  model = {"compute_dtype": "bfloat16"}
  here = _estimate(tmp_path, model=model)
  there = _estimate(tmp_path, model=model, mesh={"memory_gb": 1.0})
  assert "copies (CPU)" in here.update
  assert "copies (CPU)" not in there.update
  assert there.update["activations"] < here.update["activations"]
  assert there.limit == 1 << 30


def test_a_reward_model_counts_if_its_config_is_at_hand(tmp_path):
  params = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32), abstract_classifier_params(tiny.MODEL)
  )
  folder = str(tmp_path / "reward")
  huggingface.save_pretrained(
    folder, tiny.MODEL, params, tiny.tokenizer(), head="sequence_classifier"
  )
  estimate = _estimate(tmp_path, reward={"functions": (folder,)})
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert estimate.always[f"reward model {folder}"] == 2 * count
  assert sum(estimate.reward.values()) > 0
  unknown = _estimate(tmp_path, reward={"functions": ("nobody/has-this-model",)})
  assert unknown.not_counted == ("nobody/has-this-model",)
  assert "not counted: the reward model nobody/has-this-model" in describe(unknown)


def test_what_devices_cannot_divide_counts_whole(tmp_path):
  def activations(prompts, devices):
    return _estimate(
      tmp_path,
      data={"prompts_per_step": prompts},
      sampling={"num_rollouts": 6},
      mesh={"data": devices},
      num_devices=devices,
    ).update["activations"]

  assert activations(3, 4) == activations(3, 1)  # neither three prompts nor six rollouts
  assert activations(4, 4) == activations(1, 1)
