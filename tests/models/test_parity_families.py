"""Logits of every family against `transformers` on the same weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tea_jax.models import causal_lm
from tea_jax.models.sequence_classifier import abstract_classifier_params, score
from tea_jax.models.weights import huggingface
from tests.models.families import CAUSAL, CLASSIFIERS, FAMILIES, LENGTHS, tokens, write_folder

pytest.importorskip("torch")
pytestmark = pytest.mark.parity

TOLERANCE = 2e-4


def torch_model(folder):
  import transformers

  kind = transformers.AutoModelForCausalLM
  if "classifier" in folder.name:
    kind = transformers.AutoModelForSequenceClassification
  model, report = kind.from_pretrained(
    folder, attn_implementation="eager", dtype="float32", output_loading_info=True
  )
  assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  return model.eval()


def torch_logits(model, rows, lengths):
  """Logits `[B, T, V]`, or scores `[B]`, of rows that are run one by one, without padding."""
  import torch

  with torch.no_grad():
    outputs = [
      model(torch.tensor(row[None, :length].astype(np.int64))).logits[0].numpy()
      for row, length in zip(rows, lengths)
    ]
  return outputs


def our_logits(folder, rows, lengths):
  config, head = huggingface.read_config(folder)
  assert head == "causal_lm"
  params = huggingface.load_params(folder, config, causal_lm.abstract_params(config))

  @jax.jit
  def run(params, rows, lengths):
    hidden = causal_lm.hidden_states(config, params, rows, lengths)
    return causal_lm.logits(config, params, hidden)

  return np.asarray(run(params, rows, lengths))


@pytest.mark.parametrize("name", CAUSAL)
def test_logits_of_a_ragged_batch_match_transformers(name, tmp_path):
  folder = write_folder(tmp_path / name, FAMILIES[name])
  ours = our_logits(folder, tokens(), LENGTHS)
  theirs = torch_logits(torch_model(folder), tokens(), LENGTHS)
  for row, (logits, length) in enumerate(zip(theirs, LENGTHS)):
    np.testing.assert_allclose(ours[row, :length], logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_of_a_ragged_batch_match_transformers(name, tmp_path):
  folder = write_folder(tmp_path / name, FAMILIES[name])
  config, head = huggingface.read_config(folder)
  assert head == "sequence_classifier"
  params = huggingface.load_params(folder, config, abstract_classifier_params(config), head=head)
  ours = score(config, params, tokens(), LENGTHS)
  theirs = [row[0] for row in torch_logits(torch_model(folder), tokens(), LENGTHS)]
  np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAMILIES))
def test_saved_folder_gives_the_same_logits_in_transformers(name, tmp_path):
  source = write_folder(tmp_path / "source" / name, FAMILIES[name])
  config, head = huggingface.read_config(source)
  abstract = (causal_lm.abstract_params if head == "causal_lm" else abstract_classifier_params)(
    config
  )
  params = huggingface.load_params(source, config, abstract, head=head)
  huggingface.save_pretrained(tmp_path / "saved" / name, config, params, head=head)
  before = torch_logits(torch_model(source), tokens(), LENGTHS)
  after = torch_logits(torch_model(tmp_path / "saved" / name), tokens(), LENGTHS)
  for row in range(len(LENGTHS)):
    np.testing.assert_array_equal(before[row], after[row])
