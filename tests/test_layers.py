"""The rooms of the house: imports point upwards only."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "tea_jax"
# A room may import the rooms before it, never those after it.
ROOMS = (
  "runtime",
  "tail",
  "strategies",
  "advantages",
  "scaling",
  "models",
  "rollout",
  "rewards",
  "data",
  "runs",
  "evaluation",
  "training",
  "studies",
  "integrations",
)


def imported_rooms(path: pathlib.Path) -> set[str]:
  rooms = set()
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.ImportFrom) and node.module:
      names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    for name in names:
      parts = name.split(".")
      if parts[0] == "tea_jax" and len(parts) > 1 and parts[1] in ROOMS:
        rooms.add(parts[1])
  return rooms


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_rooms_above_it(room):
  above = set(ROOMS[: ROOMS.index(room) + 1])
  for path in (PACKAGE / room).rglob("*.py"):
    below = imported_rooms(path) - above
    assert not below, f"{path.relative_to(PACKAGE)} imports {sorted(below)}, which lie below {room}"


def test_every_room_is_known():
  rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
  assert rooms <= set(ROOMS), f"new room: add {sorted(rooms - set(ROOMS))} to the order"


def test_no_module_lies_outside_a_room():
  assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py"}
