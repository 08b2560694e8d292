"""Folders of published models written anew: in another dtype, in files of another size."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbig import atomic
from jaxbig.errors import UsageError, UserError
from jaxbig.hub.build import folder_of
from jaxbig.hub.fill import blocks
from jaxbig.hub.folder import CONFIG, read_json, tensors_of
from jaxbig.hub.plan import WEIGHTS
from jaxbig.hub.safetensors_file import Stored
from jaxbig.hub.safetensors_write import Out, write_tensors
from jaxbig.hub.save import MOST, copy_beside, dtype_field, stale


def convert(
    source: str | Path, target: str | Path, dtype: Any = None, max_shard_size: int = MOST, overwrite: bool = False
) -> Path:
    """Copies a model's folder block by block: no tensor is ever held as a whole, and no family has to be known.

    Args:
        source: with ``config.json`` and safetensors files.
        target: as of `jaxbig.save`.
        dtype: float of 16 bits or more, of all tensors that are such floats; the others stay. None: all stay.
        max_shard_size: bytes of a file above which there are several and an index.
        overwrite: whether a folder that is there gives way.

    Returns:
        `target`: config, weights, tokenizer; other files are left behind.

    Raises:
        UsageError: the dtype is none.
        UserError: the folder is damaged; its weights are codes, which no dtype can be given; a number is not one of the
            dtype; the target is there or cannot be written.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import load_file, save_file
        >>> place = Path(tempfile.mkdtemp())
        >>> _ = (place / "config.json").write_text('{"model_type": "mine", "dtype": "float32"}')
        >>> save_file({"w": np.ones((2, 3), np.float32)}, place / "model.safetensors")
        >>> load_file(convert(place, place / "half", "float16") / "model.safetensors")["w"].dtype
        dtype('float16')
    """
    folder = folder_of(source)
    kind = None if dtype is None else _kind(dtype)
    config, stored = read_json(folder / CONFIG), tensors_of(folder)
    if kind is not None and config.get("quantization_config"):
        raise UserError(f"{folder / CONFIG}: has a quantization_config: the weights are codes; leave the dtype out")
    tensors = [_out(tensor, kind) for tensor in stored.values()]
    if kind is not None:
        config = {**config, **dtype_field(config, tensors)}
    with atomic.folder(target, stale if overwrite else None) as place:
        (place / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_tensors(place, tensors, max_shard_size)
        copy_beside(folder, place)
    return Path(target)


def _out(tensor: Stored, kind: np.dtype | None) -> Out:
    cast = kind if tensor.code in WEIGHTS else None
    return Out(tensor.name, tensor.shape, cast or tensor.dtype, partial(blocks, tensor, cast))


def _kind(dtype: Any) -> np.dtype:
    try:
        found = np.dtype(jnp.dtype(dtype))
    except TypeError:
        found = None
    if found is None or found.name not in ("bfloat16", "float16", "float32", "float64"):
        raise UsageError(f"{dtype!r} is no dtype of weights; give bfloat16, float16, float32 or float64")
    return found
