import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.rollout.sampling import (
  SamplingConfig,
  keep_min_p,
  keep_top_k,
  keep_top_p,
  process_logits,
  sample,
)

VOCABULARY = 300
LOGITS = (2.0 * np.random.default_rng(0).normal(size=VOCABULARY)).astype(np.float32)
SEEN = np.arange(VOCABULARY) % 7 == 0


def exact_distribution(config):
  """Processed probabilities in float64, by sorting."""
  logits = LOGITS.astype(np.float64)
  if config.repetition_penalty != 1:
    changed = np.where(
      logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty
    )
    logits = np.where(SEEN, changed, logits)
  logits = logits / config.temperature
  order = np.argsort(-logits)
  kept = np.ones(VOCABULARY, bool)
  if config.top_k:
    kept[order[config.top_k :]] = False
  if config.top_p < 1:
    masses = np.where(kept, np.exp(logits - logits.max()), 0)[order]
    before = np.cumsum(masses / masses.sum()) - masses / masses.sum()
    kept[order[before >= config.top_p]] = False
  if config.min_p:
    kept &= logits >= logits.max() + np.log(config.min_p)
  masses = np.where(kept, np.exp(logits - logits.max()), 0)
  return masses / masses.sum()


CONFIGS = {
  "plain": SamplingConfig(),
  "cold": SamplingConfig(temperature=0.5),
  "hot": SamplingConfig(temperature=1.7),
  "top_k": SamplingConfig(top_k=10),
  "top_p": SamplingConfig(top_p=0.8),
  "min_p": SamplingConfig(min_p=0.1),
  "penalty": SamplingConfig(repetition_penalty=1.4),
  "all": SamplingConfig(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_token_frequencies_fit_the_exact_distribution(name):
  config, draws = CONFIGS[name], 20_000
  uniforms = jax.random.uniform(jax.random.key(1), (draws, 2))
  draw = jax.jit(jax.vmap(lambda u: sample(LOGITS[None], u[None], config, SEEN[None])))
  drawn = draw(uniforms)
  tokens = np.asarray(drawn.tokens)[:, 0]
  exact = exact_distribution(config)
  counts = np.bincount(tokens, minlength=VOCABULARY)
  assert (counts[exact == 0] == 0).all()
  # Tokens that are expected fewer than 10 times are counted together.
  rare = exact * draws < 10
  observed = np.append(counts[~rare], counts[rare].sum())
  expected = np.append(exact[~rare], exact[rare].sum()) * draws
  if expected[-1] < 10:
    observed, expected = observed[:-1], expected[:-1]
    expected = expected / expected.sum() * observed.sum()
  assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3
  with np.errstate(divide="ignore"):
    np.testing.assert_allclose(drawn.sampling_logprobs[:, 0], np.log(exact)[tokens], atol=2e-5)
  plain = exact_distribution(SamplingConfig(temperature=config.temperature))
  np.testing.assert_allclose(drawn.logprobs[:, 0], np.log(plain)[tokens], atol=2e-5)


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "penalty", "all"])
def test_processed_distribution_is_exact(name):
  config = CONFIGS[name]
  processed = jax.nn.softmax(process_logits(LOGITS[None], config, SEEN[None]))[0]
  np.testing.assert_allclose(processed, exact_distribution(config), atol=1e-6)


def test_processors_match_transformers():
  pytest.importorskip("torch")
  import torch
  from transformers.generation import logits_process as hf

  scores = torch.as_tensor(LOGITS)[None]
  for ours, theirs in (
    (keep_top_k(LOGITS[None], 7), hf.TopKLogitsWarper(7)),
    (keep_top_p(LOGITS[None], 0.7), hf.TopPLogitsWarper(0.7)),
    (keep_min_p(LOGITS[None], 0.05), hf.MinPLogitsWarper(0.05)),
  ):
    np.testing.assert_array_equal(np.asarray(ours), theirs(None, scores).numpy())


def test_far_tail_is_drawn_as_often_as_it_should():
  # One token of mass 1 - 1e-3 and 2000 that share the rest: 23 bits alone resolve each of them to
  # 12 steps; the second uniform makes the draw inside a block exact.
  tail = 2000
  logits = np.full(tail + 1, np.log(1e-3 / tail), np.float32)
  logits[0] = np.log1p(-1e-3)
  block_members = np.arange(tail + 1) % 128 == 5
  uniforms = np.stack([np.full(4000, 0.9991), np.linspace(0, 1, 4000, endpoint=False)], -1)
  # The first uniform is chosen so that a tail block is hit; inside it the draw is uniform.
  tokens = np.asarray(
    sample(jnp.tile(logits, (4000, 1)), jnp.asarray(uniforms, jnp.float32), SamplingConfig()).tokens
  )
  assert len(set(tokens % 128)) == 1
  counts = np.bincount(tokens // 128)
  assert counts.min() >= 4000 // block_members.sum() - 2
  assert counts.max() <= 4000 / (block_members.sum() - 1) + 2


@given(
  st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
  st.floats(0, 1, exclude_max=True),
  st.floats(0, 1, exclude_max=True),
  st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_masked_tokens_are_never_drawn(values, first, second, top_k):
  logits = np.full(40, -np.inf, np.float32)
  logits[: len(values)] = values
  uniforms = np.minimum(np.asarray([[first, second]], np.float32), 1 - 2.0**-23)
  token = int(sample(logits[None], uniforms, SamplingConfig(top_k=top_k)).tokens[0])
  assert token < len(values)
  assert (logits > logits[token]).sum() < top_k


def test_top_k_keeps_ties_and_top_p_keeps_the_best_token():
  tied = np.asarray([[3.0, 1.0, 1.0, 0.0]], np.float32)
  np.testing.assert_array_equal(np.isfinite(keep_top_k(tied, 2)), [[True, True, True, False]])
  np.testing.assert_array_equal(np.isfinite(keep_top_p(tied, 1e-6)), [[True, False, False, False]])
  flat = np.zeros((1, 8), np.float32)
  assert np.isfinite(keep_top_p(flat, 0.5)).all()


def test_greedy_takes_the_most_likely_token():
  drawn = sample(LOGITS[None], np.asarray([[0.99, 0.99]]), SamplingConfig(temperature=0))
  assert int(drawn.tokens[0]) == LOGITS.argmax()
  assert float(drawn.sampling_logprobs[0]) == 0
  expected = exact_distribution(SamplingConfig()).max()
  assert float(drawn.logprobs[0]) == pytest.approx(np.log(expected), abs=1e-5)


@pytest.mark.parametrize(
  "options",
  [
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"top_p": 0.0},
    {"top_p": 1.1},
    {"top_k": -1},
    {"min_p": -0.1},
    {"min_p": 1.5},
    {"repetition_penalty": 0.0},
    {"max_completion_length": 0},
    {"stop_strings": ("",)},
  ],
)
def test_bad_settings_are_refused_with_their_value(options):
  (name,) = options
  with pytest.raises(ValueError, match=name):
    SamplingConfig(**options)
