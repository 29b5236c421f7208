"""Publishes a run's policy: `python -m experiments.publish RUN_FOLDER --repo owner/name`.

Writes the model card (README.md) into the run's `policy/`, with the results of an evaluation, and
uploads the folder to the Hugging Face hub. Without `--repo` it only writes the card.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import tyro

from experiments import command
from tea_jax.runs.card import write_model_card
from tea_jax.runs.config import load_config
from tea_jax.runtime.files import check_links, read_json


@dataclasses.dataclass(frozen=True)
class Flags:
  """What is published.

  Attributes:
    run: run folder with a finished policy.
    repo: of the hub, owner/name; none: only the card is written.
    evaluation: folder of experiments.evaluate or experiments.compare, whose table the card gets.
    private: make the repository private, if it is new.
  """

  run: tyro.conf.Positional[str]
  repo: str | None = None
  evaluation: str | None = None
  private: bool = False


def main(arguments: list[str] | None = None) -> int:
  return command.run(lambda: work(sys.argv[1:] if arguments is None else arguments))


def work(arguments: list[str]) -> None:
  flags = tyro.cli(Flags, args=arguments, description=__doc__)
  policy = pathlib.Path(flags.run) / "policy"
  if not (policy / "config.json").is_file():
    raise ValueError(f"{flags.run} holds no finished policy; let its run end first")
  check_links(policy, everything=True)  # what they lead to would be uploaded
  results = None
  if flags.evaluation is not None:
    results = read_json(pathlib.Path(flags.evaluation) / "results.json")
  config = load_config(pathlib.Path(flags.run) / "config.yaml")
  write_model_card(policy, config, results=results)
  print(policy / "README.md")
  if flags.repo is not None:
    from huggingface_hub import HfApi

    hub = HfApi()
    hub.create_repo(flags.repo, private=flags.private, exist_ok=True)
    commit = hub.upload_folder(repo_id=flags.repo, folder_path=policy)
    print(commit.commit_url)


if __name__ == "__main__":
  sys.exit(main())
