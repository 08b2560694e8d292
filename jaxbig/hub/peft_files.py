"""Adapters in PEFT's files, ``adapter_config.json`` and ``adapter_model.safetensors``: read and written whole.

PEFT names tensors by the modules of a torch model, jaxbig leaves by paths of a tree, so both directions take `names`:
a function from a leaf's path to the torch parameter that it is, such as ``"h.0.attn.c_attn.weight"``; for a leaf that
holds a stack of layers, to a list of them, one a layer. Axes follow from how the model uses the leaf.

Which methods travel, and what of them does not, is said in `jaxbig.hub.peft_codecs`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbig import atomic
from jaxbig.errors import UserError
from jaxbig.transform import Split, Transform

Names = Callable[[str], str | Sequence[str] | None]
Tensors = dict[str, np.ndarray]
# The version whose files these are; PEFT writes its own.
VERSION = "0.21.2"
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class Adapter(NamedTuple):
    """Attributes: transform, split: the adapter over the base it was read for; config: ``adapter_config.json``."""

    transform: Transform
    split: Split
    config: dict[str, Any]


def read_files(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """The config and the tensors, each in the dtype that the file holds.

    Args:
        folder: holds the two files.

    Returns:
        config, and name -> array.

    Raises:
        UserError: a file is missing or damaged.
    """
    from safetensors import SafetensorError, deserialize

    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        found = deserialize((folder / "adapter_model.safetensors").read_bytes())
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); give the folder of a PEFT adapter"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: is damaged or no PEFT adapter: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder}: is damaged or no PEFT adapter: its config is no JSON object")
    return config, {name: _array(folder, name, entry) for name, entry in found}


def _array(folder: Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise UserError(f"{folder}: {name} is of the type {entry['dtype']}; adapters are read in {', '.join(_DTYPES)}")
    return np.frombuffer(entry["data"], jnp.dtype(_DTYPES[entry["dtype"]])).reshape(entry["shape"])


def write_files(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> None:
    """Makes the folder where it is not there, and replaces each file whole or not at all."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    atomic.write(folder / "adapter_model.safetensors", save(whole, {"format": "pt"}))
    atomic.write(folder / "adapter_config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def some(names: Mapping[str, Any]) -> str:
    """The first three of some names, for a message.

    Example:
        >>> some(dict.fromkeys("edcba"))
        'a, b, c and 2 more'
    """
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
