"""Files appear whole or not at all."""

import pytest

from tea_jax.runtime.files import check_links, write_text, write_whole


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


def test_links_may_not_leave_a_model_folder(tmp_path):
  model, outside = tmp_path / "model", tmp_path / "secret.json"
  model.mkdir()
  outside.write_text("{}")
  (model / "real.json").write_text("{}")
  (model / "inner.json").symlink_to("real.json")
  (model / "logs").symlink_to(tmp_path)  # is not read
  check_links(model)
  (tmp_path / "alias").symlink_to(model)
  check_links(tmp_path / "alias")
  for target in (outside, "../secret.json", "../gone.json", "loop.json"):
    (model / "loop.json").unlink(missing_ok=True)
    (model / "loop.json").symlink_to(target)
    if target == "loop.json":
      check_links(model)  # leads nowhere
      continue
    with pytest.raises(ValueError, match=r"loop\.json is a link to .*outside of its folder"):
      check_links(model)
  (model / "loop.json").unlink()
  (model / "additional_chat_templates").symlink_to(tmp_path)
  with pytest.raises(ValueError, match="additional_chat_templates"):
    check_links(model)
  (model / "additional_chat_templates").unlink()
  with pytest.raises(ValueError, match="logs"):
    check_links(model, everything=True)


def test_links_of_the_hub_cache_are_followed_and_no_others(tmp_path):
  snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
  blobs = tmp_path / "models--owner--name" / "blobs"
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  (blobs / "abc").write_text("{}")
  (snapshot / "config.json").symlink_to("../../blobs/abc")
  check_links(snapshot)
  (tmp_path / "elsewhere").write_text("{}")
  (snapshot / "tokenizer.json").symlink_to("../../blobs/def")
  (blobs / "def").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(ValueError, match="elsewhere"):
    check_links(snapshot)
