"""Logits of every family against values recorded from `transformers`; needs no torch."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tea_jax.models import causal_lm
from tea_jax.models.sequence_classifier import abstract_classifier_params, score
from tea_jax.models.weights import huggingface
from tests.models.families import CAUSAL, CLASSIFIERS, FAMILIES, GOLDEN, LENGTHS, tokens
from tests.models.families import write_folder as write

TOLERANCE = 2e-4


@pytest.mark.parametrize("name", CAUSAL)
def test_logits_match_the_recorded_ones(name, tmp_path):
  config, _ = huggingface.read_config(write(tmp_path, FAMILIES[name]))
  params = huggingface.load_params(tmp_path, config, causal_lm.abstract_params(config))

  @jax.jit
  def run(params, rows, lengths):
    hidden = causal_lm.hidden_states(config, params, rows, lengths)
    return causal_lm.logits(config, params, hidden)

  ours = np.asarray(run(params, tokens(), LENGTHS))
  recorded = np.load(GOLDEN / f"logits_{name}.npz")
  for row, (key, length) in enumerate(zip(recorded.files, LENGTHS)):
    positions = sorted({0, length // 2, length - 1})
    assert np.std(recorded[key]) > 0.1  # or the tolerance would mean nothing
    np.testing.assert_allclose(ours[row, positions], recorded[key], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_match_the_recorded_ones(name, tmp_path):
  config, head = huggingface.read_config(write(tmp_path, FAMILIES[name]))
  params = huggingface.load_params(tmp_path, config, abstract_classifier_params(config), head=head)
  ours = score(config, params, tokens(), LENGTHS)
  recorded = np.load(GOLDEN / f"logits_{name}.npz")
  theirs = np.concatenate([recorded[key] for key in recorded.files])
  assert np.std(theirs) > 0.1
  np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


def test_score_reads_the_last_valid_token_whatever_the_padding(tmp_path):
  config, head = huggingface.read_config(write(tmp_path, FAMILIES["llama_classifier"]))
  params = huggingface.load_params(tmp_path, config, abstract_classifier_params(config), head=head)
  rows = tokens()
  padded = np.where(np.arange(60) < LENGTHS[:, None], rows, config.eos_token_ids[0])
  np.testing.assert_array_equal(
    score(config, params, rows, LENGTHS), score(config, params, padded, LENGTHS)
  )
  # The end token inside the text is read past.
  inside = rows.copy()
  inside[0, 5] = config.eos_token_ids[0]
  cut = score(config, params, inside[:1, :6], np.array([6]))
  assert abs(float(score(config, params, inside, LENGTHS)[0] - cut[0])) > 1e-2
