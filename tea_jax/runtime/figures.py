"""The door to matplotlib: figures without a display or pyplot's global state, written whole."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import write_whole


def new_figure(width: float, height: float) -> Any:
  """An empty figure of that many inches.

  Raises:
    ModuleNotFoundError: without matplotlib.
  """
  with extra("plots", "a figure"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  return figure


def styled(style: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
  """Figures made and saved inside the block follow these rc parameters of matplotlib.

  Raises:
    ModuleNotFoundError: without matplotlib.
  """
  with extra("plots", "a figure"):
    import matplotlib
  rc: Any = dict(style)
  return matplotlib.rc_context(rc)


def save_png(figure: Any, path: str | os.PathLike[str], *, dpi: int = 150) -> None:
  """Writes a PNG, whole or not at all; its folder is made."""
  image = io.BytesIO()
  figure.savefig(image, format="png", dpi=dpi)
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  write_whole(target, lambda temporary: temporary.write_bytes(image.getvalue()))
