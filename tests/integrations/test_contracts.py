"""Each adapter against a host of a screen; the real hosts are in test_real_*.py."""

import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

import tea_jax
from tea_jax.advantages.registry import make_advantage
from tea_jax.integrations import groups, trl, tunix, verl
from tests.integrations.fakes import (
  FakeGRPOTrainer,
  FakeTensor,
  fake_tunix,
  fake_verl,
  grpo_args,
)

TEA = tea_jax.tea(tail_fraction=0.5, budget=64)
REWARDS = np.random.default_rng(0).normal(size=(8, 1)).astype(np.float32)


@pytest.fixture(autouse=True)
def _fresh_warnings(monkeypatch):
  monkeypatch.setattr(groups, "_warned", set())


def trainer(rewards=REWARDS, rule=TEA, args=None, **kwargs):
  return trl.with_rule(FakeGRPOTrainer, rule)(args or grpo_args(), rewards, **kwargs)


class TestTRL:
  def test_the_rule_replaces_the_advantages_and_what_is_logged(self):
    host = trainer()
    output = host._generate_and_score_completions([])
    expected = np.asarray(TEA(REWARDS.reshape(2, 4))).reshape(-1)
    np.testing.assert_array_equal(output["advantages"].numpy(), expected)
    assert output["completion_ids"] == "kept"
    assert list(host._logs["advantages"]) == expected.tolist()
    assert host._metrics["train"]["advantage/nonzero_frac"] == [np.mean(expected != 0)]

  def test_the_log_keeps_what_came_before(self):
    host = trainer()
    host._logs["advantages"].extend([1.0, 2.0, 3.0])
    host._generate_and_score_completions([])
    assert list(host._logs["advantages"])[:3] == [1.0, 2.0, 3.0]
    assert len(host._logs["advantages"]) == 11

  @pytest.mark.parametrize("rank", [0, 1, 2, 3])
  def test_each_process_gets_its_slice_of_groups_that_straddle_them(self, rank):
    host = trainer(process_index=rank, num_processes=4)
    own = host._generate_and_score_completions([])["advantages"].numpy()
    expected = np.asarray(TEA(REWARDS.reshape(2, 4))).reshape(-1)
    np.testing.assert_array_equal(own, expected[2 * rank : 2 * rank + 2])

  def test_reward_functions_are_weighted_and_none_is_left_out(self):
    rewards = np.array(
      [[1, np.nan], [2, 1], [np.nan, np.nan], [0, 3], [1, 1], [2, 2], [3, 3], [5, 5]]
    )
    host = trainer(rewards, weights=[1.0, 0.5])
    own = host._generate_and_score_completions([])["advantages"].numpy()
    totals = np.array([[1, 2.5, 0, 1.5], [1.5, 3, 4.5, 7.5]], np.float32)
    where = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], bool)
    np.testing.assert_array_equal(own, np.asarray(TEA(totals, where=where)).reshape(-1))
    assert own[2] == 0

  def test_evaluation_has_groups_of_its_own_size(self):
    host = trainer(rule=tea_jax.grpo())
    host.model.training = False
    own = host._generate_and_score_completions([])["advantages"].numpy()
    pairs = REWARDS.reshape(4, 2)
    np.testing.assert_allclose(own, (pairs - pairs.mean(1, keepdims=True)).reshape(-1), atol=1e-6)
    assert host._metrics["eval"]
    assert not host._metrics["train"]

  def test_orders_follow_the_step_and_a_resumed_run_repeats_them(self):
    rewards = np.random.default_rng(1).normal(size=(16, 1))

    trainer_class = trl.with_rule(FakeGRPOTrainer, tea_jax.bon_rl())

    def at(step, micro_step):
      host = trainer_class(grpo_args(), rewards)
      host.state.global_step, host._step = step, micro_step
      return host._generate_and_score_completions([])["advantages"].numpy()

    np.testing.assert_array_equal(at(3, 6), at(3, 0))
    assert len({at(step, micro).tobytes() for step in (0, 1) for micro in (0, 1)}) == 4

  def test_standardised_rewards_are_those_of_trl(self):
    rewards = np.array([[1, 10], [2, 30], [3, np.nan], [4, 20]])
    totals = trl.total_rewards(
      rewards, np.array([1.0, 2.0]), num_generations=4, aggregation="normalize_then_sum"
    )
    first = (rewards[:, 0] - 2.5) / (np.std([1, 2, 3, 4], ddof=1) + 1e-4)
    second = (rewards[:, 1] - 20) / (10 + 1e-4)
    np.testing.assert_allclose(totals, first + 2 * np.nan_to_num(second), rtol=1e-12)

  def test_groups_too_small_for_the_rule_are_refused_when_the_trainer_is_made(self):
    with pytest.raises(ValueError, match=r"num_rollouts=4 is too small for tea\(tail_fraction=0.1"):
      trainer(rule=tea_jax.tea(tail_fraction=0.1, budget=128))

  def test_other_classes_are_refused(self):
    with pytest.raises(TypeError, match="dict has no method _calculate_rewards"):
      trl.with_rule(dict, TEA)

  @pytest.mark.parametrize(
    "changes, remedy",
    [
      ({"loss_type": "dapo"}, "loss_type='dr_grpo'"),
      ({"top_p": 0.9}, "top_p=1.0"),
      ({"top_k": 50}, "top_k=0"),
      ({"top_entropy_quantile": 0.2}, "top_entropy_quantile=1.0"),
      ({"mask_truncated_completions": True}, "mask_truncated_completions=False"),
    ],
  )
  def test_a_loss_that_changes_the_objective_is_named_once(self, changes, remedy):
    with pytest.warns(UserWarning, match=remedy.replace(".", r"\.")):
      trainer(args=grpo_args(**changes))
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      trainer(args=grpo_args(**changes))
      trainer()
      trainer(args=grpo_args(loss_type="luspo"))


def grouped_reward(prompts, completions, **kwargs):
  return [float(len(completion)) if completion else None for completion in completions]


class TestRuleReward:
  completions = ("a", "abcd", "ab", "abc", "abcde", "a", "", "abc")
  prompts = tuple("x" * 4 + "y" * 4)

  def test_trl_without_scaling_trains_the_rule(self):
    reward = trl.rule_reward(grouped_reward, TEA, num_generations=4)
    values = reward(prompts=self.prompts, completions=self.completions)
    assert values[6] is None
    assert reward.__name__ == "grouped_reward"
    lengths = np.array([[1, 4, 2, 3], [5, 1, 0, 3]], np.float32)
    where = np.array([[1, 1, 1, 1], [1, 1, 0, 1]], bool)
    expected = np.asarray(TEA(lengths, where=where))
    array = np.array([np.nan if v is None else v for v in values]).reshape(2, 4)
    centred = np.nan_to_num(array - np.nanmean(array, 1, keepdims=True))
    np.testing.assert_allclose(centred, expected, rtol=1e-5, atol=1e-5)

  @pytest.mark.parametrize("name", ["bon_max_mean", "bon_max_second"])
  def test_rules_that_are_not_centred_are_refused(self, name):
    with pytest.raises(ValueError, match=r"do not sum to zero in each group.*with_rule"):
      trl.rule_reward(grouped_reward, name, num_generations=4)

  def test_rows_that_straddle_groups_are_refused(self):
    reward = trl.rule_reward(grouped_reward, TEA, num_generations=4)
    with pytest.raises(ValueError, match="row 2 is another prompt than row 0"):
      reward(prompts=list("xxyyyyzz"), completions=self.completions)


class TestTunix:
  def test_the_registered_estimator_is_the_rule(self, monkeypatch):
    registry = fake_tunix(monkeypatch)
    tunix.register("tea", TEA, config=types.SimpleNamespace(loss_agg_mode="seq-mean-token-sum"))
    rewards = REWARDS.reshape(-1).astype(np.float64)
    advantages = registry["tea"](rewards=rewards, num_generations=4)
    assert advantages.dtype == np.float32
    np.testing.assert_array_equal(advantages, np.asarray(TEA(REWARDS.reshape(2, 4))).reshape(-1))

  def test_calls_draw_other_orders_and_a_given_step_repeats_them(self, monkeypatch):
    registry = fake_tunix(monkeypatch)
    rewards = np.random.default_rng(1).normal(size=16)
    tunix.register("counted", tea_jax.bon_rl())
    tunix.register("stepped", tea_jax.bon_rl(), step=lambda: 5)
    with pytest.warns(UserWarning, match="seq-mean-token-sum"):
      counted = {registry["counted"](rewards=rewards, num_generations=8).tobytes() for _ in "12345"}
    assert len(counted) > 2
    stepped = [registry["stepped"](rewards=rewards, num_generations=8) for _ in "12"]
    np.testing.assert_array_equal(*stepped)

  def test_bad_rewards_and_small_groups_are_refused(self, monkeypatch):
    registry = fake_tunix(monkeypatch)
    tunix.register("tea", TEA, config=types.SimpleNamespace(loss_agg_mode="seq-mean-token-sum"))
    with pytest.raises(ValueError, match="the reward of row 1 is nan"):
      registry["tea"](rewards=np.array([0, np.nan, 0, 0]), num_generations=4)
    with pytest.raises(ValueError, match="num_rollouts=2 is too small"):
      registry["tea"](rewards=np.zeros(4), num_generations=2)

  @pytest.mark.parametrize(
    "mode, biased",
    [
      ("sequence-mean-token-mean", True),
      ("token-mean", True),
      ("seq-mean-token-sum", False),
      ("sequence-mean-token-scale", False),
      ("sequence-mean-token-sum-norm", False),
    ],
  )
  def test_length_normalised_losses_are_named(self, mode, biased):
    config = types.SimpleNamespace(loss_agg_mode=mode, loss_algo="grpo")
    assert bool(tunix.loss_remarks(config)) == biased
    config.loss_algo = "gspo-token"
    assert any("gspo-token" in remark for remark in tunix.loss_remarks(config))


class TestVerl:
  # Two prompts, shuffled, of five and three rollouts of four tokens.
  index = np.array(["b", "a", "a", "b", "a", "b", "a", "a"], object)
  mask = np.array([[1] * length + [0] * (4 - length) for length in (4, 1, 2, 3, 4, 1, 2, 3)], float)

  def token_rewards(self):
    rewards = np.random.default_rng(2).normal(size=8).astype(np.float32)
    tokens = np.zeros((8, 4), np.float32)
    tokens[np.arange(8), self.mask.sum(1).astype(int) - 1] = rewards
    return rewards, FakeTensor(tokens)

  def test_groups_are_those_of_the_uid_and_tokens_those_of_the_mask(self, monkeypatch):
    registry = fake_verl(monkeypatch)
    verl.register()
    rewards, tokens = self.token_rewards()
    with pytest.warns(UserWarning, match="seq-mean-token-sum-norm"):
      advantages, returns = registry["tea"](
        token_level_rewards=tokens,
        response_mask=FakeTensor(self.mask),
        index=self.index,
        config={"tea": {"budget": 64, "tail_fraction": 0.5}, "gamma": 1.0},
      )
    for name in "ab":
      members = self.index == name
      expected = np.asarray(TEA(rewards[members]))[:, None] * self.mask[members]
      np.testing.assert_allclose(advantages.numpy()[members], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(returns.numpy(), advantages.numpy())
    assert np.any(advantages.numpy() != 0)

  def test_arguments_come_from_the_config_before_those_of_the_registration(self):
    _, tokens = self.token_rewards()
    call = {"token_level_rewards": tokens, "response_mask": FakeTensor(self.mask)}
    estimator = verl.RuleEstimator("tea", tail_fraction=0.5, budget=64)
    groups._warned.add(verl._REMINDER)
    registered = estimator(**call, index=self.index)[0].numpy()
    same = estimator(**call, index=self.index, config={"tea": {"budget": 64}})[0].numpy()
    other = estimator(**call, index=self.index, config={"tea": {"budget": 512}})[0].numpy()
    np.testing.assert_array_equal(registered, same)
    assert np.any(registered != other)

  def test_mistakes_are_named(self):
    _, tokens = self.token_rewards()
    call = {"token_level_rewards": tokens, "response_mask": FakeTensor(self.mask)}
    with pytest.raises(ValueError, match="no argument 'bugdet'; it has: tail_fraction, budget"):
      verl.RuleEstimator("tea")(**call, index=self.index, config={"tea": {"bugdet": 64}})
    with pytest.raises(ValueError, match="the batch has no uid"):
      verl.RuleEstimator("tea")(**call)

  def test_every_rule_that_is_registered_can_be_served(self, monkeypatch):
    registry = fake_verl(monkeypatch)
    taken = set(registry)
    verl.register()
    assert set(registry) - taken == {*verl.RULES, "tea_jax"}
    for name in verl.RULES:
      assert groups.as_rule(make_advantage(name)).name == name

  def test_any_rule_can_be_named_in_the_config(self):
    _, tokens = self.token_rewards()
    call = {"token_level_rewards": tokens, "response_mask": FakeTensor(self.mask)}
    groups._warned.add(verl._REMINDER)
    config = {"tea_jax": {"rule": "tea", "budget": 64}}
    named = verl.RuleEstimator("tea_jax")(**call, index=self.index, config=config)
    expected = verl.RuleEstimator("tea", budget=64)(**call, index=self.index)
    np.testing.assert_array_equal(named[0].numpy(), expected[0].numpy())

  def test_the_list_of_what_is_registered_is_printed(self, monkeypatch, capsys):
    fake_verl(monkeypatch)
    verl.register()
    verl.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(verl.RULES) + 1
    assert "algorithm.adv_estimator=tea: tea_jax's advantage rule 'tea'" in printed


def test_importing_the_adapters_imports_no_host():
  code = (
    "import sys\n"
    "from tea_jax.integrations import groups, trl, tunix\n"
    "hosts = {'torch', 'trl', 'tunix', 'verl', 'ray'} & set(sys.modules)\n"
    "assert not hosts, hosts"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
