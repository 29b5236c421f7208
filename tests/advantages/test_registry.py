import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tea_jax
from tea_jax import advantages
from tea_jax.advantages import (
  AdvantageSpec,
  GroupRule,
  available_advantages,
  make_advantage,
  register_advantage,
)
from tea_jax.advantages import registry as registry_module


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


def test_every_registered_rule_is_exported_under_its_name():
  names = available_advantages()
  assert list(names) == sorted(names)
  for name in names:
    assert getattr(tea_jax, name) is getattr(advantages, name)
    assert name in tea_jax.__all__
    assert make_advantage(name).name == name


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


@pytest.mark.parametrize(
  ("text", "arguments"),
  [
    ("grpo", {}),
    ("grpo:normalize=true,epsilon=1e-4", {"normalize": True, "epsilon": 1e-4}),
    ("tea:budget=256, tail-fraction=0.5", {"budget": 256, "tail_fraction": 0.5}),
    ("tea:budget=1e3", {"budget": 1000}),
    ("bon_rl:coefficient=n-1", {"coefficient": "n-1"}),
    ("bon_rl:coefficient=2.5", {"coefficient": 2.5}),
    ("max_at_k:k=none", {"k": None}),
    ("cat_majority:threshold=3", {"threshold": 3}),
    ("cat_pass_at_n:weight_clip=inf", {"weight_clip": float("inf")}),
    ("prefix_tea:fractions=0.5,1,order=1", {"fractions": (0.5, 1.0), "order": 1}),
  ],
)
def test_texts_become_what_the_signature_says(text, arguments):
  spec = AdvantageSpec.parse(text)
  assert (spec.name, spec.arguments) == (text.partition(":")[0], arguments)
  assert [type(value) for value in spec.arguments.values()] == list(map(type, arguments.values()))
  assert AdvantageSpec.parse(str(spec)) == spec
  assert AdvantageSpec.from_words(spec.to_words()) == spec
  assert AdvantageSpec.from_dict(spec.to_dict()) == spec
  assert AdvantageSpec.from_dict({"name": str(spec)}) == spec
  parameters = spec.build().parameters
  assert {name: parameters[name] for name in arguments} == arguments


@given(st.floats(1e-12, 1e12), st.integers(2, 2**62), st.booleans())
def test_texts_keep_every_digit(scale_floor, budget, positive_part):
  given = {"scale_floor": scale_floor, "budget": budget, "positive_part": positive_part}
  assert AdvantageSpec.parse(str(AdvantageSpec("tea", given))).arguments == given


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("tea:budget", "'budget' is not argument=value, as in tea:budget=256"),
    ("tea:budgte=3", "'tea' has no argument 'budgte'; it has: tail_fraction, budget"),
    ("tea:budget=many", "'tea': budget='many' must be an int"),
    ("tea:budget=2.5", "budget='2.5' must be an int"),
    ("tea:positive_part=1", "positive_part='1' must be a bool"),
    ("grpo:normalize=,ddof=0", "normalize='' must be a bool"),
    ("bon_rl:baseline=median", "baseline='median' must be 'mean' or a float"),
    ("prefix_tea:fractions=a,b", "fractions='a,b' must be a list of floats"),
  ],
)
def test_malformed_rules_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    AdvantageSpec.parse(text)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"budget": True}, "budget=True must be an int"),
    ({"budget": None}, "budget=None must be an int"),
    ({"positive_part": 1}, "positive_part=1 must be a bool"),
    ({"tail_fraction": [0.5]}, "must be a float"),
    ({"scale_floor": 2**60 + 1}, "must be a float"),
  ],
)
def test_values_of_another_type_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    AdvantageSpec("tea", arguments)


def test_defaults_fill_only_what_a_rule_has_and_is_not_set():
  assert AdvantageSpec("tea").with_default(budget=64) == AdvantageSpec("tea", {"budget": 64})
  assert AdvantageSpec("grpo").with_default(budget=64) == AdvantageSpec("grpo")
  set_already = AdvantageSpec("tea", {"budget": 32})
  assert set_already.with_default(budget=64) == set_already


USER = '''
import dataclasses
import jax.numpy as jnp

@dataclasses.dataclass
class Settings:
  margin: float

def signed(*, margin: float = 0.0, mode="fast"):
  """Signs."""
  settings = Settings(margin)
  return lambda rewards, *, where=None: jnp.sign(rewards - settings.margin)

def centred(rewards):
  return rewards - rewards.mean(-1, keepdims=True)

def failing():
  return lambda rewards: rewards.no_such_method()

def broken():
  return no_such_name

def summed():
  return lambda rewards: rewards.sum(-1)

def number():
  return 3
'''


@pytest.fixture
def user_file(tmp_path, monkeypatch):
  path = tmp_path / "my_rules.py"
  path.write_text(USER)
  monkeypatch.chdir(tmp_path)
  return path


def test_rules_come_from_a_users_file_or_module(user_file):
  for place in ("my_rules.py:signed", f"{user_file}:signed", "my_rules:signed"):
    spec = AdvantageSpec.parse(f"{place}:margin=0.5")
    assert spec == AdvantageSpec(place, {"margin": 0.5})
    assert AdvantageSpec.parse(str(spec)) == spec
    rule = spec.build()
    assert repr(rule) == f"{place}(margin=0.5)"
    np.testing.assert_array_equal(rule(np.array([0.0, 1.0], np.float32)), [-1, 1])
  rule = make_advantage("my_rules.py:centred")
  np.testing.assert_array_equal(rule(np.array([0.0, 1.0], np.float32)), [-0.5, 0.5])
  with pytest.raises(ValueError, match=r"has no argument 'marge'; it has: margin, mode"):
    AdvantageSpec("my_rules.py:signed", {"marge": 1.0})


@pytest.mark.parametrize(
  ("function", "message"),
  [
    (
      "failing",
      r"my_rules.py:failing' fails: AttributeError: .*no_such_method.*my_rules.py, line 18",
    ),
    ("broken", r"cannot be made: NameError: name 'no_such_name' .*my_rules.py, line 21"),
    ("summed", r"returns shape \(1,\) for rewards of shape \(1, 8\); they must be the same"),
    ("number", r"its factory must return a function of rewards, got int"),
    ("missing", r"'my_rules.py' has no 'missing'"),
  ],
)
def test_a_users_failing_rule_is_one_sentence_before_the_run(user_file, function, message):
  with pytest.raises(ValueError, match=message):
    make_advantage(f"my_rules.py:{function}").check_num_rollouts(8)
