"""Published results that the reports show beside ours.

Source: arXiv 2604.24957, Tables 2 to 6, 9, 13 and 14; standard errors are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

Curve = Mapping[int, float]


def _curve(budgets: tuple[int, ...], *values: float) -> Curve:
  return dict(zip(budgets, values, strict=True))


_TO_64 = (1, 4, 8, 16, 32, 64)
_PROTEINS = (1, 2, 4, 8, 16, 32, 64)
_CONDITIONAL = (1, 2, 4, 8, 16, 32)

# Table 2, pass@k in percent, Mistral-7B on MATH.
SUPERVISED_PASS: Mapping[str, Curve] = {
  "cross_entropy": _curve(_TO_64, 15.8, 29.6, 37.9, 46.3, 53.7, 59.8),
  "pass_at_n:budget=4": _curve(_TO_64, 15.2, 30.5, 39.9, 49.2, 57.5, 63.8),
  "pass_at_n:budget=16": _curve(_TO_64, 14.5, 30.1, 40.3, 50.9, 59.8, 66.2),
  "pass_at_n:budget=64": _curve(_TO_64, 13.5, 28.5, 38.7, 49.4, 59.3, 67.6),
}

# Table 3, maj@k in percent.
SUPERVISED_MAJORITY: Mapping[str, Curve] = {
  "cross_entropy": _curve(_TO_64, 21.9, 22.9, 23.3, 23.6, 23.8, 23.9),
  "majority:budget=8,threshold=3": _curve(_TO_64, 22.2, 23.7, 24.8, 25.4, 25.6, 25.7),
  "majority:budget=16,threshold=4": _curve(_TO_64, 22.4, 24.3, 25.2, 25.9, 26.1, 26.2),
  "majority:budget=64,threshold=26": _curve(_TO_64, 21.4, 22.7, 23.7, 24.2, 24.5, 24.9),
}

# Table 6, expected maximum of N rewards.
PROTEIN_VALLEY: Mapping[str, Curve] = {
  "Standard RL": _curve(_PROTEINS, 3.18, 4.20, 5.30, 6.54, 8.25, 10.06, 11.40),
  "BoN-2": _curve(_PROTEINS, 7.97, 10.16, 11.41, 11.93, 12.10, 12.15, 12.16),
  "BoN-4": _curve(_PROTEINS, 9.73, 11.33, 11.92, 12.10, 12.15, 12.16, 12.16),
  "BoN-8": _curve(_PROTEINS, 9.82, 11.53, 12.04, 12.14, 12.16, 12.16, 12.16),
}
PROTEIN_COMPLEMENT: Mapping[str, Curve] = {
  "Standard RL": _curve(_CONDITIONAL, 7.26, 7.70, 8.02, 8.31, 8.60, 8.89),
  "BoN-2": _curve(_CONDITIONAL, 5.36, 7.64, 8.84, 9.48, 9.86, 9.96),
  "BoN-4": _curve(_CONDITIONAL, 5.82, 7.49, 9.05, 9.61, 9.86, 9.94),
  "BoN-8": _curve(_CONDITIONAL, 5.67, 7.55, 8.96, 9.40, 9.80, 9.94),
}

# Tables 5, 13 and 14, percent, reinforcement learning of Mistral-7B on MATH.
REWARDED_PASS: Mapping[str, Curve] = {
  "Standard": _curve((1, 8, 16, 32), 8.3, 24.1, 30.3, 35.8),
  "Pass@4": _curve((1, 8, 16, 32), 8.8, 25.3, 31.6, 36.6),
  "Pass@16": _curve((1, 8, 16, 32), 8.3, 25.1, 32.5, 40.0),
}
REWARDED_MAJORITY: Mapping[str, Curve] = {
  "Standard": _curve((1, 4, 8, 16), 11.1, 14.4, 17.6, 19.2),
  "Maj@4": _curve((1, 4, 8, 16), 10.9, 15.0, 17.9, 23.0),
  "Maj@8": _curve((1, 4, 8, 16), 11.1, 14.0, 18.1, 20.9),
  "Maj@4, log-weighted": _curve((1, 4, 8, 16), 10.9, 14.2, 19.5, 21.7),
  "Maj@8, log-weighted": _curve((1, 4, 8, 16), 10.8, 13.5, 19.2, 22.0),
}
# Table 9, pass@k in percent after the same reinforcement learning.
WARM_UPS_PASS: Mapping[str, Curve] = {
  "cross_entropy": _curve((1, 2, 4, 8, 16), 4.1, 6.3, 9.2, 12.8, 17.0),
  "pass_at_16": _curve((1, 2, 4, 8, 16), 5.6, 8.8, 13.0, 17.6, 22.0),
}
