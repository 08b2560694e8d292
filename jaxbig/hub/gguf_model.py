"""A decoder from a GGUF file: its tensors as leaves of the module that a ``config.json`` would have made.

Matrices that the file has as codes stay codes (`jaxbig.hub.gguf_blocks.weight_of`), unless a dtype is asked for.

llama.cpp turns pairs of neighbours where transformers turns a head's halves against each other; its converter sorts the
outputs of queries and keys of the architecture "llama" for that. They are sorted back here, codes and scales alike:
groups run along the inputs, so no group is broken.

Legend of the shape suffixes: O outputs, I inputs.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxbig.errors import UsageError, UserError
from jaxbig.hub import config as configs
from jaxbig.hub.build import Built, Opened, build, nested
from jaxbig.hub.fill import stored_shape
from jaxbig.hub.gguf import Container, Held, read_bytes, read_container
from jaxbig.hub.gguf_blocks import PLAIN, Coded, coded, expanded, plain, weight_of
from jaxbig.hub.gguf_config import TURNS, config_of
from jaxbig.hub.model import Model
from jaxbig.hub.peft_files import some
from jaxbig.hub.plan import Named
from jaxbig.mesh import Rules, shardings
from jaxbig.models.families import family_of

# What llama.cpp calls transformers' tensors: those of the whole, and those of a layer.
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


class Reading(NamedTuple):
    """How leaves are made. Attributes: dtype, mesh, rules: as of `jaxbig.load`; finite: whether all have to be."""

    dtype: Any = None
    mesh: Any = None
    rules: Rules = ()
    finite: bool = True


class Planned(NamedTuple):
    """What a file's model will be, before any weight is read.

    Attributes:
        container: what the file says.
        built: the module, its config and its leaves.
        tensors: those that each leaf is made of, by the leaf's path.
        unused: names of tensors that the module has no place for.
    """

    container: Container
    built: Built
    tensors: dict[str, list[Held]]
    unused: tuple[str, ...]


def name_of(name: str) -> str:
    """GGUF's name of a tensor.

    Example:
        >>> name_of("model.layers.3.self_attn.q_proj.weight"), name_of("lm_head.weight")
        ('blk.3.attn_q.weight', 'output.weight')
    """
    part, _, kind = name.rpartition(".")
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", part)
    return f"blk.{found[1]}.{_LAYER[found[2]]}.{kind}" if found else f"{_WHOLE[part]}.{kind}"


def plan_gguf(path: str | Path, task: str | None, options: Mapping[str, Any]) -> Planned:
    """Which module a GGUF file's tensors make, and where each leaf's lie. No weights are read.

    Args:
        path: the file.
        task: "causal_lm" or "features"; None: the first.
        options: of the family's module.

    Raises:
        UsageError: another task or option.
        UserError: the file is damaged, or holds no model that is read here.
    """
    if task not in (None, "causal_lm", "features"):
        raise UsageError(f"{path}: task={task!r}; a GGUF file is read as causal_lm or features")
    file, container = Path(path), read_container(path)
    config = config_of(container)
    configs.check(config, file, container.tensors)
    family = family_of(config)
    built = build(Opened(file, config, family, {}), task, None, options)
    tensors = {
        leaf: [_found(container, built, leaf, its, name_of(name)) for name in its.names]
        for leaf, its in built.leaves.items()
    }
    used = {TURNS} | {tensor.name for each in tensors.values() for tensor in each}
    unused = tuple(name for name in container.tensors if name not in used)
    if more := [name for name in unused if name != "output.weight"]:
        raise UserError(f"{file}: holds {some(dict.fromkeys(more))}, which jaxbig's {family.name} has no place for")
    return Planned(container, built, tensors, unused)


def read_gguf(path: str | Path, task: str | None, options: Mapping[str, Any], how: Reading) -> Model:
    """A model in a GGUF file; `jaxbig.load` calls this.

    Args:
        path, task, options: as of `plan_gguf`.
        how: what the leaves become.

    Returns:
        the model. Its config and the names of its tensors are transformers', so that `jaxbig.save` writes a folder that
        transformers reads.

    Raises:
        UsageError, UserError: as of `plan_gguf`.

    Reference: https://github.com/ggml-org/llama.cpp, gguf-py (names) and convert_hf_to_gguf.py (the order of rows).
    """
    container, built, tensors, unused = plan_gguf(path, task, options)
    turn = _turn(built.config)
    leaves = {leaf: _leaf(tensors[leaf], its, turn, how) for leaf, its in built.leaves.items()}
    params = nested({leaf: leaves[leaf] for leaf in built.shapes})
    if how.mesh is not None:
        params = jax.device_put(params, shardings(params, how.rules, how.mesh))
    family = family_of(built.config)
    return Model(built.module, params, built.config, built.task, family, built.leaves, container.file, (), unused)


def _found(container: Container, built: Built, path: str, its: Named, name: str) -> Held:
    """The tensor of a leaf, which has to be there and of its shape."""
    if name not in container.tensors:
        raise UserError(f"{container.file}: has no {name} (the model's {path}); fetch or convert it again")
    tensor = container.tensors[name]
    shape = stored_shape(built.shapes[path].shape[1 if its.stacked else 0 :], its.turn)
    if tensor.shape != shape:
        raise UserError(
            f"{container.file}: {name} has the shape {list(tensor.shape)}; {list(shape)} is what its metadata make the "
            f"model's {path}"
        )
    return tensor


Turn = Callable[[str, np.ndarray], np.ndarray]


def _turn(config: Mapping[str, Any]) -> Turn:
    """``(tensor's name, array) -> array`` with its rows in transformers' order."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}

    def turn(name: str, array: np.ndarray) -> np.ndarray:
        kind = name.split(".")[2] if name.startswith("blk.") else ""
        if config["model_type"] != "llama" or kind not in heads:
            return array
        order_O = rearrange(np.arange(len(array)), "(H R two) -> (H two R)", H=heads[kind], two=2)
        return array[order_O]

    return turn


def _leaf(tensors: list[Held], its: Named, turn: Turn, how: Reading) -> Any:
    layers = [_layer(tensor, its, turn, how) for tensor in tensors]
    leaf = layers[0]
    if its.stacked:
        if len({_form(layer) for layer in layers}) > 1:
            kinds = ", ".join(dict.fromkeys(tensor.format.name for tensor in tensors))
            raise UserError(
                f"{tensors[0].file}: layers of {its.names[0]} are stored in several formats ({kinds}) and make no "
                "stack of codes; leave scan_layers out, or pass dtype="
            )
        leaf = jax.tree.map(lambda *parts: np.stack(parts), *layers)
    return leaf if how.mesh is not None else jax.tree.map(jnp.asarray, leaf)


def _form(layer: Any) -> Any:
    """What layers have to have in common to make a stack."""
    return jax.tree.structure(layer), tuple((part.shape, part.dtype) for part in jax.tree.leaves(layer))


def _layer(tensor: Held, its: Named, turn: Turn, how: Reading) -> Any:
    """One tensor as a leaf, its parts NumPy arrays."""
    name, data = tensor.format.name, read_bytes(tensor)
    if name in PLAIN:
        array = turn(tensor.name, plain(data, name, tensor.shape))
    else:
        codes = coded(data, name, tensor.shape)
        parts = (codes.codes_OI, codes.scale_OG, codes.shift_OG)
        if len(tensor.shape) > 1:
            parts = tuple(None if part is None else turn(tensor.name, part) for part in parts)
        codes = Coded(*parts, codes.bits)  # type: ignore[arg-type]
        _check(tensor, how, codes.scale_OG, codes.shift_OG)
        if how.dtype is None and len(tensor.shape) == 2:
            return weight_of(codes, its.turn == "matrix")
        array = expanded(codes).reshape(tensor.shape)
    _check(tensor, how, array)
    if how.dtype is not None:
        with np.errstate(over="ignore"):
            array = array.astype(how.dtype)
        _check(tensor, how, array)
    return np.ascontiguousarray(array.T) if its.turn == "matrix" else array


def _check(tensor: Held, how: Reading, *arrays: np.ndarray | None) -> None:
    for array in arrays if how.finite else ():
        if array is not None and not np.isfinite(array).all():
            told = "" if how.dtype is None else f" (as {np.dtype(how.dtype).name})"
            raise UserError(
                f"{tensor.file}: {tensor.name} holds NaN or infinity{told}; fetch it again, or pass "
                "allow_nonfinite=True if that is meant to be"
            )
