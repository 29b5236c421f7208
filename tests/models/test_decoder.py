import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.models.causal_lm import CausalLM, abstract_params, hidden_states, init_params, nnx
from tea_jax.models.config import RopeScaling
from tea_jax.models.layers import rotary_frequencies, times_transposed
from tests.models.tiny import CONFIGS, COSTLY, GPT2, LLAMA, tiny_policy


@pytest.mark.parametrize("name", CONFIGS)
def test_params_have_the_agreed_names_and_shapes(name):
  config = CONFIGS[name]
  params = abstract_params(config)
  kernel = params["layers"]["attention"]["key"]["kernel"]
  assert kernel.shape == (2, 32, config.num_kv_heads * 8)
  assert ("lm_head" in params) == (not config.tie_embeddings)
  assert ("gate" in params["layers"]["mlp"]) == config.gated_mlp
  assert ("position" in params["embed"]) == (config.position == "learned")
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
  real = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), init_params(config, jax.random.key(0)))
  assert shapes == real
  # A weak type would become a strong one in the first update, and compile everything again.
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3), (5, 20)])
def test_products_with_a_transposed_kernel_are_the_plain_ones(batch):
  generator = np.random.default_rng(0)
  x, kernel = generator.normal(size=(*batch, 24)), generator.normal(size=(40, 24))
  single = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
  np.testing.assert_allclose(jax.jit(times_transposed)(*single), x @ kernel.T, atol=1e-5)
  half = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
  assert times_transposed(*half).dtype == jnp.bfloat16
  exact = np.asarray(half[0], np.float64) @ np.asarray(half[1], np.float64).T
  wide = times_transposed(*half, dtype=jnp.float32)
  assert wide.dtype == jnp.float32
  np.testing.assert_allclose(wide, exact, atol=1e-5)
  gradient = jax.grad(lambda x: jnp.sum(jnp.square(times_transposed(x, single[1]))))(single[0])
  np.testing.assert_allclose(gradient, 2 * x @ kernel.T @ kernel, rtol=1e-4, atol=1e-3)


def test_unrolled_gradient_is_linear_in_depth():
  # Indexing a stack pads each layer's gradient to the whole stack: quadratic memory and time.
  sizes = []
  for depth in (4, 8):
    config = dataclasses.replace(LLAMA, num_layers=depth)
    params = abstract_params(config)

    def loss(params, config=config):
      tokens = jnp.zeros((1, 4), jnp.int32)
      return hidden_states(config, params, tokens, scan=False).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert " pad[" not in text
    sizes.append(len(text.splitlines()))
  assert sizes[1] < 2.2 * sizes[0]


@pytest.mark.parametrize("name", COSTLY)
def test_padding_and_layout_options_do_not_change_valid_tokens(name):
  policy = tiny_policy(CONFIGS[name])
  tokens = np.random.default_rng(0).integers(0, 97, (2, 9))
  expected = jax.jit(policy.hidden_states)(policy.params, tokens)
  padded = np.pad(tokens, ((0, 0), (0, 4)), constant_values=3)
  lengths = np.asarray([9, 9])
  for options in ({}, {"scan_layers": False}, {"remat": "full"}, {"remat": "dots"}):
    other = dataclasses.replace(policy, **options)
    hidden = jax.jit(other.hidden_states)(policy.params, padded, lengths)[:, :9]
    np.testing.assert_allclose(hidden, expected, atol=2e-5)


def test_future_tokens_do_not_change_the_past():
  policy = tiny_policy()
  tokens = np.random.default_rng(0).integers(0, 97, (1, 8))
  changed = tokens.copy()
  changed[0, 5:] = 1
  before, after = (np.asarray(policy.hidden_states(policy.params, t)) for t in (tokens, changed))
  np.testing.assert_array_equal(before[0, :5], after[0, :5])
  assert np.abs(before[0, 5:] - after[0, 5:]).max() > 1e-2


def test_sliding_window_hides_what_lies_beyond_it():
  config = dataclasses.replace(LLAMA, sliding_window=3, num_layers=1)
  policy = tiny_policy(config)
  tokens = np.random.default_rng(0).integers(0, 97, (1, 8))
  changed = tokens.copy()
  changed[0, 2] = (changed[0, 2] + 1) % 97
  before, after = (np.asarray(policy.hidden_states(policy.params, t)) for t in (tokens, changed))
  difference = np.abs(before - after).max(-1)[0]
  assert (difference[[2, 3, 4]] > 1e-4).all()
  np.testing.assert_array_equal(difference[[0, 1, 5, 6, 7]], 0)


def test_module_call_equals_the_pure_function():
  module = CausalLM(GPT2, rngs=nnx.Rngs(0))
  params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  tokens = jnp.arange(6)[None]
  policy = tiny_policy(GPT2)
  np.testing.assert_allclose(module(tokens), policy.hidden_states(params, tokens), atol=1e-6)


def test_rotation_depends_on_distance_only():
  from tea_jax.models.layers import rotary_table, rotate

  query, key = np.random.default_rng(0).normal(size=(2, 1, 8)).astype(np.float32)

  def score(i, j):
    turned = (rotate(x, rotary_table(jnp.asarray(p), LLAMA)) for x, p in ((query, i), (key, j)))
    return float(jnp.vdot(*turned))

  assert score(7, 3) == pytest.approx(score(14, 10), abs=1e-5)
  assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_rotary_scaling_by_hand():
  linear = dataclasses.replace(LLAMA, rope_scaling=RopeScaling("linear", 4.0))
  np.testing.assert_allclose(rotary_frequencies(linear), rotary_frequencies(LLAMA) / 4)
  scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 16)
  config = dataclasses.replace(LLAMA, rope_theta=100.0, rope_scaling=scaling)
  # Wavelengths 2 pi (1, 3.162, 10, 31.62): turns in 16 positions 2.546, 0.8053, 0.2546, 0.0805.
  plain = 100.0 ** -np.asarray([0, 0.25, 0.5, 0.75])
  share = (16 / (2 * np.pi) - 1) / 3
  expected = plain * [share + (1 - share) / 8, 1 / 8, 1 / 8, 1 / 8]
  np.testing.assert_allclose(rotary_frequencies(config), expected)


def test_bfloat16_compute_stays_near_float32():
  policy = tiny_policy(sharpness=2.0)
  half = dataclasses.replace(policy, compute_dtype="bfloat16")
  tokens = jnp.arange(7)[None]
  full = policy.logits(policy.params, policy.hidden_states(policy.params, tokens))
  states = half.hidden_states(policy.params, tokens)
  assert states.dtype == jnp.bfloat16
  logits = half.logits(policy.params, states)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, full, atol=0.1 * float(jnp.std(full)) + 0.02)


@pytest.mark.slow
def test_tree_mode_of_nnx_works():
  code = (
    "import jax; from tests.models.tiny import *; import jax.numpy as jnp; p = tiny_policy();"
    "print(float(p.hidden_states(p.params, jnp.arange(5)[None]).sum()))"
  )
  outputs = []
  for mode in ({}, {"NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false"}):
    environment = {**os.environ, **mode, "JAX_PLATFORMS": "cpu"}
    outputs.append(subprocess.check_output([sys.executable, "-c", code], env=environment))
  assert outputs[0] == outputs[1]
