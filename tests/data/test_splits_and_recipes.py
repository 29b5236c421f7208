"""Splits are disjoint and stable; recipes read the rows of their data sets."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.data import (
  load_openers,
  load_recipe,
  make_prompt,
  split_by_hash,
  without,
)
from tea_jax.data.recipes import gsm8k_answer, hh_messages

POOL = [make_prompt(f"prompt number {number}") for number in range(60)]


def texts(prompts):
  return [prompt.text for prompt in prompts]


@given(st.permutations(range(60)), st.integers(0, 20), st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_splits_are_disjoint_exact_and_blind_to_order(order, first, second):
  parts = split_by_hash([POOL[i] for i in order], {"a": first, "b": second})
  assert [len(parts[name]) for name in ("a", "b", "train")] == [first, second, 60 - first - second]
  assert sorted(itertools.chain.from_iterable(map(texts, parts.values()))) == sorted(texts(POOL))
  assert parts == split_by_hash(POOL, {"a": first, "b": second})


def test_enlarging_a_later_split_keeps_the_earlier_ones():
  assert split_by_hash(POOL, {"a": 9})["a"] == split_by_hash(POOL, {"a": 9, "b": 30})["a"]


def test_membership_is_a_fixed_function_of_the_text():
  assert texts(split_by_hash(POOL, {"a": 3})["a"]) == [
    "prompt number 39",
    "prompt number 9",
    "prompt number 13",
  ]
  assert split_by_hash(POOL, {"a": 3}, salt="other")["a"] != split_by_hash(POOL, {"a": 3})["a"]


def test_impossible_splits_are_refused():
  with pytest.raises(ValueError, match="need 61 prompts, but there are 60"):
    split_by_hash(POOL, {"a": 61})
  with pytest.raises(ValueError, match="1 of 61 prompts are repeated"):
    split_by_hash([*POOL, make_prompt("Prompt  number 3")], {"a": 5})
  with pytest.raises(ValueError, match="must not contain 'train'"):
    split_by_hash(POOL, {"train": 5})


def test_without_removes_what_says_the_same():
  assert texts(without(POOL[:3], [make_prompt("PROMPT number  1")])) == [
    "prompt number 0",
    "prompt number 2",
  ]


def test_openers_give_enough_held_out_prompts():
  parts = load_openers()
  assert len(parts["test"]) >= 32
  assert len(parts["train"]) >= 200
  assert not set(texts(parts["test"])) & set(texts(parts["train"] + parts["validation"]))


def check_sets(parts):
  assert texts(parts["core500"][:250]) == texts(parts["core250"])
  assert texts(parts["core500"][250:]) == texts(parts["final"][:250])
  disjoint = [set(texts(parts[name])) for name in ("train", "validation", "core250", "final")]
  assert len(set.union(*disjoint)) == sum(map(len, disjoint))


def test_ultrafeedback_keeps_the_source_test_split_out():
  def read(dataset, configuration, split):
    assert (dataset, configuration) == ("HuggingFaceH4/ultrafeedback_binarized", None)
    numbers = {"train_prefs": range(900), "test_prefs": range(880, 1000)}[split]
    return [{"prompt": f"say {number}", "chosen": []} for number in [*numbers, numbers[0]]]

  parts = load_recipe("ultrafeedback", num_validation=20, num_final=300, read=read)
  check_sets(parts)
  assert {name: len(part) for name, part in parts.items()} == {
    "core250": 250,
    "final": 300,
    "validation": 20,
    "train": 310,
    "core500": 500,
  }
  assert not {f"say {n}" for n in range(880, 1000)} & set(texts(parts["train"]))


def test_hh_prompt_ends_with_the_human_turn():
  transcript = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: A\n\nB?\n\nAssistant: Yes."
  assert hh_messages(transcript) == [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "A\n\nB?"},
  ]


def test_hh_recipe_pools_its_three_parts():
  asked = []

  def read(dataset, configuration, split):
    asked.append((configuration, split))
    return [
      {"chosen": f"\n\nHuman: {configuration} {split} {n}\n\nAssistant: ok"} for n in range(100)
    ] + [{"chosen": "\n\nHuman: \n\nAssistant: ok"}]

  parts = load_recipe("hh_helpful", num_validation=10, num_final=250, read=read)
  check_sets(parts)
  assert len(asked) == 6
  assert len(parts["train"]) == 600 - 250 - 250 - 10
  assert parts["train"][0].messages is not None


def test_gsm8k_answer_is_the_number_behind_the_mark():
  assert gsm8k_answer("16 - 3 = <<16-3=13>>13\n#### 1,250") == "1250"
  with pytest.raises(ValueError, match="no '####'"):
    gsm8k_answer("thirteen")


def test_gsm8k_evaluates_on_the_source_test_split():
  def read(dataset, configuration, split):
    assert configuration == "main"
    count = {"train": 40, "test": 600}[split]
    return [{"question": f"{split} {n}?", "answer": f"so\n#### {n}"} for n in range(count)]

  parts = load_recipe("gsm8k", num_validation=8, read=read)
  check_sets(parts)
  assert (len(parts["train"]), len(parts["final"])) == (32, 350)
  assert all(text.startswith("test") for text in texts(parts["core500"]))
  number = parts["train"][0].text.split()[1].rstrip("?")
  assert parts["train"][0].columns == {"answer": number, "solution": f"so\n#### {number}"}


def test_math_answer_is_the_box_of_the_solution():
  def read(dataset, configuration, split):
    count = 2 if split == "train" else 73
    return [
      {
        "problem": f"{configuration} {split} {n}",
        "solution": rf"as $\boxed{{\frac{{{n}}}{{7}}}}$." if n else "no box",
        "level": "Level 3",
        "type": configuration,
      }
      for n in range(count)
    ]

  parts = load_recipe("math", num_validation=0, num_final=254, read=read)
  assert len(parts["train"]) == 7
  assert parts["train"][0].columns["answer"] == r"\frac{1}{7}"


def test_unknown_recipe_names_the_known_ones():
  with pytest.raises(ValueError, match="gsm8k, hh_helpful, math, ultrafeedback"):
    load_recipe("gsm9k")
