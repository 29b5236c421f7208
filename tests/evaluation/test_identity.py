"""The fingerprint of weights: one for the same bits, another for any other. That of evaluations.

`tests/models/test_sharding.py` checks that shards do not count.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tea_jax.evaluation.identity import evaluation_spec
from tea_jax.models.digest import bit_sum, parameters_digest
from tea_jax.runs.groups import DataConfig, PolicyConfig, RolloutConfig

DTYPES = ("float32", "bfloat16", "float16", "int8", "uint32")


def weights(dtype="float32", shape=(6, 8, 10)):
  # Magnitudes apart, so that a sum in float depends on its order and swallows small changes.
  values = np.random.default_rng(0).normal(size=shape) * 10.0 ** np.arange(shape[-1])
  return jnp.asarray(values % 100).astype(dtype)


def by_hand(values: np.ndarray) -> int:
  """The sum over places in Python's own integers."""
  words = values.view(f"uint{8 * values.dtype.itemsize}")
  total = 0
  for index, word in np.ndenumerate(words):
    place = 1 + sum(0x9E3779B9 ** (axis + 1) * i for axis, i in enumerate(index))
    total += int(word) * (2 * place + 1)
  return total % 2**32


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_bits_is_the_exact_one_of_integers(dtype):
  values = weights(dtype)
  assert int(bit_sum(values)) == by_hand(np.asarray(values))


@pytest.mark.parametrize("dtype", DTYPES)
@given(place=st.integers(0, 479), bit=st.integers(0, 7))
def test_any_flipped_bit_changes_it(dtype, place, bit):
  values = np.array(weights(dtype))
  before = parameters_digest({"a": jnp.asarray(values)})
  values.reshape(-1).view(np.uint8)[place * values.dtype.itemsize] ^= np.uint8(1 << bit)
  assert parameters_digest({"a": jnp.asarray(values)}) != before


def test_order_names_and_types_count():
  values = weights()
  digest = parameters_digest({"a": values, "b": values + 1})
  others = (
    {"a": values[::-1], "b": values + 1},
    {"a": values[:, ::-1], "b": values + 1},
    {"a": values + 1, "b": values},
    {"a": values, "c": values + 1},
    {"a": values.reshape(8, 6, 10), "b": values + 1},
    {"a": values.view("int32"), "b": values + 1},
  )
  assert len({digest, *(parameters_digest(other) for other in others)}) == 7
  assert parameters_digest({"b": np.asarray(values + 1), "a": np.asarray(values)}) == digest


@pytest.mark.parametrize("setting", [{"attention": "fused"}, {"remat": "none"}])
def test_how_a_gradient_is_computed_does_not_identify_stored_completions(setting):
  usual, other = (
    evaluation_spec(
      {"a": weights()}, model=model, data=DataConfig(), sampling=RolloutConfig(), seed=0
    )
    for model in (PolicyConfig(), PolicyConfig(**setting))
  )
  assert usual == other


@pytest.mark.parametrize(
  "setting", [{"compactions": 2}, {"cache_buckets": 3}, {"decode_attention": "pallas"}]
)
def test_how_a_token_is_computed_does_not_identify_stored_completions(setting):
  usual, other = (
    evaluation_spec(
      {"a": weights()}, model=PolicyConfig(), data=DataConfig(), sampling=sampling, seed=0
    )
    for sampling in (RolloutConfig(), RolloutConfig(**setting))
  )
  assert usual == other
