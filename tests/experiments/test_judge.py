"""The judge's script on stored records, against an endpoint that knows the better answer."""

import re

import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

import numpy as np

from experiments import judge
from tea_jax.data import load_prompts
from tea_jax.evaluation.evaluate import evaluate_policy
from tea_jax.evaluation.records import Samples
from tests.rewards.chat_endpoint import chat_endpoint

NUM_PROMPTS, NUM_SAMPLES = 5, 4


def digits_reward(prompts, completions, **_):
  return [float(completion.split()[-1]) for completion in completions]


def write_records(folder, qualities):
  """Records whose best of four by reward is `quality`, one a prompt."""
  prompts = load_prompts(lambda: [f"question {i}" for i in range(NUM_PROMPTS)])

  def sampler(indices):
    texts = [[f"worth {qualities[i] - k}" for k in (2, 0, 3, 1)] for i in indices]
    shape = (len(indices), NUM_SAMPLES)
    return Samples(texts, np.ones(shape, int), np.ones(shape, bool))

  evaluate_policy(sampler, prompts, digits_reward, folder=folder, num_samples=NUM_SAMPLES)


def knows_better(message):
  first, second = map(float, re.findall(r"^worth (.*)$", message, re.MULTILINE))
  return f"[[{'C' if first == second else 'A' if first > second else 'B'}]]"


def test_the_report_tells_the_planted_win_rate(tmp_path, capsys):
  write_records(tmp_path / "ours", [9, 9, 5, 9, 1])
  write_records(tmp_path / "theirs", [5, 5, 5, 5, 5])
  words = [str(tmp_path / "ours"), str(tmp_path / "theirs"), "--output", str(tmp_path / "judged")]
  with chat_endpoint(knows_better) as server:
    flags = ["--url", server.url, "--model", "oracle", "--budget", "4"]
    assert judge.main([*words, *flags]) == 0
    assert len(server.requests) == 2 * NUM_PROMPTS
    assert judge.main([*words, *flags]) == 0  # everything is stored
    assert len(server.requests) == 2 * NUM_PROMPTS
  text = (tmp_path / "judged" / "judge.md").read_text()
  assert "Win rate +0.700" in text
  assert "| 5 | 3 | 1 | 1 | 0 | 0 | 50% |" in text
  assert text in capsys.readouterr().out


def test_missing_folders_are_one_line(capsys):
  assert judge.main(["--output", "nowhere"]) == 2
  assert "name two folders of records" in capsys.readouterr().err
