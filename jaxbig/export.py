"""A tuned model as one file that needs neither jaxbig nor flax to run: `jax.export`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export

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
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; choose another folder") from error
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
