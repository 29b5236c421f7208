"""The example of Tunix on a tiny model, as its command runs it."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("tunix")
pytest.importorskip("vader")

import jax.numpy as jnp

from experiments.integrations import tunix_openers
from experiments.integrations.openers import Flags
from experiments.integrations.tunix_llama import load_llama, save_llama
from tea_jax.models.weights.load import load_policy
from tests.integrations.tiny_folder import distance, evaluate, tiny_base

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_base(tmp_path_factory.mktemp("base"))


def test_tunix_computes_the_logits_of_the_folder(base):
  tokens = np.random.default_rng(0).integers(2, 28, (2, 24))
  positions = jnp.broadcast_to(jnp.arange(24), (2, 24))
  causal = jnp.broadcast_to(jnp.tri(24, dtype=bool), (2, 24, 24))
  theirs, _ = load_llama(base)(jnp.asarray(tokens), positions, None, causal)
  policy = load_policy(base)
  ours = policy.logits(policy.params, policy.hidden_states(policy.params, jnp.asarray(tokens)))
  np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)


def test_a_saved_folder_holds_the_weights_that_were_loaded(base, tmp_path):
  save_llama(load_llama(base), base, str(tmp_path / "again"))
  assert distance(tmp_path / "again", base) == 0


@pytest.fixture
def flags(base, tmp_path, monkeypatch):
  monkeypatch.setattr(tunix_openers, "training_prompts", lambda: ["once upon", "a ship", "go"])
  return Flags(
    output=str(tmp_path / "trained"),
    model=base,
    steps=3,
    num_rollouts=8,
    max_completion_length=8,
    learning_rate=1e-3,
  )


@pytest.mark.parametrize("rule", ["tea:tail_fraction=0.5", "own"])
def test_the_example_trains_and_its_folder_is_evaluated(rule, flags, tmp_path):
  flags = dataclasses.replace(flags, rule=rule)
  tunix_openers.main(flags)
  assert distance(flags.output, flags.base) > 1e-4
  assert "trained" in evaluate(flags.output, flags.base, tmp_path / "evaluation")


def test_steps_draw_other_completions_of_the_same_prompt(flags, monkeypatch):
  drawn = []

  def constant(prompts, completions):
    drawn.append((tuple(prompts), tuple(completions)))
    return [0.0] * len(prompts)

  monkeypatch.setattr(tunix_openers, "training_prompts", lambda: ["once upon"])
  monkeypatch.setattr(tunix_openers, "reward", lambda: constant)
  tunix_openers.main(dataclasses.replace(flags, kl_coefficient=0.0))
  assert len(set(drawn)) == len(drawn) == 3
