import dataclasses
import inspect

import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from tea_jax.advantages import (
  AdvantageConfig,
  AdvantageFlags,
  GroupRule,
  TeaConfig,
  available_advantages,
  make_advantage,
  register_advantage,
)
from tea_jax.advantages import registry as registry_module

CONFIGS = {config.name: config for config in AdvantageConfig.__args__}


@pytest.fixture
def scratch_registry(monkeypatch):
  monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))


def test_unknown_name_lists_what_exists():
  with pytest.raises(ValueError, match=r"unknown advantage rule 'teaa'; available: .*grpo.*tea"):
    make_advantage("teaa")


def test_unknown_argument_lists_what_exists():
  with pytest.raises(ValueError, match=r"'grpo' has no argument 'buget'; it has: normalize, ddof"):
    make_advantage("grpo", buget=3)
  with pytest.raises(ValueError, match="it has: none"):
    make_advantage("rloo", k=3)


def test_available_names_are_sorted_and_complete():
  names = available_advantages()
  assert list(names) == sorted(names)
  assert set(CONFIGS) <= set(names)


def test_a_users_function_becomes_a_rule(scratch_registry):
  @register_advantage("signed")
  def signed(*, margin: float = 0.0):
    return lambda rewards: jnp.sign(rewards - margin)

  rule = make_advantage("signed", margin=1.0)
  assert isinstance(rule, GroupRule)
  assert repr(rule) == "signed(margin=1.0)"
  rewards = np.array([0.0, 2.0, np.nan], np.float32)
  np.testing.assert_array_equal(rule(rewards, where=np.array([True, True, False])), [-1, 1, 0])


def test_a_users_function_gets_the_inputs_that_it_names(scratch_registry):
  @register_advantage("entropic")
  def entropic():
    return lambda rewards, *, logprobs, answers=None, where=None: (
      rewards * logprobs + (0 if answers is None else answers)
    )

  rule = make_advantage("entropic")
  rewards, logprobs = np.ones(3, np.float32), np.arange(3, dtype=np.float32)
  np.testing.assert_array_equal(rule(rewards, logprobs=logprobs), [0, 1, 2])
  answers = np.array([1, 1, 1])
  np.testing.assert_array_equal(rule(rewards, logprobs=logprobs, answers=answers), [1, 2, 3])
  with pytest.raises(ValueError, match="needs logprobs="):
    rule(rewards)


def test_a_taken_name_is_refused(scratch_registry):
  def mine():
    return lambda rewards: rewards

  with pytest.raises(ValueError, match=r"'tea' is already registered by tea_jax.advantages.tea"):
    register_advantage("tea")(mine)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_has_the_factorys_arguments_and_defaults(name):
  parameters = inspect.signature(registry_module.advantage_factory(name)).parameters
  fields = {f.name: f.default for f in dataclasses.fields(CONFIGS[name])}
  assert fields == {p.name: p.default for p in parameters.values()}
  assert CONFIGS[name]().build().name == name


def test_every_registered_rule_has_a_config():
  assert {n for n in available_advantages() if n not in CONFIGS} == set()


def test_flags_cover_every_argument_of_every_rule():
  flags = {f.name for f in dataclasses.fields(AdvantageFlags)} - {"name", "options"}
  arguments = {f.name for config in CONFIGS.values() for f in dataclasses.fields(config)}
  assert flags == arguments


@dataclasses.dataclass(frozen=True)
class Run:
  advantage: AdvantageFlags = dataclasses.field(default_factory=AdvantageFlags)


def parsed(*flags: str) -> AdvantageFlags:
  return tyro.cli(Run, args=list(flags)).advantage


def test_flags_choose_the_rule_and_its_arguments():
  flags = parsed("--advantage.name", "subset_tea", "--advantage.budget", "64")
  assert repr(flags) == "AdvantageFlags(name='subset_tea', budget=64)"
  assert flags.build().parameters["budget"] == 64
  fractions = parsed(
    *("--advantage.name", "prefix_tea", "--advantage.fractions", "0.5", "1"),
    *("--advantage.order", "1", "--advantage.shuffle", "False"),
  ).build()
  assert fractions.parameters["fractions"] == (0.5, 1.0)
  assert fractions.needs == ()
  rule = parsed("--advantage.name", "bon_rl", "--advantage.coefficient", "2.5").build()
  assert rule.parameters["coefficient"] == 2.5
  rule = parsed("--advantage.name", "bon_rl", "--advantage.coefficient", "n-1").build()
  assert rule.parameters["coefficient"] == "n-1"


def test_an_unbounded_weight_can_be_said_in_flags():
  rule = parsed("--advantage.name", "cat_pass_at_n", "--advantage.weight-clip", "inf").build()
  rewards = np.array([0.0, 1.0], np.float32)
  assert np.all(np.isfinite(np.asarray(rule(rewards, logprobs=np.array([-1.0, -2.0])))))


def test_an_argument_of_another_rule_is_refused():
  with pytest.raises(ValueError, match="'tea' has no argument 'k'; it has: tail_fraction, budget"):
    parsed("--advantage.k", "3").build()


def test_options_reach_rules_registered_elsewhere(scratch_registry):
  @register_advantage("mine")
  def mine(*, margin: float = 0.0, mode: str = "fast"):
    return lambda rewards: rewards - margin

  flags = AdvantageFlags(name="mine", options=("margin=0.5", "mode=slow"))
  assert flags.build().parameters == {"margin": 0.5, "mode": "slow"}
  with pytest.raises(ValueError, match="option 'margin' must have the form name=value"):
    AdvantageFlags(name="mine", options=("margin",)).build()


def test_the_union_of_configs_gives_subcommands():
  config = tyro.cli(AdvantageConfig, args=["tea-config", "--budget", "64"])
  assert config == TeaConfig(budget=64)
