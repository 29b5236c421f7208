"""Links in folders of strangers stay inside, but for those of the hub's cache."""

import pytest

from tea_jax.models.weights import peft
from tea_jax.models.weights.huggingface import save_pretrained
from tea_jax.models.weights.load import load_policy
from tests.training import tiny


@pytest.mark.parametrize(
  "name", ["config.json", "model.safetensors", "tokenizer_config.json", "generation_config.json"]
)
def test_a_file_of_a_model_that_is_a_link_out_of_its_folder_is_refused(tmp_path, name):
  policy = tiny.policy()
  save_pretrained(tmp_path / "m", policy.config, policy.params, policy.tokenizer)
  (tmp_path / "m" / name).rename(tmp_path / "moved")
  (tmp_path / "m" / name).symlink_to(tmp_path / "moved")
  with pytest.raises(ValueError, match=rf"{name} is a link to .*moved"):
    load_policy(tmp_path / "m")


def test_a_snapshot_of_the_hub_is_read_through_its_links(tmp_path):
  policy = tiny.policy()
  snapshot = tmp_path / "models--o--n" / "snapshots" / "0"
  save_pretrained(snapshot, policy.config, policy.params, policy.tokenizer)
  (tmp_path / "models--o--n" / "blobs").mkdir()
  for file in list(snapshot.iterdir()):
    file.rename(tmp_path / "models--o--n" / "blobs" / file.name)
    file.symlink_to(f"../../blobs/{file.name}")
  assert load_policy(snapshot).config == policy.config


def test_an_adapter_that_is_a_link_out_of_its_folder_is_refused(tmp_path):
  for name in ("adapter_config.json", "adapter_model.safetensors"):
    (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "outside").write_text("{}")
    (tmp_path / "a" / name).symlink_to(tmp_path / "outside")
  with pytest.raises(ValueError, match="outside of its folder"):
    peft.load_adapters(tmp_path / "a", tiny.MODEL)
