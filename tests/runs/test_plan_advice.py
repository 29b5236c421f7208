"""What the dry run advises where a run does not fit."""

import dataclasses

from tea_jax.runs.plan import estimate_memory
from tea_jax.runs.plan_advice import advise, describe_advice
from tests.training import tiny

SHARES = {"none": 8, "dots": 4, "full": 2}


def _config(tmp_path, **changes):
  return tiny.config(tmp_path, **({"model": {"remat": "none"}} | changes))


def _peak(config):
  """Weights over fsdp, and activations of a micro-batch by what is recomputed: made up."""
  rollouts = config.optimizer.micro_batch_rollouts or 16
  weights = 0 if config.model.lora is not None else 400
  return weights // config.mesh.fsdp + 100 * SHARES[config.model.remat] * rollouts // 16


def test_remedies_are_estimated_anew(tmp_path):
  model = dataclasses.replace(tiny.MODEL, vocab_size=4096, hidden_size=256, num_layers=4)
  config = _config(tmp_path, mesh={"memory_gb": 1.0}, sampling={"max_completion_length": 32})

  def peak_of(config):
    return estimate_memory(config, model, prompt_length=5).peak

  now = peak_of(config)
  advice = dict(advise(config, now - 1, peak_of))
  split = dataclasses.replace(config.mesh, fsdp=2)
  assert advice["--mesh.fsdp 2"] == peak_of(dataclasses.replace(config, mesh=split))
  assert list(advice.values()) == sorted(advice.values())
  assert all(size < now for size in advice.values())


def test_the_most_effective_stands_first_with_the_mildest_value_that_fits(tmp_path):
  assert advise(_config(tmp_path), 1000, _peak) == [
    ("--optimizer.micro-batch-rollouts 8", 800),
    ("--model.remat dots", 800),
    ("--model.lora-rank 16", 800),
    ("--mesh.fsdp 2", 1000),
  ]


def test_flags_add_up_where_none_is_enough(tmp_path):
  *single, together = advise(_config(tmp_path), 300, _peak)
  assert min(size for _, size in single) == 450
  flags = "--optimizer.micro-batch-rollouts 1 --model.remat full --model.lora-rank 16"
  assert together == (flags, 12)


def test_what_does_not_go_with_the_rest_is_not_advised(tmp_path):
  lora = {"lora_rank": 4, "param_dtype": "bfloat16", "remat": "full"}
  # Micro-batches of a group of six: two are three each, three do not divide by two.
  config = _config(tmp_path, model=lora, sampling={"num_rollouts": 6})
  flags = [flags for flags, _ in advise(config, 10, _peak)]
  assert flags == ["--optimizer.micro-batch-rollouts 3"]


def test_the_lines_say_what_still_does_not_fit():
  text = describe_advice([("--a 1", 10**9), ("--b 2", 3 * 10**9)], limit=2 * 10**9)
  assert text.splitlines()[1:] == ["  --a 1: 1.00 GB", "  --b 2: 3.00 GB (still too much)"]
  assert "smaller model" in describe_advice([], limit=10**9)
