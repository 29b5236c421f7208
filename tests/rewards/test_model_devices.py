"""A reward model on several devices: its weights are spread, its scores are those of one.

Four CPU devices are forced in a process of its own.
"""

import pathlib
import sys

import jax
import numpy as np
import pytest

from tea_jax.models.sequence_classifier import SequenceClassifier, abstract_classifier_params
from tea_jax.models.sharding import make_mesh
from tea_jax.rewards.model import ModelReward, load_model_reward
from tests.training import tiny
from tests.training.forced_devices import run_on_four_devices

TEMPLATE = "{% for m in messages %}{{ m['content'] }} <end> {% endfor %}"


def save_classifier(folder: pathlib.Path) -> None:
  leaves, tree = jax.tree.flatten(abstract_classifier_params(tiny.MODEL))
  draw = np.random.default_rng(0).standard_normal
  params = tree.unflatten([0.3 * draw(leaf.shape).astype(np.float32) for leaf in leaves])
  tokenizer = tiny.tokenizer()
  tokenizer.chat_template = TEMPLATE
  SequenceClassifier(config=tiny.MODEL, params=params, tokenizer=tokenizer).save_pretrained(folder)


def bytes_a_device(model: ModelReward) -> int:
  device = jax.devices()[0]
  shards = (shard for leaf in jax.tree.leaves(model.params) for shard in leaf.addressable_shards)
  return sum(shard.data.nbytes for shard in shards if shard.device == device)


def main(folder: pathlib.Path) -> None:
  options = {"param_dtype": "float32", "compute_dtype": "float32", "length_multiple": 8}
  prompts = [" ".join(f"w{(i + j) % 22}" for j in range(1 + i % 4)) for i in range(7)]
  completions = [f"w{i} w{2 * i}" for i in range(7)]
  one = load_model_reward(str(folder), **options)
  expected, whole = one(prompts, completions), bytes_a_device(one)
  for axes, share in (({"data": 4}, 1.0), ({"fsdp": 4}, 0.3), ({"fsdp": 2, "tensor": 2}, 0.35)):
    model = load_model_reward(str(folder), mesh=make_mesh(**axes), batch_size=3, **options)
    np.testing.assert_allclose(model(prompts, completions), expected, rtol=1e-5, atol=1e-5)
    assert bytes_a_device(model) <= share * whole, axes
    rows = 4 if "tensor" not in axes else 2
    assert model.batch_size % rows == 0


@pytest.mark.slow
def test_scores_on_four_devices_are_those_of_one(tmp_path):
  save_classifier(tmp_path / "model")
  run_on_four_devices("tests.rewards.test_model_devices", tmp_path / "model")


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
