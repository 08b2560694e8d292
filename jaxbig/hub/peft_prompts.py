"""PEFT's prompt learning: one tensor, ``prompt_embeddings``, for the whole model.

Of a network that makes the prompt (P-tuning's, prefix tuning's projection) PEFT saves what it makes, not the network;
so do we, and what is read is the vectors themselves.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.peft_files import Tensors
from jaxbig.hub.peft_link import Link
from jaxbig.hub.peft_model import Layer, Model
from jaxbig.site import sites
from jaxbig.tune.prefix import prefix_of
from jaxbig.tune.prompt import vectors_of

KEY = "prompt_embeddings"
_CONFIG = {"num_virtual_tokens": None, "token_dim": None, "num_transformer_submodules": 1, "num_attention_heads": None,
           "num_layers": None, "modules_to_save": None}  # fmt: skip
# The last part of a torch module's name -> which thirds of its outputs are keys and values; None: all are.
_ROLES = {"k_proj": "key", "key": "key", "k_lin": "key", "v_proj": "value", "value": "value", "v_lin": "value",
          "c_attn": "both"}  # fmt: skip


class Prompts:
    """Prompt tuning and P-tuning."""

    technique, peft_types = "prompt", ("PROMPT_TUNING", "P_TUNING")
    only: Mapping[str, Sequence[Any]] = {"num_transformer_submodules": (1,)}
    marks: Mapping[str, Any] = {}
    renewed, whole, prefix = (), True, "base_model."

    def write(self, links: Sequence[Link], model: Model, given: bool = False) -> tuple[Tensors, dict[str, Any]]:
        """See `jaxbig.hub.peft_codec.Codec.write`."""
        link = _alone(links)
        ((_, parts),) = link.train.items()
        vectors, hidden = np.asarray(vectors_of(parts)), link.arguments["hidden"]
        config = _CONFIG | {"num_virtual_tokens": vectors.shape[0], "token_dim": vectors.shape[1]}
        if hidden is None:
            start = "SAMPLE_VOCAB" if link.arguments["text"] is None else "RANDOM"
            more = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": start, "prompt_tuning_init_text": None,
                    "tokenizer_name_or_path": None, "tokenizer_kwargs": None}  # fmt: skip
        else:
            more = {"peft_type": "P_TUNING", "encoder_reparameterization_type": "MLP", "encoder_hidden_size": hidden,
                    "encoder_num_layers": 2, "encoder_dropout": 0.0}  # fmt: skip
        return {KEY: vectors}, config | more

    def read(self, config: Mapping[str, Any], tensors: Tensors, model: Model) -> list[Link]:
        """See `jaxbig.hub.peft_codec.Codec.read`."""
        vectors = _taken(tensors)
        tables = sites("prompt", None, model.leaves, model.uses, lookup=True)
        path = max(tables, key=lambda path: tables[path].leaf.shape[0])
        width = tables[path].leaf.shape[-1]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise UserError(f"{KEY} has the shape {vectors.shape}, the model wants (tokens, {width})")
        arguments = {"technique": "prompt", "tokens": len(vectors), "where": re.escape(path)}
        return [Link(arguments, {path: {"prompt": vectors}}, lambda state: state)]


class Prefixes:
    """Prefix tuning: PEFT's cache holds keys and values as attention sees them, ours what stands for x W before that.

    So the bias of a kernel is taken off and put on. A model without a table of positions turns its keys (rotary
    positions) or counts the distance (ALiBi), which no prefix here undoes: it is refused.
    """

    technique, peft_types = "prefix", ("PREFIX_TUNING",)
    only: Mapping[str, Sequence[Any]] = {"num_transformer_submodules": (1,)}
    marks: Mapping[str, Any] = {}
    renewed, whole, prefix = (), True, "base_model."

    def write(self, links: Sequence[Link], model: Model, given: bool = False) -> tuple[Tensors, dict[str, Any]]:
        """See `jaxbig.hub.peft_codec.Codec.write`."""
        _positioned(model)
        link, found = _alone(links), {}
        for path, weight in link.state.items():
            vectors = np.asarray(prefix_of(weight, link.train, path))
            for i, layer in enumerate(model.layers(path)):
                one = vectors[i] if layer.stacked else vectors
                one = one.reshape(len(one), -1)
                one = one + _bias(model, layer).astype(one.dtype)
                for role, columns in _columns(layer, one.shape[1]).items():
                    found[_number(layer), role] = one[:, columns]
        count = 1 + max(number for number, _ in found)
        wanted = [(number, role) for number in range(count) for role in ("key", "value")]
        if set(wanted) != set(found) or len({one.shape for one in found.values()}) > 1:
            raise UserError(
                "prefix: PEFT's file holds a key and a value of one width for each layer; `where` has to name all the "
                "kernels that make them"
            )
        stacked = np.concatenate([found[place] for place in wanted], axis=1)
        width, hidden = stacked.shape[1] // len(wanted), link.arguments["hidden"]
        config = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": len(stacked), "token_dim": width,
                  "num_layers": count, "prefix_projection": hidden is not None, "encoder_hidden_size": hidden or width,
                  "init_weights": None}  # fmt: skip
        return {KEY: stacked}, _CONFIG | config

    def read(self, config: Mapping[str, Any], tensors: Tensors, model: Model) -> list[Link]:
        """See `jaxbig.hub.peft_codec.Codec.read`."""
        _positioned(model)
        vectors = _taken(tensors)
        kernels = {path: model.layers(path) for path, its in model.names.items() if its and _is_kernel(model, path)}
        layers = [layer for its in kernels.values() for layer in its]
        count = 1 + max(map(_number, layers), default=0)
        if vectors.ndim != 2 or vectors.shape[1] % (2 * count) or not layers:
            raise UserError(
                f"{KEY} has the shape {vectors.shape}; there are {count} layers whose names say what is key and value"
            )
        split = vectors.reshape(len(vectors), count, 2, -1)
        train = {}
        for path, its in kernels.items():
            each = [_of_layer(split, layer, model) for layer in its]
            train[path] = {"prefix": np.stack(each) if its[0].stacked else each[0]}
        arguments = {"technique": "prefix", "tokens": len(vectors), "where": [re.escape(path) for path in train]}
        return [Link(arguments, train, lambda state: state)]


def _of_layer(split: np.ndarray, layer: Layer, model: Model) -> np.ndarray:
    """[P, *out] of one kernel, from [P, layers, 2, width]; zeros where it makes neither keys nor values."""
    width = layer.site.matrix[1]
    whole = np.zeros((len(split), width), split.dtype)
    bias = _bias(model, layer).astype(split.dtype)
    for i, (role, columns) in enumerate((r, _columns(layer, width).get(r)) for r in ("key", "value")):
        if columns is None:
            continue
        its = split[:, _number(layer), i]
        if whole[:, columns].shape != its.shape:
            raise UserError(f"{KEY} holds a {role} of {its.shape[1]} numbers, and {layer.path} makes {width}")
        whole[:, columns] = its - (bias[columns] if bias.ndim else bias)
    return whole.reshape(len(split), *layer.site.outputs)


def _alone(links: Sequence[Link]) -> Link:
    if len(links) != 1:
        raise UsageError(
            f"{links[0].arguments['technique']}: there are {len(links)} of them, and PEFT's file holds one"
        )
    return links[0]


def _taken(tensors: Tensors) -> np.ndarray:
    if KEY not in tensors:
        raise UserError(f"{KEY} is missing")
    return tensors.pop(KEY)


def _positioned(model: Model) -> None:
    if not any(re.search("wpe|position", name) for names in model.names.values() for name in names):
        raise UserError(
            "prefix: the model has no table of positions; where keys are turned by their position or scores fall with "
            "the distance, a prefix here is not what PEFT's is"
        )


def _is_kernel(model: Model, path: str) -> bool:
    name = model.names[path][0]
    return name.endswith(".weight") and name.split(".")[-2] in _ROLES


def _columns(layer: Layer, width: int) -> dict[str, slice]:
    """Where the keys and the values are in a kernel's outputs."""
    role = _ROLES.get(layer.stem.rpartition(".")[2])
    if role is None:
        raise UserError(
            f"prefix: {layer.name} does not say whether it makes keys or values; known are {', '.join(_ROLES)}"
        )
    third = width // 3
    return {"key": slice(third, 2 * third), "value": slice(2 * third, width)} if role == "both" else {role: slice(None)}


def _number(layer: Layer) -> int:
    """Of the layer: the first number in the name."""
    found = re.search(r"\.(\d+)\.", layer.name)
    if not found:
        raise UserError(f"prefix: {layer.name} has no number that says which layer it is in")
    return int(found[1])


def _bias(model: Model, layer: Layer) -> np.ndarray:
    """[out], or 0."""
    at = model.of(f"{layer.stem}.bias")
    if at is None:
        return np.zeros(())
    path, i = at
    bias = np.asarray(model.leaves[path])
    return (bias[i] if layer.stacked else bias).reshape(-1)
