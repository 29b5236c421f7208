"""The reward model against torch, from a Hugging Face folder."""

import numpy as np
import pytest

from tea_jax.rewards import call_reward, make_reward

TEMPLATE = (
  "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
  "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.mark.parity
def test_scores_match_transformers_on_a_padded_batch(tmp_path):
  torch = pytest.importorskip("torch")
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
  )

  words = ["<unk>", "<s>", "</s>", "user", "assistant", "[", "]", "good", "bad", "day", "night"]
  backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token="<s>",
    eos_token="</s>",
    pad_token="</s>",  # as in many reward models: padding is the end token
    unk_token="<unk>",
  )
  tokenizer.chat_template = TEMPLATE
  torch.manual_seed(0)
  config = LlamaConfig(
    vocab_size=len(words),
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    num_labels=1,
    pad_token_id=2,
    bos_token_id=1,
    eos_token_id=2,
  )
  model = LlamaForSequenceClassification(config).eval()
  model.save_pretrained(tmp_path)
  tokenizer.save_pretrained(tmp_path)

  prompts = ["good day", "bad night bad night bad", "day"]
  completions = ["good", "bad good day night day", ""]
  reward = make_reward(
    "model", name_or_path=str(tmp_path), compute_dtype="float32", param_dtype="float32",
    batch_size=2, length_multiple=8, max_length=64,
  )  # fmt: skip
  scores = call_reward(reward, prompts, completions)
  for prompt, completion, score in zip(prompts, completions, scores):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    # One unpadded row, pad id moved away: transformers itself looks for the first padding id.
    model.config.pad_token_id = None
    with torch.no_grad():
      expected = model(input_ids=ids).logits[0, 0].item()
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)
