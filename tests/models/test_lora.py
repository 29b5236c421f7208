"""Adapters: their arithmetic, beside the kernels and merged."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.models import causal_lm
from tea_jax.models.lora import LoraConfig, attach_adapters, init_adapters, merge_adapters
from tea_jax.models.weights.huggingface_config import config_from_hf
from tests.models.adapters import CONFIG, LORA, params_of, random_adapters
from tests.models.families import FAMILIES, LENGTHS, hashed, tokens


def test_new_adapters_change_nothing():
  params = params_of(CONFIG)
  merged = merge_adapters(params, init_adapters(CONFIG, LORA, jax.random.key(1)), LORA)
  jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_new_adapters_are_bounded_and_differ_between_targets():
  adapters = init_adapters(CONFIG, LORA, jax.random.key(1))["layers"]
  a = np.asarray(adapters["attention"]["query"]["a"])
  assert a.shape == (2, 32, 3)
  assert 0.9 / math.sqrt(32) < np.abs(a).max() <= 1 / math.sqrt(32)
  assert not np.array_equal(a, adapters["attention"]["value"]["a"])
  assert not np.asarray(adapters["mlp"]["down"]["b"]).any()


@pytest.mark.parametrize("stabilized, scale", [(False, 4.0), (True, 12.0 / math.sqrt(3))])
def test_merge_adds_the_scaled_product_to_the_targets_only(stabilized, scale):
  lora = LoraConfig(3, 12.0, LORA.targets, stabilized)
  params, adapters = params_of(CONFIG), random_adapters(CONFIG, LORA)
  merged = merge_adapters(params, adapters, lora)
  query = adapters["layers"]["attention"]["query"]
  expected = params["layers"]["attention"]["query"]["kernel"][1] + scale * (
    query["a"][1] @ query["b"][1]
  )
  np.testing.assert_allclose(
    merged["layers"]["attention"]["query"]["kernel"][1], expected, atol=1e-6
  )
  assert merged["layers"]["attention"]["key"] is params["layers"]["attention"]["key"]
  assert merged["embed"] is params["embed"]


def test_merged_weights_equal_the_adapter_beside_the_kernel():
  params, adapters = params_of(CONFIG), random_adapters(CONFIG, LORA)
  x = jnp.asarray(hashed("x", (5, 48)))
  merged = merge_adapters(params, adapters, LORA)
  down, adapter = params["layers"]["mlp"]["down"]["kernel"][0], adapters["layers"]["mlp"]["down"]
  beside = x @ down + LORA.scale * ((x @ adapter["a"][0]) @ adapter["b"][0])
  np.testing.assert_allclose(x @ merged["layers"]["mlp"]["down"]["kernel"][0], beside, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_attached_adapters_give_the_loss_and_gradient_of_merged_ones(name):
  config = config_from_hf(FAMILIES[name])
  targets = ("query", "value", "output", "up", "down")
  lora = LoraConfig(rank=3, alpha=12.0, targets=targets)
  params, adapters = params_of(config), random_adapters(config, lora)

  def loss(adapters, combine):
    hidden = causal_lm.hidden_states(config, combine(params, adapters, lora), tokens(), LENGTHS)
    return jnp.square(hidden).mean()

  compute = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  merged, attached = compute(adapters, merge_adapters), compute(adapters, attach_adapters)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), merged, attached
  )


def test_attached_adapters_compute_no_gradient_of_a_kernel():
  params, adapters = params_of(CONFIG), random_adapters(CONFIG, LORA)

  def loss(adapters, combine):
    hidden = causal_lm.hidden_states(
      CONFIG, combine(params, adapters, LORA), tokens(), LENGTHS, scan=False
    )
    return hidden.sum()

  def flops(combine):
    compiled = jax.jit(jax.grad(loss), static_argnums=1).lower(adapters, combine).compile()
    return compiled.cost_analysis()["flops"]

  rows = tokens().size
  kernels = sum(
    2 * math.prod(params["layers"][parent][name]["kernel"].shape)
    for parent, targets in adapters["layers"].items()
    for name in targets
  )
  assert flops(merge_adapters) - flops(attach_adapters) > 0.7 * rows * kernels


def test_gradient_of_a_jitted_loss_reaches_every_adapter():
  params, adapters = params_of(CONFIG), random_adapters(CONFIG, LORA)
  rows = tokens()[:2, :12]

  @jax.jit
  def gradient(adapters):
    def loss(adapters):
      merged = merge_adapters(params, adapters, LORA)
      return jnp.square(causal_lm.hidden_states(CONFIG, merged, rows)[..., 3]).sum()

    return jax.grad(loss)(adapters)

  leaves = jax.tree.leaves(gradient(adapters))
  assert len(leaves) == 6
  assert all(np.abs(leaf).max() > 1e-6 for leaf in leaves)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"rank": 0}, "rank=0"),
    ({"targets": ("q_proj",)}, r"targets=\('q_proj',\).*must be some of query"),
    ({"targets": ()}, "must be some of query"),
  ],
)
def test_impossible_lora_config_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    LoraConfig(**options)


def test_target_that_the_model_lacks_is_refused():
  with pytest.raises(ValueError, match="GPT2 has no projection 'gate'"):
    init_adapters(config_from_hf(FAMILIES["gpt2"]), LoraConfig(), jax.random.key(0))
