"""A KL that is chosen: the coefficient of the penalty follows the measured KL to the reference.

With l = log(KL / target), KL an exponential average, and e = l + H (l - l of the step before), what
l will be in H steps, clipped to [-1, 2],

  log coefficient = log start + P e + I sum_steps l,

the sum over the steps in which the KL did not come nearer to the target. The first term damps: far
below the target the policy moves almost freely, and the penalty returns before the target is
passed: an optimiser with momentum follows the coefficient steps later. The sum removes what is
left, for each rule and reward its own coefficient. Plain floats, kept in checkpoints.

On a simulated policy under Adam (`tests/training/test_kl_control.py`) runs of 60 steps miss the
target by 0.2 in log KL on average; without looking ahead they miss it by 0.55.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_PROPORTIONAL = 2.0
_INTEGRAL = 0.2
_AHEAD = 4.0  # steps
_STEEPEST = 0.5  # change of log KL in a step that is believed
_DECAY = 0.8  # of the average of the KL: about five steps
_RANGE = math.log(1e3)  # the coefficient stays within this factor of its start


class KLControl(NamedTuple):
  """State of the controller.

  Attributes:
    integral: sum of the clipped errors, in units of log coefficient.
    average: of the measured KLs, not yet divided by its weight.
    weight: of the average, 1 - decay^steps.
    slope: change of the average's logarithm in the last step.
  """

  integral: float = 0.0
  average: float = 0.0
  weight: float = 0.0
  slope: float = 0.0


def observe_kl(control: KLControl, kl: float, *, target: float) -> KLControl:
  """The next state after a step whose KL, in nats a completion, was measured.

  A KL that is not finite (its update was skipped) changes nothing.
  """
  if not math.isfinite(kl):
    return control
  before, first = _error(control, target), control.weight == 0
  control = control._replace(
    average=_DECAY * control.average + (1 - _DECAY) * max(kl, 0.0),
    weight=_DECAY * control.weight + (1 - _DECAY),
  )
  error = _error(control, target)
  control = control._replace(slope=0.0 if first else error - before)
  if abs(error) < abs(before):  # on its way: a sum of these errors would overshoot
    return control
  integral = control.integral + _INTEGRAL * min(max(error, -1.0), 2.0)
  return control._replace(integral=min(max(integral, -_RANGE), _RANGE))


def controlled_coefficient(control: KLControl, *, target: float, start: float) -> float:
  """The coefficient of the next update.

  Args:
    control: see `observe_kl`.
    target: KL to the reference, nats a completion; positive.
    start: coefficient while nothing was measured; positive.
  """
  ahead = _AHEAD * min(max(control.slope, -_STEEPEST), _STEEPEST)
  error = min(max(_error(control, target) + ahead, -1.0), 2.0)
  change = control.integral + _PROPORTIONAL * error
  return start * math.exp(min(max(change, -_RANGE), _RANGE))


def _error(control: KLControl, target: float) -> float:
  if control.weight == 0:
    return 0.0
  kl = control.average / control.weight
  return math.log(max(kl, 1e-12) / target)
