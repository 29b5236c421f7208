"""Prompts: what they are, and where they are read from.

A source is a data set of the Hugging Face hub, a JSONL, Parquet or text file, a Python function, or
the openers that come with the package. Rows become `Prompt`s; every column that is not the prompt
travels along to the reward.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tea_jax.data import tasks
from tea_jax.data.files import file_rows
from tea_jax.data.messages import Message, check_text, read_messages
from tea_jax.runtime.extras import extra
from tea_jax.runtime.user_code import load_object, user_errors

_PROMPT_COLUMNS = ("prompt", "messages", "question", "problem", "instruction", "text")
_REPEATS = 100_000  # in a row: what comes then repeats itself for ever
_ID_BITS = 31  # an id is folded into a PRNG key, so it must fit 32 bits

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt.

  Attributes:
    id: from a hash of the content, in [0, 2^31): keys are folded with it, so the rollouts of a
      prompt do not depend on its place in the data.
    text: the prompt as a string, for raw templates, rewards and logs.
    messages: the conversation, if there is one; its last turn is not the assistant's.
    columns: everything else in the row, e.g. the reference answer.
  """

  id: int
  text: str
  messages: tuple[Message, ...] | None = None
  columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def conversation(self) -> list[Message]:
    """The messages; a plain text is one user message."""
    return [dict(m) for m in self.messages or ({"role": "user", "content": self.text},)]


def load_prompts(
  source: str | os.PathLike[str] | Callable[[], Iterable[Any]] | Iterable[Any],
  *,
  prompt_column: str | None = None,
  split: str = "train",
  limit: int | None = None,
) -> list[Prompt]:
  """Reads prompts and drops repeated ones.

  Args:
    source: `"openers"`; a path ending in `.jsonl`, `.parquet` or `.txt` (a prompt a line); a task
      `reasoning_gym:name?option=value` (see `tasks`); a hub id `owner/name` or
      `owner/name:configuration`; `module:function` or `file.py:function`, or the function itself,
      which returns strings, rows (dicts) or `Prompt`s.
    prompt_column: column with the prompt, a string or a list of messages; by default the first of
      prompt, messages, question, problem, instruction, text that the row has.
    split: of a hub data set.
    limit: keep the first so many distinct prompts.

  Raises:
    ValueError: nothing there, an unreadable row (named by file and line), no prompt column.
  """
  named = source if isinstance(source, str | os.PathLike) else getattr(source, "__name__", None)
  name = "the data" if named is None else str(named)
  prompts = list(
    _limited(unique_prompts(make_prompts(_rows(source, split), prompt_column, name)), limit)
  )
  if not prompts:
    raise ValueError(f"{name} holds no prompts")
  return prompts


def make_prompts(
  rows: Iterable[Any], prompt_column: str | None = None, name: str = "data"
) -> Iterator[Prompt]:
  """Turns rows (strings, dicts or prompts) into prompts; `name` is for error messages."""
  for number, row in enumerate(rows):
    where = f"row {number} of {name}"
    if isinstance(row, Prompt):
      yield row
    elif isinstance(row, str):
      yield make_prompt(row, where=where)
    elif isinstance(row, Mapping):
      column = prompt_column or next((c for c in _PROMPT_COLUMNS if c in row), None)
      if column is None or column not in row:
        raise ValueError(
          f"{where} has no prompt: its columns are {sorted(map(str, row))}; name the right one by "
          f"--data.column (prompt_column){'' if column is None else f' instead of {column}'}"
        )
      others = {str(key): value for key, value in row.items() if key != column}
      yield make_prompt(row[column], others, where=where)
    else:
      raise ValueError(f"{where} is a {type(row).__name__}; it must be a string or a dict")


def make_prompt(
  content: str | Iterable[Message],
  columns: Mapping[str, Any] | None = None,
  *,
  where: str = "prompt",
) -> Prompt:
  """A prompt from a text or a conversation.

  Raises:
    ValueError: empty, not text, or a conversation that ends with the assistant's turn.
  """
  if isinstance(content, str):
    if not content.strip():
      raise ValueError(f"{where} is empty")
    check_text(content, where)
    return Prompt(_content_id(content), content, None, dict(columns or {}))
  messages = read_messages(content, where)
  if not messages:
    raise ValueError(f"{where} is a conversation without messages")
  if not any(message["content"].strip() for message in messages):
    raise ValueError(f"{where} is a conversation without a word")
  if messages[-1]["role"] == "assistant":
    raise ValueError(
      f"{where} ends with the assistant's turn; a prompt must leave that turn to the policy"
    )
  if len(messages) == 1:
    text = messages[0]["content"]
  else:
    text = "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)
  identity = json.dumps([[m["role"], m["content"]] for m in messages])
  return Prompt(_content_id(identity), text, messages, dict(columns or {}))


def unique_prompts(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
  """Drops prompts whose text differs only by case or white space from an earlier one's.

  Two different prompts with the same id (the odds are n^2 / 2^32) get different ones.
  """
  seen: set[bytes] = set()
  ids: set[int] = set()
  dropped = in_a_row = 0
  for prompt in prompts:
    digest = content_digest(prompt)
    if digest in seen:
      dropped, in_a_row = dropped + 1, in_a_row + 1
      if in_a_row == _REPEATS:
        logger.warning("stopped after %d repeated prompts in a row", _REPEATS)
        break
      continue
    seen.add(digest)
    in_a_row = 0
    identifier = prompt.id
    while identifier in ids:
      identifier = (identifier + 1) % (1 << _ID_BITS)
    ids.add(identifier)
    yield prompt if identifier == prompt.id else dataclasses.replace(prompt, id=identifier)
  if dropped:
    logger.info("dropped %d repeated prompts, kept %d", dropped, len(seen))


def content_digest(prompt: Prompt, salt: str = "") -> bytes:
  """Hash of what a prompt says, blind to case and white space; decides duplicates and splits."""
  normalized = " ".join(prompt.text.lower().split())
  return hashlib.blake2b(f"{salt}\x00{normalized}".encode(), digest_size=16).digest()


def _content_id(content: str) -> int:
  digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big") % (1 << _ID_BITS)


def _limited(prompts: Iterator[Prompt], limit: int | None) -> Iterator[Prompt]:
  if limit is not None and limit < 1:
    raise ValueError(f"limit={limit} must be at least 1")
  for count, prompt in enumerate(prompts, start=1):
    yield prompt
    if count == limit:
      return


def _rows(source: Any, split: str) -> Iterable[Any]:
  if callable(source):
    return _called(source, getattr(source, "__name__", "the function"))
  if not isinstance(source, str | os.PathLike):
    return _table_rows(source, "the data")
  path = os.fspath(source)
  if path == "openers":
    return read_openers()
  if path.startswith(tasks.PREFIX):
    return tasks.read_task(path)
  found = file_rows(path)
  if found is not None:
    return found
  head, _, tail = path.rpartition(":")
  if tail and (head.endswith(".py") or (head and "/" not in head)):
    return _called(load_object(path), path)
  local = path.startswith((".", "~", "/")) or os.path.isdir(path.partition("/")[0])
  if not os.path.isdir(path) and (path.count("/") != 1 or local):
    raise ValueError(
      f"there is no file or folder {path}, and it is no hub id (owner/name) or module:function"
    )
  return read_hub(head or path, tail if head else None, split)


def _called(function: Any, name: str) -> Iterator[Any]:
  with user_errors(f"the prompts of {name} failed"):
    rows = function()
  items = iter(_table_rows(rows, name))
  while True:
    with user_errors(f"the prompts of {name} failed"):
      try:
        row = next(items)
      except StopIteration:
        return
    yield row


def _table_rows(rows: Any, name: str) -> Iterable[Any]:
  """The rows of a sequence, a data set, or a DataFrame (whose own iteration gives columns)."""
  if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
    records = rows.to_dict("records")
    return [{key: None if _is_nan(v) else v for key, v in row.items()} for row in records]
  if not isinstance(rows, Iterable) or isinstance(rows, (str, bytes, Mapping)):
    raise ValueError(f"{name} returned {type(rows).__name__}; it must return a sequence of prompts")
  return rows


def _is_nan(value: Any) -> bool:
  return isinstance(value, float) and value != value


def column_names(prompts: Iterable[Prompt]) -> list[str]:
  """Columns that any of the prompts has, `messages` among them if there are conversations."""
  prompts = list(prompts)
  names = list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))
  conversations = any(prompt.messages for prompt in prompts) and "messages" not in names
  return [*names, *(["messages"] if conversations else [])]


def columns_digest(prompts: Iterable[Prompt]) -> str:
  """A digest of everything in the rows beside the prompts, which rewards may see."""
  digest = hashlib.blake2b(digest_size=8)
  for prompt in prompts:
    content = (dict(prompt.columns), prompt.messages)
    text = json.dumps(content, sort_keys=True, default=repr)
    digest.update(text.encode("utf-8", "surrogatepass") + b"\x00")
  return digest.hexdigest()


def reward_inputs(
  prompts: Sequence[Prompt], num_rollouts: int, *, columns: Sequence[str] | None = None
) -> tuple[list[str], dict[str, list[Any]]]:
  """Texts and columns of rewards: each prompt's, repeated for its adjacent rollouts.

  A column that some prompts lack is None there; conversations are in the column `messages`.

  Args:
    prompts: of the call.
    num_rollouts: m.
    columns: `column_names` of the whole data, so that a reward meets the same ones in every call;
      by default those of these prompts.

  Returns:
    `[P m]` texts, and by name `[P m]` columns.
  """
  names = column_names(prompts) if columns is None else columns
  values = {name: [prompt.columns.get(name) for prompt in prompts] for name in names}
  if any(prompt.messages for prompt in prompts) and "messages" in values:
    if any("messages" in prompt.columns for prompt in prompts):
      raise ValueError(
        "the data have a column 'messages' beside prompts that are conversations, which rewards "
        "get under that name; rename the column"
      )
    values["messages"] = [prompt.conversation for prompt in prompts]

  def repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value in values for _ in range(num_rollouts)]

  return repeated(prompt.text for prompt in prompts), {
    name: repeated(column) for name, column in values.items()
  }


def read_openers() -> list[str]:
  """The short openers of stories, reviews, diaries and e-mails that come with the package."""
  text = importlib.resources.files("tea_jax.data").joinpath("openers.txt").read_text("utf-8")
  return text.splitlines()


def read_hub(name: str, configuration: str | None, split: str, **options: Any) -> Iterable[Any]:
  """Rows of a data set of the Hugging Face hub (or of a local folder in its format)."""
  with extra("data", f"reading '{name}' from the hub"):
    import datasets
  try:
    return datasets.load_dataset(name, configuration, split=split, **options)  # pyright: ignore
  except Exception as error:
    raise ValueError(
      f"cannot load split '{split}' of '{name}'"
      f"{f' ({configuration})' if configuration else ''}: {type(error).__name__}: {error}"
    ) from error
