import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.data import make_prompt
from tea_jax.data.supervised import encode_pairs, length_grouped, make_pairs
from tests.training import tiny


def prompts(*rows):
  return [make_prompt(text, columns) for text, columns in rows]


ROWS = prompts(
  ("w1 w2", {"answer": "w3", "solution": "w4 w5", "level": "Level 2"}),
  ("w6", {"answer": "w7", "solution": "w8 w9 w10 w11", "level": 4}),
)


def test_the_target_decides_what_is_learnt():
  def completions(**options):
    return [pair.completion for pair in make_pairs(ROWS, **options)]

  assert completions(target="answer") == ["w3", "w7"]
  assert completions(target="boxed_answer") == ["\\boxed{w3}", "\\boxed{w7}"]
  assert completions(target="solution") == ["w4 w5", "w8 w9 w10 w11"]
  assert completions() == ["w4 w5", "w8 w9 w10 w11"]  # the first usual name
  assert completions(column="answer") == ["w3", "w7"]
  assert completions(target="answer", levels=(4, 5)) == ["w7"]


def test_a_conversation_teaches_its_last_turn():
  turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
  pair = make_pairs(prompts(("w1", {"chosen": turns})))[0]
  assert pair.completion == "w2"


def encode(pairs, **options):
  options = {"end_token": 0, "max_length": 32, "template": "raw", **options}
  return encode_pairs(pairs, tiny.tokenizer(), **options)


def test_completions_end_with_the_end_token_and_long_pairs_are_counted():
  pairs = make_pairs(ROWS, target="solution")
  encoded = encode(pairs)
  assert encoded.tokens == [[3, 4, 6, 7, 0], [8, 10, 11, 12, 13, 0]]
  assert encoded.prompt_lengths == [2, 1]
  assert encode(pairs, add_end=False).tokens[0] == [3, 4, 6, 7]
  shorter = encode(pairs, max_length=5)
  assert (len(shorter), shorter.num_dropped) == (1, 1)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: make_pairs(prompts(("w1", {"answer": "  "}))), "pair 0 has an empty completion"),
    (lambda: make_pairs(prompts(("w1", {"label": 1}))), "no column 'completion'.*label"),
    (lambda: make_pairs(ROWS, levels=(5,)), r"none of 2 rows is a pair of level \[5\]"),
    (lambda: encode(make_pairs(ROWS), max_length=3), "all 2 pairs are longer than max_length=3"),
  ],
)
def test_pairs_that_cannot_be_learnt_are_one_sentence(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_grouping_by_length_keeps_every_pair_once(count, batch_size, seed):
  rng = np.random.default_rng(seed)
  order, lengths = rng.permutation(count), rng.integers(1, 50, count)
  grouped = length_grouped(order, lengths, batch_size=batch_size, rng=rng)
  assert sorted(grouped) == list(range(count))


def test_batches_hold_pairs_of_similar_length():
  rng = np.random.default_rng(0)
  lengths = rng.integers(10, 500, 1024)
  order = rng.permutation(1024)
  grouped = length_grouped(order, lengths, batch_size=8, rng=rng)

  def padding(indices):
    batches = lengths[indices].reshape(-1, 8)
    return 1 - batches.sum() / (8 * batches.max(1)).sum()

  assert padding(grouped) < 0.12 < 0.35 < padding(order)
