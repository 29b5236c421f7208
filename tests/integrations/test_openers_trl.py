"""The example of TRL on a tiny model, as its command runs it."""

import json

import pytest

pytest.importorskip("trl")
pytest.importorskip("vader")

from experiments.integrations import trl_openers
from experiments.integrations.openers import Flags
from tests.integrations.tiny_folder import distance, evaluate, tiny_base


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", ["tea:tail_fraction=0.5", "own"])
def test_the_example_trains_and_its_folder_is_evaluated(rule, tmp_path):
  base = tiny_base(tmp_path / "base")
  flags = Flags(
    output=str(tmp_path / "trained"),
    rule=rule,
    model=base,
    steps=3,
    num_rollouts=8,
    max_completion_length=8,
    learning_rate=1e-3,
  )
  trl_openers.main(flags)
  assert distance(flags.output, base) > 1e-4
  log = json.loads((tmp_path / "trained" / "trainer_state.json").read_text())["log_history"]
  assert sum("kl" in entry for entry in log) == 3
  assert any("advantage/std" in entry for entry in log) == (rule != "own")
  assert "trained" in evaluate(flags.output, base, tmp_path / "evaluation")
