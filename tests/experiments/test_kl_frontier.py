"""The frontier script end to end, at sizes that say little."""

from __future__ import annotations

import json

import pytest

from experiments import kl_frontier as script


@pytest.mark.slow
def test_run_writes_report_figures_and_numbers(tmp_path, capsys):
  pytest.importorskip("matplotlib")
  script.main(
    script.Flags(
      output=tmp_path, rules=("grpo",), worlds=("gaussian_policy",), steps=60, num_coefficients=6
    )
  )
  assert {path.name for path in tmp_path.iterdir()} == {
    "report.md",
    "results.json",
    "gaussian_policy.png",
  }
  stored = json.loads((tmp_path / "results.json").read_text())
  assert len(stored["worlds"]["gaussian_policy"]["rules"]["grpo"]["kl"]) == 6
  assert "| `grpo` |" in capsys.readouterr().out


def test_unknown_rule_is_refused(tmp_path):
  with pytest.raises(ValueError, match="unknown rule 'ppo'; known: grpo"):
    script.main(script.Flags(output=tmp_path, rules=("ppo",)))
