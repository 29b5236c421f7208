import pytest

from tea_jax.data import load_prompts, split_by_hash
from tea_jax.data.tasks import parse_task
from tea_jax.rewards import call_reward, make_reward

pytest.importorskip("reasoning_gym")
SUMS = "reasoning_gym:chain_sum?min_terms=2&max_terms=3&min_digits=1&max_digits=2&size=60&seed=3"


def test_options_are_read_as_json():
  name, options = parse_task("reasoning_gym:chain_sum?min_terms=2&allow=true&base=abc")
  assert name == "chain_sum"
  assert options == {"min_terms": 2, "allow": True, "base": "abc"}


def test_a_task_gives_the_same_prompts_for_a_seed_and_disjoint_splits():
  prompts = load_prompts(SUMS)
  assert [p.text for p in prompts] == [p.text for p in load_prompts(SUMS)]
  assert [p.text for p in prompts] != [p.text for p in load_prompts(SUMS.replace("=3", "=4"))]
  splits = split_by_hash(prompts, {"test": 10, "validation": 5})
  texts = [p.text for part in splits.values() for p in part]
  assert len(set(texts)) == len(texts) == len(prompts)


def test_the_tasks_own_verifier_scores_boxed_and_plain_answers():
  prompt = load_prompts(SUMS)[0]
  answer = str(prompt.columns["answer"])
  texts = [f" {answer}", f"so \\boxed{{{answer}}}.", f"\\boxed{{{int(answer) + 1}}}", "", "no"]
  columns = {name: [value] * len(texts) for name, value in prompt.columns.items()}
  scores = call_reward(make_reward("reasoning_gym"), [prompt.text] * 5, texts, columns)
  assert scores.tolist() == [1, 1, 0, 0, 0]
  read = make_reward("reasoning_gym", answer_pattern=r"= *(-?\d+)")
  scored = call_reward(
    read, [prompt.text], [f"1 = 2 = {answer}"], {k: v[:1] for k, v in columns.items()}
  )
  assert scored.tolist() == [1]


@pytest.mark.parametrize(
  "source, message",
  [
    ("reasoning_gym:chain_sun", "unknown task 'chain_sun'; there are chain_sum"),
    ("reasoning_gym:chain_sum?terms=3", r"refuses the options .*terms"),
    ("reasoning_gym:", "names no task"),
    ("reasoning_gym:chain_sum?size=0", "size=0"),
    ("reasoning_gym:chain_sum?size", "not option=value"),
  ],
)
def test_a_mistake_in_the_name_is_one_sentence(source, message):
  with pytest.raises(ValueError, match=message):
    load_prompts(source)


def test_the_reward_says_which_prompts_it_needs():
  with pytest.raises(ValueError, match="needs the columns task, answer and metadata"):
    call_reward(make_reward("reasoning_gym"), ["1 + 1"], ["2"])
