"""Whether weights are copied to every device while rows are decoded."""

import jax
import pytest

from tea_jax.models import decode_sharding
from tea_jax.models.decode_sharding import copies_weights
from tests.models import tiny


@pytest.mark.parametrize(
  "limit, dtype, tensor, copied",
  [
    (None, "float32", 1, True),
    (100, "float32", 1, True),
    (60, "float32", 1, False),
    (60, "bfloat16", 1, True),
    (60, "float32", 2, True),
  ],
)
def test_weights_are_copied_where_they_fit(monkeypatch, limit, dtype, tensor, copied):
  params = tiny.tiny_policy(tiny.LLAMA).params
  percent = 4 * sum(leaf.size for leaf in jax.tree.leaves(params)) / 30  # 30 of `limit`
  bytes_of_device = None if limit is None else int(limit * percent)
  monkeypatch.setattr(decode_sharding, "device_limit_bytes", lambda: bytes_of_device)
  assert copies_weights(tiny.LLAMA, dtype, tensor) == copied
