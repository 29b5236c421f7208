"""`experiments.evaluate` on a completions server and on reward files, without a model."""

import json

import numpy as np
import pytest

from experiments import evaluate
from tests.scaling.servers import completions_server

pytest.importorskip("httpx")
pytest.importorskip("tenacity")


def test_a_server_is_evaluated_like_a_policy_and_goes_on_after_it_died(tmp_path, capsys):
  arguments = ["--output", str(tmp_path), "--data.prompts", "openers", "--data.no-chat"]
  arguments += ["--data.num-test", "4", "--data.num-validation", "4", "--no-figures"]
  arguments += ["--evaluation.num-prompts", "3", "--evaluation.num-samples", "16"]
  arguments += ["--sampling.max-completion-length", "6", "--reward.functions", "lexicon"]
  with completions_server() as server:
    server.script.extend(["answer"] * 3 + [400])
    assert evaluate.main([f"served={server.url}", *arguments]) != 0
    assert "status 400" in capsys.readouterr().err
    assert evaluate.main([f"served={server.url}", *arguments]) == 0
    made = len(server.requests)
    assert evaluate.main([f"served={server.url}", *arguments]) == 0
    assert len(server.requests) == made
  report = (tmp_path / "report.md").read_text()
  assert "served" in report
  assert json.loads((tmp_path / "results.json").read_text())


def test_two_reward_files_are_compared_without_a_model(tmp_path):
  rng = np.random.default_rng(0)
  for name, shift in (("base", 0.0), ("tuned", 2.0)):
    rows = [{"prompt": f"p{i}", "reward": shift + rng.normal()} for i in range(6) for _ in range(8)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"{name}.jsonl").write_text(text)
  files = [f"{name}={tmp_path}/{name}.jsonl" for name in ("base", "tuned")]
  assert evaluate.main([*files, "--output", str(tmp_path / "out"), "--no-figures"]) == 0
  text = (tmp_path / "out" / "report.md").read_text()
  assert "## Paired difference to base" in text
