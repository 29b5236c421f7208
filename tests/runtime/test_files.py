"""Files appear whole or not at all."""

import pytest

from tea_jax.runtime.files import write_text, write_whole


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / "report.md"
  write_text(path, "before")

  def fail(temporary):
    temporary.write_text("half of")
    raise OSError("No space left on device")

  with pytest.raises(OSError, match="No space"):
    write_whole(path, fail)
  assert path.read_text() == "before"
  assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf8(tmp_path):
  write_text(tmp_path / "é.md", "größer")
  assert (tmp_path / "é.md").read_bytes() == "größer".encode()
