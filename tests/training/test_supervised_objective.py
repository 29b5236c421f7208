import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.runs.supervised import SupervisedConfig, SupervisedObjectiveConfig
from tea_jax.training.supervised_objective import TokenScores, pair_losses, pair_weights

NAMES = ("cross_entropy", "pass_at_n", "majority", "pairwise", "hybrid", "token_margin")
MASK = jnp.array([[False, True, True, False], [True, True, True, True]])


def scores(seed=0):
  rng = np.random.default_rng(seed)
  logprobs = jnp.where(MASK, -rng.exponential(0.3, MASK.shape), 0.0)
  margin = jnp.where(MASK, rng.normal(size=MASK.shape), 0.0)
  pairwise = jnp.where(MASK, rng.exponential(size=MASK.shape), 0.0)
  return TokenScores(logprobs, margin, pairwise)


def losses(name, **options):
  config = SupervisedObjectiveConfig(name=name, **options)
  return np.asarray(pair_losses(scores(), MASK, config))


def test_losses_of_strategies_are_minus_log_success_of_the_whole_completion():
  p = np.exp(np.asarray(scores().logprobs).sum(-1))
  np.testing.assert_allclose(losses("cross_entropy"), -np.log(p), rtol=1e-6)
  np.testing.assert_allclose(losses("pass_at_n", budget=4), -np.log(1 - (1 - p) ** 4), rtol=1e-5)
  votes = 3 * p**2 * (1 - p) + p**3
  np.testing.assert_allclose(losses("majority", budget=3, threshold=2), -np.log(votes), rtol=1e-5)


def test_pass_at_one_is_cross_entropy_and_one_vote_is_pass_at_n():
  np.testing.assert_allclose(losses("pass_at_n", budget=1), losses("cross_entropy"), rtol=1e-6)
  np.testing.assert_allclose(
    losses("majority", budget=16, threshold=1), losses("pass_at_n", budget=16), rtol=1e-4
  )


def test_token_losses_are_sums_over_completion_tokens():
  found = scores()
  nll, pairwise = -np.asarray(found.logprobs).sum(-1), np.asarray(found.pairwise).sum(-1)
  np.testing.assert_allclose(losses("pairwise"), pairwise, rtol=1e-6)
  np.testing.assert_allclose(
    losses("hybrid", pairwise_weight=0.25), 0.25 * pairwise + 0.75 * nll, rtol=1e-6
  )
  hinge = np.where(MASK, np.maximum(0.5 - np.asarray(found.margin), 0), 0).sum(-1)
  np.testing.assert_allclose(losses("token_margin", margin=0.5), nll + hinge, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_match_finite_differences(name, float64):
  config = SupervisedObjectiveConfig(name=name, budget=6, threshold=2)
  found = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), scores())
  direction = jax.tree.map(
    lambda x: jnp.where(MASK, np.random.default_rng(1).normal(size=x.shape), 0.0), found
  )

  def total(step):
    moved = jax.tree.map(lambda x, d: x + step * d, found, direction)
    return pair_losses(moved, MASK, config).sum()

  difference = (total(1e-6) - total(-1e-6)) / 2e-6
  np.testing.assert_allclose(jax.grad(total)(0.0), difference, rtol=1e-6)


def test_the_gradient_of_a_strategy_is_its_weight_times_that_of_the_likelihood(float64):
  for name, options in (("pass_at_n", {}), ("majority", {"threshold": 3})):
    config = SupervisedObjectiveConfig(name=name, budget=8, **options)
    logprobs = jnp.asarray(np.asarray(scores().logprobs), jnp.float64)
    gradient = jax.grad(lambda x, c=config: pair_losses(TokenScores(x), MASK, c).sum())(logprobs)
    weight = config.strategy.supervised_weight(logprobs.sum(-1))
    np.testing.assert_allclose(gradient, -np.broadcast_to(weight[:, None], (2, 4)), rtol=1e-10)


def test_weights_divide_by_pairs_or_tokens_and_leave_out_rows_that_fill_up():
  num_tokens = jnp.array([2, 6, 0])
  np.testing.assert_allclose(pair_weights(num_tokens, aggregation="token_sum"), [0.5, 0.5, 0])
  np.testing.assert_allclose(
    pair_weights(num_tokens, aggregation="sequence_mean"), [1 / 4, 1 / 12, 0], rtol=1e-6
  )
  np.testing.assert_allclose(pair_weights(num_tokens, aggregation="token_mean"), [1 / 8, 1 / 8, 0])


def test_majority_divides_by_length_unless_told_otherwise():
  assert SupervisedObjectiveConfig(name="majority").resolved_aggregation == "sequence_mean"
  assert SupervisedObjectiveConfig(name="pass_at_n").resolved_aggregation == "token_sum"
  chosen = SupervisedObjectiveConfig(name="majority", aggregation="token_sum")
  assert chosen.resolved_aggregation == "token_sum"
  assert SupervisedObjectiveConfig(name="majority", budget=64).strategy.threshold == 26


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: SupervisedObjectiveConfig(name="majority", budget=8, threshold=9), "threshold=9"),
    (lambda: SupervisedObjectiveConfig(name="pass"), "objective.name='pass'"),
    (lambda: SupervisedObjectiveConfig(name="pass_at_n", aggregation="token_mean"), "pass_at_n"),
    (lambda: SupervisedObjectiveConfig(fraction=0.0), "fraction=0.0"),
    (lambda: SupervisedConfig(epochs=0), "epochs=0"),
  ],
)
def test_impossible_objectives_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
