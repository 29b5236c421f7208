"""Scripts that are killed again and again, with damage in between, lose and change nothing."""

import os
import subprocess
import sys

import pytest

from tests.benchmarks import kills


@pytest.mark.slow
def test_killed_and_damaged_jobs_end_with_the_same_bytes_or_a_named_refusal(tmp_path):
  # In a process of its own: it forks, which one that has used JAX must not.
  code = (
    "import pathlib, sys; from tests.benchmarks.kills import campaign\n"
    "for what in campaign(pathlib.Path(sys.argv[1]), seed=int(sys.argv[2]), trials=3):\n"
    "  print('END', what)"
  )
  seed = os.environ.get("TEA_JAX_KILL_SEED", "0")
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path / "top"), seed], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  ends = {line for line in done.stdout.splitlines() if line.startswith("END")}
  known = {f"END {(name, end)}" for name in kills.JOBS for end in ("same bytes", "refused")}
  assert ends <= known | {"END kills", "END damaged files"}, done.stdout
