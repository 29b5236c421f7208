"""TRL's own GRPO trainer with our rules: a tiny model, three steps, on the CPU."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("trl")

import datasets
import torch
import trl

import tea_jax
from tea_jax.integrations.trl import rule_reward, with_rule
from tests.integrations.tiny_torch import letter_tokenizer, tiny_llama, vowels

pytestmark = pytest.mark.filterwarnings("ignore:tea_jax in TRL")
TEA = tea_jax.tea(tail_fraction=0.5, budget=64)


class Recorded(trl.GRPOTrainer):
  """Keeps what the loss is given, each time that it is computed."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.trained, self.gathered = [], []

  def _compute_loss(self, model, inputs):
    self.trained.append(inputs["advantages"].clone())
    return super()._compute_loss(model, inputs)

  def _calculate_rewards(self, *args, **kwargs):
    rewards = super()._calculate_rewards(*args, **kwargs)
    self.gathered.append(rewards.clone())
    return rewards


def config(folder, **changes):
  settings = {
    "output_dir": str(folder),
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "max_completion_length": 12,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "loss_type": "dr_grpo",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
  }
  return trl.GRPOConfig(**{**settings, **changes})


def make(folder, trainer_class, *, rewards=vowels, args=None, **kwargs):
  prompts = ["say a", "tell me", "go", "what is", "sing"]
  return trainer_class(
    model=tiny_llama(),
    reward_funcs=rewards,
    args=args or config(folder),
    train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
    processing_class=letter_tokenizer(),
    **kwargs,
  )


def advantages_of(rule, rewards):
  """`rule(rewards)` of each generation batch, flat."""
  return [np.asarray(rule(r[:, 0].numpy().reshape(-1, 8))).reshape(-1) for r in rewards]


def test_three_steps_train_exactly_the_advantages_of_the_rule(tmp_path):
  trainer = make(tmp_path, with_rule(Recorded, TEA))
  before = [p.clone() for p in trainer.model.parameters()]
  trainer.train()
  assert len(trainer.trained) == len(trainer.gathered) == 3
  for trained, expected in zip(trainer.trained, advantages_of(TEA, trainer.gathered), strict=True):
    assert trained.dtype == torch.float32
    # TRL shuffles the rows of a batch before the loss.
    np.testing.assert_array_equal(np.sort(trained.numpy()), np.sort(expected))
    assert np.any(expected != 0)
  assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
  logged = [entry for entry in trainer.state.log_history if "advantage/nonzero_frac" in entry]
  assert len(logged) == 3


def test_the_completions_table_shows_what_was_trained(tmp_path):
  trainer = make(tmp_path, with_rule(Recorded, TEA))
  trainer.train()
  last = advantages_of(TEA, trainer.gathered)[-1]
  np.testing.assert_array_equal(np.float32(trainer._logs["advantages"]), last)
  assert len(trainer._logs["completion"]) == len(last)


def test_our_grpo_is_trls_without_scaling(tmp_path):
  """The same seed, the same rollouts: the two trainers end with the same parameters."""
  ends = []
  for trainer_class in (Recorded, with_rule(Recorded, tea_jax.grpo())):
    args = config(tmp_path, scale_rewards="none", seed=7)
    trainer = make(tmp_path, trainer_class, args=args)
    trainer.train()
    ends.append((torch.cat(trainer.trained), [p.detach() for p in trainer.model.parameters()]))
  torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-5, atol=1e-6)
  for theirs, ours in zip(ends[0][1], ends[1][1], strict=True):
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_weights_none_evaluation_and_accumulation(tmp_path):
  def sometimes(completions, **_):
    return [None if len(c) % 5 == 0 else float(len(c)) for c in completions]

  args = config(
    tmp_path,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    reward_weights=[1.0, 0.25],
    num_generations_eval=4,
    per_device_eval_batch_size=8,
    eval_strategy="steps",
    eval_steps=3,
  )
  trainer = make(
    tmp_path,
    with_rule(Recorded, TEA),
    rewards=[vowels, sometimes],
    args=args,
    eval_dataset=datasets.Dataset.from_dict({"prompt": ["go", "what"]}),
  )
  trainer.train()
  weights = np.array([1.0, 0.25])
  for call, gathered in enumerate(trainer.gathered[:3]):
    totals = np.nansum(gathered.double().numpy() * weights, 1).astype(np.float32)
    expected = np.asarray(TEA(totals.reshape(-1, 8))).reshape(-1)
    trained = torch.cat(trainer.trained[2 * call : 2 * call + 2]).numpy()
    np.testing.assert_array_equal(np.sort(trained), np.sort(expected))
  evaluated = [entry for entry in trainer.state.log_history if "eval_advantage/std" in entry]
  assert evaluated


def test_a_reward_function_alone_trains_the_rule_under_trls_trainer(tmp_path):
  reward = rule_reward(vowels, TEA, num_generations=8)
  trainer = make(tmp_path, Recorded, rewards=reward, args=config(tmp_path, scale_rewards="none"))
  trainer.train()
  for trained, given in zip(trainer.trained, trainer.gathered, strict=True):
    np.testing.assert_allclose(
      np.sort(trained.numpy()), np.sort(given[:, 0].numpy()), rtol=1e-5, atol=1e-5
    )
  assert any(given.abs().max() > 0 for given in trainer.gathered)


def test_adapters_are_trained_with_the_rule(tmp_path):
  peft = pytest.importorskip("peft")
  adapters = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
  trainer = make(tmp_path, with_rule(Recorded, TEA), peft_config=adapters)
  trainer.train()
  for trained, expected in zip(trainer.trained, advantages_of(TEA, trainer.gathered), strict=True):
    np.testing.assert_array_equal(np.sort(trained.numpy()), np.sort(expected))


class Scripted(Recorded):
  """Completions by prompt and place in the group, so that the processes of a run agree."""

  def _generate_single_turn(self, *args, **kwargs):
    output = super()._generate_single_turn(*args, **kwargs)
    return (self._scripted(len(output[0])), *output[1:])

  def _scripted(self, count):
    """`count` completions of the rows that this process holds of the batch."""
    self._calls = getattr(self, "_calls", -1) + 1
    first = self.accelerator.process_index * count
    generators = [np.random.default_rng((self._calls, row)) for row in range(first, first + count)]
    return [[*g.integers(2, 28, g.integers(1, 11)).tolist(), 1] for g in generators]


def scripted_run(folder, processes):
  """Trains in this process and writes what it trained; the body of each process of the test."""
  args = config(folder, per_device_train_batch_size=16 // processes, logging_steps=1)
  rule = tea_jax.prefix_tea(tail_fraction=0.5, fractions=(0.5, 1.0), order=1)
  trainer = make(folder, with_rule(Scripted, rule), args=args)
  trainer.train()
  own = torch.cat(trainer.trained)
  everyone = trainer.accelerator.gather(own)
  if trainer.accelerator.is_main_process:
    np.savez(
      f"{folder}/processes{processes}.npz",
      trained=everyone.numpy(),
      rewards=torch.cat(trainer.gathered).numpy(),
      logged=np.float32(trainer._logs["advantages"]),
      parameters=torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).numpy(),
    )


def start(folder, rank, processes, port):
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
  }
  if processes > 1:
    environment |= {
      "RANK": str(rank),
      "LOCAL_RANK": str(rank),
      "WORLD_SIZE": str(processes),
      "LOCAL_WORLD_SIZE": str(processes),
      "MASTER_ADDR": "127.0.0.1",
      "MASTER_PORT": str(port),
      "GLOO_SOCKET_IFNAME": "lo",
    }
  code = "from tests.integrations.test_real_trl import scripted_run; scripted_run({!r}, {})"
  return subprocess.Popen(
    [sys.executable, "-c", code.format(str(folder), processes)],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


@pytest.mark.slow
def test_two_processes_over_loopback_train_what_one_trains(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  for processes in (1, 2):
    started = [start(tmp_path, rank, processes, port) for rank in range(processes)]
    for process in started:
      output, _ = process.communicate(timeout=900)
      assert process.returncode == 0, output.decode()[-3000:]
  one, two = (np.load(tmp_path / f"processes{n}.npz") for n in (1, 2))
  np.testing.assert_array_equal(one["rewards"], two["rewards"])
  np.testing.assert_array_equal(np.sort(one["trained"]), np.sort(two["trained"]))
  np.testing.assert_array_equal(one["logged"], two["logged"])
  np.testing.assert_allclose(one["parameters"], two["parameters"], rtol=1e-3, atol=1e-4)
  assert np.any(one["trained"] != 0)
