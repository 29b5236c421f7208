import numpy as np
import pytest

from experiments import judge as script
from tea_jax.evaluation.judgement import (
  answer_pairs,
  judge_pairs,
  judgement,
  selected_answers,
)
from tea_jax.evaluation.records import Records, Samples
from tea_jax.rewards.judge import Reply, judge_template

TEMPLATE = "{prompt}|{first}|{second}"


def records(completions, rewards):
  rewards = np.asarray(rewards, np.float64)
  return Records(
    prompts=[f"prompt {i}" for i in range(len(rewards))],
    prompt_ids=np.arange(len(rewards)),
    samples=Samples(completions, np.ones(rewards.shape, int), np.ones(rewards.shape, bool)),
    rewards=rewards,
    spec={},
  )


def pairs_of(qualities):
  """Pairs of a policy and a baseline whose answers say how good they are."""
  num_prompts = len(qualities)
  ours, theirs = (
    records([[f"{q[side]}"] for q in qualities], np.zeros((num_prompts, 1))) for side in (0, 1)
  )
  return answer_pairs(ours, theirs, budget=1)


def honest(messages):
  replies = []
  for message in messages:
    _, first, second = message.split("|")
    letter = "C" if first == second else "A" if float(first) > float(second) else "B"
    replies.append(Reply(f"[[{letter}]]"))
  return replies


def judged(judge, qualities, folder):
  return judgement(judge_pairs(judge, pairs_of(qualities), TEMPLATE, folder=folder, name="test"))


def test_planted_answers_give_the_planted_win_rate(tmp_path):
  result = judged(honest, [(2, 1), (3, 1), (1, 1), (0, 5), (4, 2)], tmp_path)
  assert (result.wins, result.ties, result.losses, result.inconsistent) == (3, 1, 1, 0)
  assert result.win_rate is not None
  assert result.win_rate.estimate == pytest.approx(3.5 / 5)
  assert result.win_rate.low < result.win_rate.estimate < result.win_rate.high
  assert result.first_share == 0.5
  assert not result.is_position_biased


def test_a_judge_that_always_says_first_is_reported_as_biased(tmp_path):
  result = judged(lambda messages: [Reply("[[A]]")] * len(messages), [(2, 1)] * 6, tmp_path)
  assert (result.wins, result.losses, result.inconsistent) == (0, 0, 6)
  assert result.win_rate is not None
  assert result.win_rate.estimate == 0.5
  assert result.first_share == 1.0
  assert result.is_position_biased
  text = script.report(result, "a", "b", judge="first", budget=4)
  assert "goes by the place" in text
  assert "100%" in text


def test_refused_and_unreadable_replies_leave_their_pair_out(tmp_path):
  def partly(messages):
    replies = honest(messages)
    replies[0] = Reply("no", refused=True)
    replies[3] = Reply("Both are fine")
    return replies

  result = judged(partly, [(2, 1), (2, 1), (2, 1), (0, 1)], tmp_path)
  assert (result.wins, result.losses, result.left_out) == (1, 1, 2)
  assert (result.refused, result.unreadable) == (1, 1)
  assert result.win_rate is not None
  assert result.win_rate.estimate == 0.5


def test_no_verdict_at_all_has_no_win_rate(tmp_path):
  result = judged(lambda messages: [Reply("hm")] * len(messages), [(2, 1)], tmp_path)
  assert result.win_rate is None
  assert result.first_share is None
  assert "No pair got two readable verdicts" in script.report(result, "a", "b", judge="x", budget=1)


def test_prompts_count_alike_however_many_pairs_they_have(tmp_path):
  ours = records([["9", "9"], ["0", "0"]], np.zeros((2, 2)))
  theirs = records([["1", "1"], ["1", "1"]], np.zeros((2, 2)))
  pairs = answer_pairs(ours, theirs, budget=1, pairs_per_prompt=2)
  pairs = pairs[:3]  # two of the first prompt, one of the second
  result = judgement(judge_pairs(honest, pairs, TEMPLATE, folder=tmp_path, name="test"))
  assert (result.wins, result.losses) == (2, 1)
  assert result.win_rate is not None
  assert result.win_rate.estimate == 0.5


def test_an_interrupted_judgement_goes_on_where_it_was(tmp_path):
  pairs = pairs_of([(i, 2) for i in range(7)])
  asked = []

  def failing(messages):
    if len(asked) == 2:
      raise RuntimeError("the server went away")
    asked.append(messages)
    return honest(messages)

  options = {"folder": tmp_path, "name": "test", "pairs_per_part": 2}
  with pytest.raises(RuntimeError):
    judge_pairs(failing, pairs, TEMPLATE, **options)
  later = []
  verdicts = judge_pairs(
    lambda messages: later.append(messages) or honest(messages), pairs, TEMPLATE, **options
  )
  assert [len(messages) for messages in later] == [4, 2]
  assert verdicts.num_rows == 14
  assert judgement(verdicts).wins == 4
  again = judge_pairs(lambda _: pytest.fail("asked again"), pairs, TEMPLATE, **options)
  assert again.equals(verdicts)
  with pytest.raises(ValueError, match="judge"):
    judge_pairs(honest, pairs, TEMPLATE, folder=tmp_path, name="another", pairs_per_part=2)


def test_the_best_of_each_group_is_selected_and_unscored_samples_are_not():
  nan = np.nan
  scored = records([list("abcdef")] * 2, [[1, 5, 2, 9, 0, 3], [nan, nan, 4, nan, 1, nan]])
  np.testing.assert_array_equal(selected_answers(scored, 2), [[1, 3, 5], [-1, 2, 4]])
  np.testing.assert_array_equal(selected_answers(scored, 6), [[3], [2]])
  with pytest.raises(ValueError, match="budget=7 must be between 1 and the 6"):
    selected_answers(scored, 7)
  pairs = answer_pairs(scored, scored, budget=2, pairs_per_prompt=2)
  assert [pair.answers for pair in pairs] == [("b", "b"), ("d", "d"), ("c", "c")]


def test_different_prompts_are_refused():
  with pytest.raises(ValueError, match="different prompts"):
    answer_pairs(records([["a"]], [[0]]), records([["a"]] * 2, [[0], [0]]), budget=1)


def test_the_packages_template_has_its_placeholders_once():
  template = judge_template()
  assert all(template.count(f"{{{name}}}") == 1 for name in ("prompt", "first", "second"))
