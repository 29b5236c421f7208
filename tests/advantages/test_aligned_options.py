import jax.numpy as jnp
import numpy as np

from tea_jax.advantages.aligned_options import aligned_weights


def test_clip_comes_before_normalization_and_batch_keeps_ratios():
  log_weights = jnp.log(jnp.array([[1.0], [4.0], [100.0]]))
  weights = aligned_weights(log_weights, (3, 2), clip=7.0, normalization="batch")
  np.testing.assert_allclose(weights, np.repeat([[1 / 4], [1.0], [7 / 4]], 2, axis=1), rtol=1e-6)
  grouped = aligned_weights(log_weights, (3, 2), normalization="group")
  np.testing.assert_allclose(grouped, 1.0, rtol=1e-6)
  plain = aligned_weights(log_weights, (3, 2), clip=7.0)
  np.testing.assert_allclose(plain[:, 0], [1, 4, 7], rtol=1e-6)


def test_batch_mean_counts_only_rollouts_that_count():
  log_weights = jnp.log(jnp.array([[2.0, 4.0], [6.0, 1e30]]))
  where = jnp.array([[True, True], [True, False]])
  weights = aligned_weights(log_weights, (2, 2), where=where, normalization="batch")
  np.testing.assert_allclose(weights, [[0.5, 1.0], [1.5, 0.0]], rtol=1e-6)


def test_a_batch_of_one_prompt_keeps_its_weight():
  log_weights = jnp.log(jnp.array([[3.0]]))
  np.testing.assert_allclose(aligned_weights(log_weights, (1, 4), normalization="batch"), 3.0)


def test_weights_that_underflow_are_still_normalized_and_zeros_stay():
  log_weights = jnp.array([[-5000.0, -5001.0], [-jnp.inf, -jnp.inf]])
  weights = aligned_weights(log_weights, (2, 2), normalization="group")
  expected = 2 / (1 + np.exp(-1.0))
  np.testing.assert_allclose(weights[0], [expected, 2 - expected], rtol=1e-4)
  np.testing.assert_array_equal(weights[1], 0)
