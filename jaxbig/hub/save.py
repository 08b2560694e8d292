"""Models as transformers reads them: `save`."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig import atomic
from jaxbig.errors import UsageError, UserError
from jaxbig.hub.fill import order, stored_shape
from jaxbig.hub.folder import CONFIG
from jaxbig.hub.gguf_tokenizer import write_tokenizer
from jaxbig.hub.model import Model
from jaxbig.hub.safetensors_write import Out, size_of, write_tensors
from jaxbig.tree import PyTree, paths
from jaxbig.weight import is_weight, materialise, restack

MOST = 5_000_000_000
# What belongs to a model beside its config and weights.
BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "normalizer.json",
)  # fmt: skip
ROWS = 1024  # of a tensor, turned at a time


def save(
    model: Model, params: PyTree, folder: str | Path, *, dtype: Any = None, max_shard_size: int | str = MOST,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Writes a model as transformers does: ``AutoModel.from_pretrained(folder)`` reads it, and so does `jaxbig.load`.

    ``config.json`` (the one that was read, with the architecture, labels and dtype of what is written), safetensors
    files, and what of the tokenizer lies beside the model; of a GGUF file, its tokenizer as a tokenizer.json.

    Args:
        model: what `jaxbig.load` gave.
        params: of the model, ``model.params`` or what training made of them; leaves may be Weights (LoRA, codes), which
            are materialised one after the other, those of a stack layer by layer.
        folder: where to; it is there whole or not at all, see `jaxbig.atomic.folder`.
        dtype: to write; None: each leaf's.
        max_shard_size: bytes of a file above which there are several and an index; or text, such as "200MB".
        overwrite: whether a folder that is there gives way; its other files stay.

    Returns:
        the folder.

    Raises:
        UsageError: `params` has other leaves than the model, or a size is none.
        UserError: a leaf has another shape; the folder is not empty; it cannot be written; an array is spread over
            several processes.

    Example:
        >>> import tempfile
        >>> from jaxbig.hub.load import create, load
        >>> sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "intermediate_size": 12, **sizes}
        >>> model = create(config)
        >>> folder = save(model, model.params, tempfile.mkdtemp() + "/llama", dtype="bfloat16")
        >>> sorted(file.name for file in folder.iterdir())
        ['config.json', 'model.safetensors']
        >>> load(folder, scan_layers=True).params["layers"]["mlp"]["up"]["kernel"].shape
        (2, 8, 12)
    """
    leaves = _checked(model, params)
    most = size_of(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    tensors = [tensor for path, leaf in leaves.items() for tensor in _tensors(model, path, leaf, dtype)]
    config = {**model.config, **dtype_field(model.config, tensors)}
    with atomic.folder(folder, stale if overwrite else None) as place:
        (place / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_tensors(place, tensors, most)
        if model.path is not None and model.path.is_file():
            write_tokenizer(model.tokenizer, place)
        elif model.path is not None:
            copy_beside(model.path, place)
    return Path(folder)


def stale(name: str) -> bool:
    """Whether a file of a model's folder holds weights, which new ones replace."""
    return bool(re.fullmatch(r"model.*\.safetensors(\.index\.json)?|pytorch_model.*", name))


def copy_beside(source: Path, place: Path) -> None:
    """Copies the tokenizer and what else belongs to a model."""
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, place / name)
    for file in sorted((source / "additional_chat_templates").glob("*.jinja")):
        (place / file.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(file, place / file.parent.name / file.name)


def _checked(model: Model, params: PyTree) -> dict[str, Any]:
    leaves, shapes = paths(params), paths(model.params)
    for path in sorted(leaves.keys() ^ model.leaves.keys()):
        told = f"params lack {path}" if path in model.leaves else f"params have {path}, which the model has not"
        raise UsageError(f"save: {told}; give the whole tree, as model.params is")
    for path, leaf in leaves.items():
        if tuple(leaf.shape) != tuple(shapes[path].shape):
            raise UserError(f"save: {path} has the shape {tuple(leaf.shape)}, the model's is {shapes[path].shape}")
        if not all(getattr(part, "is_fully_addressable", True) for part in jax.tree.leaves(leaf)):
            raise UserError(f"save: {path} is spread over several processes; gather it first")
    return leaves


def _tensors(model: Model, path: str, leaf: Any, dtype: Any) -> Iterator[Out]:
    its = model.leaves[path]
    shape = tuple(leaf.shape[1:] if its.stacked else leaf.shape)
    kind = np.dtype(leaf.dtype if dtype is None else jnp.dtype(dtype))
    for i, name in enumerate(its.names):
        if model.task == "features":
            name = name.removeprefix(model.family.prefix + ".")
        array = partial(_array, leaf, i if its.stacked else None)
        yield Out(name, stored_shape(shape, its.turn), kind, partial(_blocks, array, its.turn, kind))


def _array(leaf: Any, layer: int | None) -> np.ndarray:
    """A leaf, or a layer of it, on the host."""
    if is_weight(leaf):
        if layer is not None:
            stacked, shared = leaf.unstack()
            leaf = restack(jax.tree.map(lambda part: part[layer], stacked), shared)
        return np.asarray(materialise(leaf))
    on_cpu = not isinstance(leaf, jax.Array) or all(device.platform == "cpu" for device in leaf.devices())
    if on_cpu:  # the very memory
        array = np.asarray(leaf)
        return array if layer is None else array[layer]
    # An array keeps its host's copy for as long as it lives; this one does not live long.
    return np.asarray(jnp.array(leaf, copy=True) if layer is None else leaf[layer])


def _blocks(array: Callable[[], np.ndarray], turn: str, dtype: np.dtype) -> Iterable[np.ndarray]:
    found = array()
    found = found.transpose(np.argsort(order(turn, found.ndim)))
    if not found.ndim:
        yield found.astype(dtype)
    for first in range(0, len(found) if found.ndim else 0, ROWS):
        yield np.ascontiguousarray(found[first : first + ROWS]).astype(dtype, copy=False)


def dtype_field(config: Mapping[str, Any], tensors: Iterable[Out]) -> dict[str, str]:
    """What a config says of the dtype: that of the most bytes."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype.name] = sizes.get(tensor.dtype.name, 0) + tensor.nbytes
    return {"torch_dtype" if "torch_dtype" in config else "dtype": max(sizes, key=lambda name: sizes[name])}
