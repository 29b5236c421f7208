"""Adapters with numbers that do not depend on a generator, on the smallest Llama."""

import functools

import jax
import jax.numpy as jnp

from tea_jax.models import causal_lm
from tea_jax.models.lora import LoraConfig, init_adapters
from tea_jax.models.weights.huggingface_config import config_from_hf
from tests.models.families import FAMILIES, hashed

CONFIG = config_from_hf(FAMILIES["llama"])
LORA = LoraConfig(rank=3, alpha=12.0, targets=("query", "value", "down"))


@functools.lru_cache
def params_of(config):
  return causal_lm.init_params(config, jax.random.key(0))


def random_adapters(config, lora, seed=1):
  """Adapters whose B is not zero."""
  adapters = init_adapters(config, lora, jax.random.key(seed))
  leaves, tree = jax.tree.flatten(adapters)
  return jax.tree.unflatten(
    tree, [0.2 * jnp.asarray(hashed(f"leaf{i}", leaf.shape)) for i, leaf in enumerate(leaves)]
  )
