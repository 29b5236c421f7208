"""Several processes of one run (`jax.distributed`): who writes, what all know, errors and stops.

The only file that knows of several processes. Every process runs the same program on its own
devices; the first one locks, scores, logs, prints and renames. Three things keep them in step:

- what only one of them can know (a file, a clock, a score) is told to all by `agree` or `on_first`;
- what one of them raises is raised by all, at their next exchange (`together`, `exchange`);
- a signal to one of them stops all, at the next `check_stop`.

With one process each of these is the plain call.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

T = TypeVar("T")

_SMALLEST_MESSAGE = 256  # bytes; longer ones in powers of two, so that few sizes are compiled
_stop_asked = False
_waits_for_stop = False

Distributed = Literal["auto", "always", "never"]


def connect(mode: Distributed = "auto") -> None:
  """Joins the processes of a run; to be called before anything is computed.

  Args:
    mode: "auto" joins where the environment says that there are several: `JAX_COORDINATOR_ADDRESS`
      (with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`), a Slurm step, Open MPI, or a TPU slice that
      lists its workers. "always" joins whatever `jax.distributed` detects, "never" does not.

  Raises:
    ValueError: if the others cannot be found or reached.
  """
  if mode == "never" or jax.distributed.is_initialized():
    return
  told = "JAX_COORDINATOR_ADDRESS" in os.environ
  if mode == "auto" and not (told or _launched_together()):
    return
  options = {}
  for name, variable in (("num_processes", "JAX_NUM_PROCESSES"), ("process_id", "JAX_PROCESS_ID")):
    if told and variable in os.environ:
      text = os.environ[variable]
      if not text.isdecimal():
        raise ValueError(f"{variable}={text!r} must be a whole number.")
      options[name] = int(text)
  try:
    jax.distributed.initialize(**options)
  except (ValueError, RuntimeError) as error:
    raise ValueError(
      f"the processes of this run could not be joined ({error}); set JAX_COORDINATOR_ADDRESS "
      "(host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or pass --mesh.distributed "
      "never for one process."
    ) from error


def require_one(what: str) -> None:
  """Refuses to run `what` in one of several processes: all of them would write the same files.

  Raises:
    ValueError: if there are several, or the environment says so.
  """
  told = "JAX_COORDINATOR_ADDRESS" in os.environ and os.environ.get("JAX_NUM_PROCESSES") != "1"
  if told or _launched_together() or (jax.distributed.is_initialized() and several()):
    raise ValueError(
      f"{what} runs in one process, on all the devices that it sees, but several were started "
      "(JAX_COORDINATOR_ADDRESS, or a launcher such as srun); start one, without them."
    )


def _launched_together() -> bool:
  """Whether a launcher that JAX knows started several processes."""
  environment = os.environ
  return (
    int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    or ("OMPI_MCA_orte_hnp_uri" in environment and environment["OMPI_COMM_WORLD_SIZE"] != "1")
    or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
  )


def several() -> bool:
  """Whether this run has more than one process."""
  return count() > 1


def count() -> int:
  """Processes of this run."""
  return jax.process_count()


def index() -> int:
  """This process's place among them, from 0."""
  return jax.process_index()


def is_first() -> bool:
  """Whether this process locks, scores, logs, prints and renames."""
  return index() == 0


def fetch(values: Any) -> np.ndarray:
  """The whole array on this process's host, wherever its shards are.

  All processes must call it alike where shards lie on several of them.

  Example:
    >>> fetch(jax.numpy.arange(3)).tolist()
    [0, 1, 2]
  """
  if getattr(values, "is_fully_addressable", True) or values.is_fully_replicated:
    return np.asarray(values)
  return np.asarray(multihost_utils.process_allgather(values, tiled=True))


def put(tree: Any, shardings: Any) -> Any:
  """`jax.device_put` onto devices of all processes, of values that each process has whole.

  Args:
    tree: of arrays; those that are spread over processes already are moved as they are.
    shardings: a tree like it, or one sharding for all.
  """
  if not several():
    return jax.device_put(tree, shardings)

  def place(values: Any, sharding: Any) -> jax.Array:
    if not getattr(values, "is_fully_addressable", True):
      return jax.device_put(values, sharding)
    if isinstance(values, jax.Array) and jnp.issubdtype(values.dtype, jax.dtypes.prng_key):
      data = place(jax.random.key_data(values), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(values))
    host = np.asarray(values)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda values: place(values, shardings), tree)
  return jax.tree.map(place, tree, shardings)


def replicate(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
  """The arrays on every device of all processes, as a checkpoint needs them; one: as they are."""
  if mesh is None or not several():
    return tree
  return put(tree, NamedSharding(mesh, PartitionSpec()))


def local(tree: Any) -> Any:
  """Arrays that are on every device, as this process's own; one process: as they are."""
  return jax.tree.map(fetch, tree) if several() else tree


def exchange(value: Any = None) -> list[Any]:
  """The values of all processes, in their order; a barrier too.

  Args:
    value: what JSON can hold, NaN and infinities included; arrays arrive as lists.

  Raises:
    Exception: what a process raised inside `together`, of the first that did.
  """
  return [value] if not several() else _exchange(value, None)


def agree(value: T) -> T:
  """The first process's value on all processes.

  Example:
    >>> agree({"step": 3})
    {'step': 3}
  """
  return exchange(value)[0]


def on_first(function: Callable[..., T], *arguments: Any) -> T:
  """`function(*arguments)` of the first process; what it returns or raises is told to all.

  Args:
    function: called by the first process only, so it must not compute on all devices.
    *arguments: of it.

  Returns:
    What it returned, which JSON must be able to hold where there are several processes.
  """
  if not several():
    return function(*arguments)
  if not is_first():
    return agree(None)  # type: ignore[return-value]
  try:
    result = function(*arguments)
  except Exception as error:
    _tell(error)
    raise
  return agree(result)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """A block that all processes leave alike: what one of them raises in it, all raise.

  The others learn of it at their next exchange, at the latest at the end of the block: between an
  operation that may fail in one process and one that computes on all devices there must be one.
  """
  if not several():
    yield
    return
  try:
    yield
  except Exception as error:
    _tell(error)
    raise
  _exchange(None, None)


def require_same(values: Mapping[str, Any], what: str) -> None:
  """Refuses processes that were not started alike.

  Args:
    values: that every process must have, by name.
    what: they are of, for the message.

  Raises:
    ValueError: naming the process and the value that differs.
  """
  if not several():
    return
  everywhere = exchange(dict(values))
  for process, other in enumerate(everywhere):
    for name, value in other.items():
      first = everywhere[0].get(name)
      if first != value:
        raise ValueError(
          f"process {process} has another {name} of {what} than process 0 "
          f"({value!r:.80} instead of {first!r:.80}); start all of them with the same command, "
          "files and versions."
        )


@contextlib.contextmanager
def stopping_together() -> Iterator[None]:
  """In this block SIGTERM and Ctrl-C wait for the next `check_stop`; a second Ctrl-C does not.

  One process: signals are left as they are. In such a block another one changes nothing.
  """
  global _stop_asked, _waits_for_stop
  in_thread = threading.current_thread() is not threading.main_thread()
  if not several() or in_thread or _waits_for_stop:
    yield
    return
  _stop_asked, _waits_for_stop = False, True

  def ask(number: int, frame: Any) -> None:
    global _stop_asked
    if _stop_asked and number == signal.SIGINT:
      signal.default_int_handler(number, frame)
    _stop_asked = True

  before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield
  finally:
    _waits_for_stop = False
    for number, handler in before.items():
      # None: a handler that was not installed from Python, such as JAX's own.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)


def check_stop() -> None:
  """A point where all processes stop if one of them was asked to.

  Raises:
    KeyboardInterrupt: in all of them.
  """
  if several() and any(exchange(_stop_asked)):
    raise KeyboardInterrupt


def _tell(error: Exception) -> None:
  """Tells all processes of an error, unless they know; returns where it is the one to raise."""
  if getattr(error, "_told", False):
    return
  try:
    _exchange(None, error)
  except Exception as told:
    # Any other one: the processes cannot be reached, and the error itself says more.
    if getattr(told, "_told", False) and told is not error:
      raise told from error


def _exchange(value: Any, error: Exception | None) -> list[Any]:
  """Every process sends a value or its error; the first error is raised by all."""
  message = {"value": value} if error is None else {"error": _described(error)}
  found = [json.loads(text) for text in _gather(_json(message))]
  failed = [process for process, each in enumerate(found) if "error" in each]
  if not failed:
    return [each["value"] for each in found]
  if error is None or failed[0] != jax.process_index():
    error = _rebuilt(found[failed[0]]["error"])
  error._told = True  # type: ignore[attr-defined]
  raise error


def _json(message: Mapping[str, Any]) -> bytes:
  # Arrays and scalars of numpy and JAX as lists and numbers; float64 comes back bit by bit.
  return json.dumps(message, default=lambda value: value.tolist()).encode()


def _gather(message: bytes) -> list[bytes]:
  lengths = multihost_utils.process_allgather(np.uint32(len(message)))
  size = max(_SMALLEST_MESSAGE, 1 << (int(lengths.max()) - 1).bit_length())
  padded = np.zeros(size, np.uint8)
  padded[: len(message)] = np.frombuffer(message, np.uint8)
  found = multihost_utils.process_allgather(padded)
  return [row[:length].tobytes() for row, length in zip(found, lengths, strict=True)]


def _described(error: Exception) -> dict[str, Any]:
  attributes = {}
  for name, value in vars(error).items():
    with contextlib.suppress(TypeError, ValueError):
      attributes[name] = json.loads(json.dumps(value))
  kind = type(error)
  return {
    "kind": [kind.__module__, kind.__qualname__],
    "text": str(error),
    "attributes": attributes,
  }


def _rebuilt(described: Mapping[str, Any]) -> Exception:
  """The error of another process: of the same class, where this process knows it."""
  (module, name), text = described["kind"], described["text"]
  kind = getattr(sys.modules.get(module), name, None)
  if not (isinstance(kind, type) and issubclass(kind, Exception)):
    return RuntimeError(f"{name}: {text}")
  # Constructors may want more than a message.
  error = kind.__new__(kind, text)
  error.args = (text,)
  vars(error).update(described["attributes"])
  return error
