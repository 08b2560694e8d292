"""A tuned model as one file that needs neither jaxbig nor flax to run: `jax.export`."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from jaxbig import atomic
from jaxbig.errors import UserError
from jaxbig.lift import lift
from jaxbig.tree import PyTree


def export(fn: Callable, params: PyTree, example: Any, path: str | Path, batch: str = "batch") -> int:
    """Writes ``x -> fn(params, x)`` as StableHLO, the parameters inside it as they are (codes stay codes).

    Args:
        fn: the model; it is lifted.
        params: arrays or Weights.
        example: one array, or its shape; its first axis becomes symbolic, so the file runs on any batch size.
        path: where to write, atomically.
        batch: the name of the symbolic axis.

    Returns:
        bytes written. The file runs on CPU, GPU and TPU; `load` it, or ``jax.export.deserialize`` its content.

    Raises:
        UserError: the folder is not there or cannot be written.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> folder = tempfile.mkdtemp()
        >>> size = export(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)), folder + "/model.jaxexport")
        >>> load(folder + "/model.jaxexport")(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    scope = jax.export.symbolic_shape(f"{batch}, {', '.join(map(str, example.shape[1:]))}")
    stand_in = jax.ShapeDtypeStruct(scope, example.dtype)
    model = jax.jit(lambda x: lift(fn)(params, x))
    data = jax.export.export(model, platforms=("cpu", "cuda", "tpu"))(stand_in).serialize()
    atomic.write(path, bytes(data))
    return len(data)


def load(path: str | Path) -> Callable:
    """The function in a file that `export` wrote.

    Args:
        path: the file.

    Returns:
        ``x -> y``, compiled at its first call.

    Raises:
        UserError: no such file, or it is damaged.

    Example:
        >>> load("nowhere.jaxexport")
        Traceback (most recent call last):
        ...
        jaxbig.errors.UserError: nowhere.jaxexport: cannot be read: No such file or directory
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        exported = jax.export.deserialize(bytearray(data))
    except Exception as error:  # flatbuffers raises whatever a damaged offset leads to
        raise UserError(f"{path}: is damaged or no exported model ({type(error).__name__}); export it again") from error
    return jax.jit(exported.call)


_IN_FRESH_PROCESS = """
import sys, jax, jax.export, numpy as np
call = jax.jit(jax.export.deserialize(bytearray(open(sys.argv[1], 'rb').read())).call)
np.save(sys.argv[3], np.asarray(call(np.load(sys.argv[2], allow_pickle=False))))
"""


def run_in_fresh_process(path: str | Path, x: Any) -> np.ndarray:
    """What an exported file gives in a new Python process that imports jax alone, neither jaxbig nor flax.

    Args:
        path: the file.
        x: the input.

    Returns:
        the output.

    Raises:
        UserError: the process failed; the message ends with its last line.

    Example:
        >>> import jax.numpy as jnp
        >>> folder = tempfile.mkdtemp()
        >>> size = export(lambda p, x: x + p["b"], {"b": jnp.ones(2)}, jnp.ones((1, 2)), folder + "/model.jaxexport")
        >>> run_in_fresh_process(folder + "/model.jaxexport", np.zeros((1, 2), np.float32)).tolist()
        [[1.0, 1.0]]
    """
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "x.npy", Path(folder) / "y.npy"
        np.save(given, np.asarray(x))
        command = [sys.executable, "-c", _IN_FRESH_PROCESS, str(path), str(given), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()]
            raise UserError(f"{path}: does not run in a fresh process: {lines[-1]}")
        return np.load(result, allow_pickle=False)
