"""Parameters on a mesh: the table, and reading straight into shards on eight devices."""

from __future__ import annotations

import subprocess
import sys

import jax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from tea_jax.models import causal_lm
from tea_jax.models.sharding import ShardingRules, logical_axes, make_mesh, param_shardings
from tea_jax.models.weights.huggingface_config import config_from_hf
from tests.models.families import CAUSAL, FAMILIES

RULES = ShardingRules()


@pytest.mark.parametrize("name", CAUSAL)
def test_every_parameter_has_a_logical_axis_for_each_dimension(name):
  for path, leaf in flatten_dict(causal_lm.abstract_params(config_from_hf(FAMILIES[name]))).items():
    assert len(logical_axes(path)) == len(leaf.shape), path


def test_kernels_are_split_over_fsdp_and_tensor():
  query = RULES.spec(logical_axes(("layers", "attention", "query", "kernel")))
  down = RULES.spec(logical_axes(("layers", "mlp", "down", "kernel")))
  assert query == PartitionSpec(None, "fsdp", "tensor")
  assert down == PartitionSpec(None, "tensor", "fsdp")
  assert RULES.spec(("batch", None)) == PartitionSpec(("data", "fsdp"), None)


def test_unknown_parameter_and_axis_are_refused_by_name():
  with pytest.raises(ValueError, match=r"no logical axes are known for the parameter a\.b"):
    logical_axes(("a", "b"))
  with pytest.raises(ValueError, match="logical axis 'width' is not known; known: batch"):
    RULES.spec(("width",))


def test_two_axes_on_one_mesh_axis_are_refused():
  with pytest.raises(ValueError, match="two axes on the mesh axis 'tensor'"):
    ShardingRules(model="tensor").spec(("model", "mlp"))


def test_mesh_sizes_must_multiply_to_the_devices():
  devices = jax.devices()
  with pytest.raises(ValueError, match="tensor=3 do not multiply to"):
    make_mesh(tensor=3, devices=devices)
  assert dict(make_mesh(fsdp=-1, devices=devices).shape)["fsdp"] == len(devices)


def test_no_mesh_gives_no_shardings():
  config = config_from_hf(FAMILIES["llama"])
  assert param_shardings(causal_lm.abstract_params(config), config, None) is None


EIGHT_DEVICES = """
import pathlib, sys, tempfile
import jax

jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from jax.sharding import PartitionSpec as P
from tea_jax.models.digest import parameters_digest
from tea_jax.models.weights import huggingface, safetensors_files
from tea_jax.models.weights.load import load_policy
from tea_jax.models.sharding import make_mesh, param_shardings
from tests.models.families import FAMILIES, tokens, write_folder
from tests.models.gguf_files import write_gguf

root = pathlib.Path(tempfile.mkdtemp())
mesh = make_mesh(data=2, fsdp=2, tensor=2)
read = []
original = safetensors_files.SafetensorsFolder.read
def spy(self, name, index):
  values = original(self, name, index)
  read.append((name, values.shape))
  return values
safetensors_files.SafetensorsFolder.read = spy

for name in ("llama", "gpt2", "gemma"):
  folder = write_folder(root / name, FAMILIES[name])
  plain = load_policy(folder)
  read.clear()
  policy = load_policy(folder, mesh=mesh)
  jax.tree.map(np.testing.assert_array_equal, policy.params, plain.params)
  assert parameters_digest(policy.params) == parameters_digest(plain.params)
  up = policy.params["layers"]["mlp"]["up"]["kernel"]
  assert up.sharding.spec == P(None, "fsdp", "tensor"), up.sharding
  assert up.addressable_shards[0].data.shape[1:] == (up.shape[1] // 2, up.shape[2] // 2)
  if name == "llama":
    shapes = {shape for key, shape in read if "mlp.up_proj" in key}
    assert shapes == {(24, 16)}, shapes  # a quarter of [48, 32]: never the whole tensor
  if name == "gemma":  # one key head, which two devices cannot share
    key = policy.params["layers"]["attention"]["key"]["kernel"]
    assert key.sharding.spec == P(None, "fsdp", None), key.sharding
  logits = jax.jit(lambda p, t: policy.logits(p, policy.hidden_states(p, t)))
  ours, theirs = logits(policy.params, tokens()), logits(plain.params, tokens())
  np.testing.assert_allclose(ours, theirs, atol=2e-5)
  moved = jax.device_put(plain.params, param_shardings(plain.params, plain.config, mesh))
  assert moved["layers"]["mlp"]["up"]["kernel"].sharding == up.sharding
  huggingface.save_pretrained(root / (name + "-saved"), policy.config, policy.params)
  again = load_policy(root / (name + "-saved"))
  jax.tree.map(np.testing.assert_array_equal, again.params, plain.params)

file = write_gguf(root / "model.gguf", FAMILIES["llama"])
whole, split = load_policy(file), load_policy(file, mesh=mesh)
jax.tree.map(np.testing.assert_array_equal, split.params, whole.params)
query = split.params["layers"]["attention"]["query"]["kernel"]
assert query.sharding.spec == P(None, "fsdp", "tensor")
"""


@pytest.mark.slow
def test_weights_are_read_into_their_shards_on_eight_devices():
  pytest.importorskip("gguf")
  subprocess.run([sys.executable, "-c", EIGHT_DEVICES], check=True, timeout=280)
