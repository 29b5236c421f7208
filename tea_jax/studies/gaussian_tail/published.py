"""Table 15 of arXiv 2605.10716: the published numbers of the Gaussian-tail diagnostic."""

from __future__ import annotations

from typing import NamedTuple

PUBLISHED_BATCHES = (1, 2048, 65536)


class Published(NamedTuple):
  """One row of the published table; `mse` at the batch sizes `PUBLISHED_BATCHES`."""

  bias: float
  variance: float
  mse: tuple[float, float, float]


# arXiv 2605.10716, Table 15.
PUBLISHED: dict[tuple[str, int], Published] = {
  ("tea", 256): Published(0.021, 0.024, (0.024, 4.520e-04, 4.406e-04)),
  ("tea", 512): Published(9.972e-03, 0.012, (0.012, 1.054e-04, 9.962e-05)),
  ("tea", 1024): Published(4.848e-03, 6.114e-03, (6.138e-03, 2.649e-05, 2.360e-05)),
  ("tea", 2048): Published(3.180e-03, 3.073e-03, (3.083e-03, 1.161e-05, 1.016e-05)),
  ("tea", 4096): Published(1.274e-03, 1.544e-03, (1.546e-03, 2.377e-06, 1.646e-06)),
  ("prefix", 256): Published(0.015, 1.144, (1.144, 7.939e-04, 2.528e-04)),
  ("prefix", 512): Published(2.030e-03, 0.447, (0.447, 2.225e-04, 1.095e-05)),
  ("prefix", 1024): Published(8.919e-04, 0.199, (0.199, 9.778e-05, 3.826e-06)),
  ("prefix", 2048): Published(2.924e-04, 0.096, (0.096, 4.690e-05, 1.549e-06)),
  ("prefix", 4096): Published(5.924e-05, 0.047, (0.047, 2.314e-05, 7.264e-07)),
  ("prefix_larger", 256): Published(0.016, 0.839, (0.840, 6.633e-04, 2.662e-04)),
  ("prefix_larger", 512): Published(2.286e-03, 0.356, (0.356, 1.793e-04, 1.066e-05)),
  ("prefix_larger", 1024): Published(4.661e-04, 0.166, (0.166, 8.135e-05, 2.753e-06)),
  ("prefix_larger", 2048): Published(2.736e-04, 0.079, (0.079, 3.864e-05, 1.280e-06)),
  ("prefix_larger", 4096): Published(1.831e-05, 0.038, (0.038, 1.872e-05, 5.852e-07)),
}
