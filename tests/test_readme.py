"""The README and the rooms' pages: tables, examples, commands, flags and links hold."""

import dataclasses
import importlib
import importlib.util
import inspect
import pathlib
import re
import shlex
import sys

import jax
import numpy as np
import pytest
import tyro

import tea_jax
from experiments.result_tables import TABLES
from experiments.tables import ROOT, names_in, pages, regenerated
from tea_jax.advantages import registry
from tea_jax.models.sequence_classifier import SequenceClassifier, abstract_classifier_params
from tea_jax.models.weights import load
from tea_jax.runs.config import RunConfig, save_config
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.studies.search_config import SearchConfig
from tests.training import tiny

PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in pages()}
README = PAGES["README.md"]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.M | re.S)
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
USERS_FILE = """
import jax.numpy as jnp

def my_reward(prompts, completions):
  return [float(len(text)) for text in completions]

short_and_polite = my_reward

def my_prompts():
  return [{"prompt": f"w{i} w{i + 1}"} for i in range(12)]

def my_rule(*, margin: float = 0.0):
  return lambda rewards: jnp.sign(rewards - rewards.mean(-1, keepdims=True) - margin)
"""


def blocks(text, *languages):
  """Fenced blocks of those languages, without the indentation of a list."""
  return [
    "\n".join(line.removeprefix(indent) for line in code.splitlines()) + "\n"
    for indent, language, code in BLOCK.findall(text)
    if language in languages
  ]


def commands(prefix):
  """Commands in the pages that begin with `prefix`."""
  lines = [
    part.strip()
    for text in PAGES.values()
    for code in blocks(text, "", "bash")
    for line in code.splitlines()
    for part in line.split("  #")[0].split("&&")
  ]
  return list(dict.fromkeys(line for line in lines if line.startswith(prefix)))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
  """A user's folder: a tiny model under every name, files of their own, a run's config."""
  folder = tmp_path_factory.mktemp("workplace")
  config = dataclasses.replace(tiny.MODEL, max_positions=1024)
  policy = dataclasses.replace(tiny.policy(), config=config)
  policy.tokenizer.chat_template = TEMPLATE
  policy.save_pretrained(folder / "path/to/folder")
  shapes = abstract_classifier_params(config)
  params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)
  model = SequenceClassifier(config=config, params=params, tokenizer=policy.tokenizer)
  model.save_pretrained(folder / "path/to/reward_model")
  for name in ("my_file.py", "my_module.py"):
    (folder / name).write_text(USERS_FILE)
  (folder / "prompts.jsonl").write_text('{"prompt": "w1 w2"}\n')
  save_config(RunConfig(), folder / "runs/mine/config.yaml")
  return folder


@pytest.fixture
def at_work(workplace, monkeypatch):
  """The current folder is the user's; every unknown model is the tiny one; rules are put back."""

  def resolve(name):
    local = pathlib.Path(name)
    return local if local.is_dir() else workplace / "path/to/folder"

  monkeypatch.chdir(workplace)
  monkeypatch.syspath_prepend(str(workplace))
  monkeypatch.setattr(load, "resolve", resolve)
  monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
  yield
  sys.modules.pop("my_module", None)


def test_readme_is_a_door_of_ten_kilobytes_with_both_commands():
  assert len(README.encode()) <= 10_000
  assert 'pip install -e ".[test]" && pytest' in README
  assert "python -m experiments.compute_aligned --preset cat-protein" in README


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_what_the_stored_results_give(page):
  assert regenerated(PAGES[page]) == PAGES[page], "run python -m experiments.tables"


def test_every_table_stands_in_a_page():
  assert {name for text in PAGES.values() for name in names_in(text)} == set(TABLES)


def pages_with_examples():
  """Those that sample or train are slow."""
  for page, text in PAGES.items():
    code = "".join(blocks(text, "python"))
    if code:
      yield pytest.param(
        page, marks=[pytest.mark.slow] if re.search(r" train\(|\.generate\(", code) else []
      )


@pytest.mark.parametrize("page", list(pages_with_examples()))
def test_examples_of_a_page_run(page, at_work):
  names: dict = {}
  for code in blocks(PAGES[page], "python"):
    exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("command", commands("python -m experiments."))
def test_scripts_accept_their_commands(command, at_work):
  name, *arguments = shlex.split(command)[2:]
  script = importlib.import_module(name)
  if hasattr(script, "parse"):
    script.parse(arguments)
  else:
    tyro.cli(script.Flags, args=arguments)


@pytest.mark.parametrize("command", commands("python -m tests."))
def test_benchmarks_know_their_flags(command):
  name, *arguments = shlex.split(command)[2:]
  found = importlib.util.find_spec(name)
  assert found is not None
  assert found.origin is not None
  source = pathlib.Path(found.origin).read_text()
  for flag in (word for word in arguments if word.startswith("--")):
    assert f'"{flag}"' in source, flag


def flags_of(kind, prefix="--"):
  """Flags of a config, as tyro names them."""
  found = set()
  for field in dataclasses.fields(kind):
    name = field.name.replace("_", "-")
    found |= {f"{prefix}{name}", f"{prefix}no-{name}"}
    if dataclasses.is_dataclass(field.default_factory):
      found |= {f"{prefix}{name}.*", *flags_of(field.default_factory, f"{prefix}{name}.")}
  return found


@pytest.mark.parametrize("page", PAGES)
def test_flags_that_are_named_exist(page):
  text = BLOCK.sub("", PAGES[page]).split("## Changes")[0]
  scripts = [importlib.import_module(f"experiments.{path.stem}") for path in script_files()]
  kinds = [
    RunConfig,
    SearchConfig,
    SupervisedConfig,
    *(script.Flags for script in scripts if hasattr(script, "Flags")),
  ]
  known = set().union(*map(flags_of, kinds)) | {"--preset", "--config", "--dry-run", "--help"}
  rules = map(registry.advantage_factory, tea_jax.available_advantages())
  known |= {f"--advantage.{name}" for rule in rules for name in inspect.signature(rule).parameters}
  known |= {
    "--advantage.name",
    "--advantage.scale",
    "--advantage.margin",
    "--check",
    "--rules",
    "--seeds",
    "--no-deps",
  }
  for code in re.findall(r"`([^`\n]+)`", text):
    for flag in re.findall(r"(?<!\S)--[a-z][\w.*-]*", code):
      assert flag in known, flag


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_and_sections_exist(page):
  folder = (ROOT / page).parent
  for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", PAGES[page])):
    if link.startswith("http"):
      continue
    name, _, section = link.partition("#")
    target = folder / name if name else ROOT / page
    assert target.exists(), link
    if section:
      headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
      slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
      assert section in slugs, link


def script_files():
  paths = (ROOT / "experiments").glob("*.py")
  return sorted(path for path in paths if '__name__ == "__main__"' in path.read_text())


@pytest.mark.parametrize("page", ["README.md", "experiments/README.md"])
def test_every_script_is_in_the_table(page):
  for path in script_files():
    assert f"| `{path.stem}` |" in PAGES[page], path.stem


@pytest.mark.parametrize("page", ["README.md", "tea_jax/advantages/README.md"])
def test_every_rule_of_the_table_exists(page):
  table = PAGES[page].split("| rule |")[1].split("\n\n")[0]
  first = [row.split("|")[1] for row in table.splitlines()[2:]]
  names = re.findall(r"`(\w+)`", " ".join(first))
  assert len(names) > 10
  for name in names:
    assert name in tea_jax.available_advantages(), name


def test_every_room_is_in_the_readme():
  for room in (path.parent.name for path in (ROOT / "tea_jax").glob("*/__init__.py")):
    assert f"`{room}`" in README, room
