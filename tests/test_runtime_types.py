"""The test run refuses shapes that a signature does not allow."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from tea_jax.advantages.diagnostics import advantage_diagnostics
from tea_jax.scaling.decisions import choose_states
from tea_jax.strategies import pass_at_n
from tea_jax.tail import tail_vector

pytest.importorskip("beartype")

REWARDS = np.arange(16.0, dtype=np.float32).reshape(2, 8)
MASK = np.ones((3, 8), bool)


@pytest.mark.parametrize(
  "call",
  [
    lambda: tail_vector(REWARDS, 0.25, where=MASK),
    lambda: pass_at_n(4).weight(jnp.zeros(3), jnp.zeros(2)),
    lambda: advantage_diagnostics(REWARDS, REWARDS, tail_fraction=0.25, budget=8, where=MASK),
    lambda: choose_states(REWARDS, MASK, num_states=2),
  ],
  ids=["tail", "strategies", "advantages", "scaling"],
)
def test_shapes_that_do_not_fit_are_refused_where_they_enter(call):
  with pytest.raises(jaxtyping.TypeCheckError, match="Type-check error whilst checking the param"):
    call()
