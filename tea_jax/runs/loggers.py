"""Where a run's numbers go beside its own files: TensorBoard, Weights & Biases, trackio.

  --logging.to tensorboard wandb --logging.project best-of-n

Names and steps are those of metrics.jsonl and timings.jsonl. A run that goes on after a kill
repeats the steps since its checkpoint; Weights & Biases keeps what it was told first, which is
the same.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tea_jax.runs.groups import LoggerName
from tea_jax.runtime.extras import extra

with extra("train", "a run's log"):
  import yaml


class Logger(Protocol):
  """What a run calls: `log` once a step, `close` at the end."""

  def log(self, step: int, values: Mapping[str, float]) -> None: ...

  def close(self) -> None: ...


def make_loggers(
  names: Sequence[LoggerName],
  folder: str | pathlib.Path,
  *,
  project: str = "tea_jax",
  first_step: int = 0,
) -> list[Logger]:
  """Opens the loggers of a run.

  Args:
    names: of the loggers.
    folder: of the run; its last part is the run's name, its config.yaml the run's config.
    project: of Weights & Biases and trackio.
    first_step: that will be logged; TensorBoard drops what it has from there on.

  Raises:
    ModuleNotFoundError: naming the package that is missing.
    ValueError: for an unknown name.
  """
  folder = pathlib.Path(folder)
  makers = {
    "tensorboard": lambda: TensorBoard(folder, first_step=first_step),
    "wandb": lambda: WeightsAndBiases(folder, project=project),
    "trackio": lambda: Trackio(folder, project=project),
  }
  for name in names:
    if name not in makers:
      raise ValueError(f"unknown logger {name!r}; there are {', '.join(makers)}")
  return [makers[name]() for name in dict.fromkeys(names)]


class TensorBoard:
  """Event files in the run folder's `tensorboard/`."""

  def __init__(self, folder: pathlib.Path, *, first_step: int = 0):
    with extra("logging", "--logging.to tensorboard"):
      from tensorboardX import SummaryWriter
    # A run that is killed goes on after its last checkpoint: the writer's thread, which its
    # flush() does not wait for, puts every step on disk within a second.
    self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step, flush_secs=1)

  def log(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    self._writer.close()


class WeightsAndBiases:
  """A run of Weights & Biases; a folder goes on with its run. WANDB_MODE=offline keeps it here."""

  def __init__(self, folder: pathlib.Path, *, project: str):
    with extra("wandb", "--logging.to wandb"):
      import wandb
    self._run = wandb.init(
      project=project,
      name=folder.name,
      id=_run_id(folder),
      dir=str(folder),
      config=_config(folder),
      resume="allow",
    )

  def log(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


class Trackio:
  """A run of trackio, which keeps its projects on this machine; `trackio show` opens them."""

  def __init__(self, folder: pathlib.Path, *, project: str):
    with extra("trackio", "--logging.to trackio"):
      import trackio
    self._run = trackio.init(
      project=project,
      name=f"{folder.name}-{_run_id(folder)}",
      config=_config(folder),
      resume="allow",
      embed=False,
    )

  def log(self, step: int, values: Mapping[str, float]) -> None:
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    self._run.finish()


def _run_id(folder: pathlib.Path) -> str:
  return hashlib.blake2b(str(folder.absolute()).encode(), digest_size=6).hexdigest()


def _config(folder: pathlib.Path) -> dict[str, Any]:
  file = folder / "config.yaml"
  return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
