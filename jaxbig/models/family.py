"""What a family of published models tells the rest of jaxbig: its module, and which tensor of a file each leaf is.

A family is one file beside this one. It knows Hugging Face's names for its tensors and for the fields of its
``config.json``, and nothing of files: `jaxbig.hub` reads and writes them by these tables alone.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn

from jaxbig.errors import UserError

LAYERS = "layers"  # the name of a stack whose parameters have a first axis of length L; unrolled: layer_0, layer_1, ...


class Tensor(NamedTuple):
    """One tensor of a file, or, where both names hold ``{}``, one for each layer.

    Attributes:
        path: the leaf, written for an unrolled tree: ``layer_{}/attention/query/kernel``.
        name: the tensor, as the whole model with its head names it: ``model.layers.{}.self_attn.q_proj.weight``.
        turn: how the file's axes become the leaf's: "same"; "matrix", [O, I] -> [I, O]; "conv", [O, I, *sides] ->
            [*sides, I, O].
    """

    path: str
    name: str
    turn: str = "same"


class Family(NamedTuple):
    """One family of models.

    Attributes:
        name: Hugging Face's ``model_type``.
        architectures: their class -> the task of its head, such as {"LlamaForCausalLM": "causal_lm"}; "features" for
            a model without a head.
        module: ``(config, task, **options) -> module``: a linen module whose fields are read from a ``config.json``.
            Options are those of the module that no file knows (scan_layers, remat, dtype, num_classes).
        tensors: ``module -> list of Tensor``: every tensor of the module, each leaf exactly once.
        prefix: transformers' ``base_model_prefix``; files of a bare model leave it out.
        example: ``module -> arrays' shapes`` that the module can be called with.
        alone: ``config -> config``: the ``config.json`` of this part of a larger model, out of the larger one's; it
            gives one that is this family's own as it is. None: the family is no such part.
        settled: ``(config, names of the files' tensors) -> config``, where files say what the config does not; None:
            it says all.
        copies: a tensor that files may hold once more, or in place of another -> that other.
    """

    name: str
    architectures: Mapping[str, str]
    module: Callable[..., nn.Module]
    tensors: Callable[[Any], Sequence[Tensor]]
    prefix: str
    example: Callable[[Any], tuple[Any, ...]]
    alone: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    settled: Callable[[Mapping[str, Any], Collection[str]], Mapping[str, Any]] | None = None
    copies: Mapping[str, str] = MappingProxyType({})


def names_of(tensors: Sequence[Tensor], layers: int) -> Callable[[str], str | list[str] | None]:
    """The function from a leaf's path to its tensor's name, or to one name for each layer of a stack.

    Args:
        tensors: of a family.
        layers: number of layers.

    Returns:
        ``path -> name, names or None``; None for leaves that no tensor is. Paths of stacked and unrolled trees are
        both known, and other entries in front of them (``encoder/layer_0``) as the table has them.

    Example:
        >>> names = names_of([Tensor("body/layer_{}/up/kernel", "h.{}.up.weight", "matrix")], layers=2)
        >>> names("body/layer_1/up/kernel"), names("body/layers/up/kernel"), names("head/kernel")
        ('h.1.up.weight', ['h.0.up.weight', 'h.1.up.weight'], None)
    """
    known: dict[str, str | list[str]] = {}
    for path, name, _ in tensors:
        if "{}" not in path:
            known[path] = name
            continue
        known[path.replace("layer_{}", LAYERS)] = [name.format(i) for i in range(layers)]
        known |= {path.format(i): name.format(i) for i in range(layers)}
    return known.get


def field(config: Mapping[str, Any], name: str, *default: Any) -> Any:
    """A field of a ``config.json``, with an error that says what is missing.

    Example:
        >>> field({"hidden_size": 8}, "hidden_size")
        8
    """
    if name in config:
        return config[name]
    if default:
        return default[0]
    raise UserError(f"config.json: has no {name!r}, which a {config.get('model_type')} model needs")


def square_side(config: Mapping[str, Any], name: str) -> int:
    """A side that files write as a number or as two equal ones.

    Example:
        >>> square_side({"image_size": [8, 8]}, "image_size")
        8
    """
    side = field(config, name)
    rows, columns = side if isinstance(side, list | tuple) else (side, side)
    if rows != columns:
        raise UserError(f"config.json: {name} is {side}; jaxbig's {config.get('model_type')} knows squares")
    return rows


def refuse(config: Mapping[str, Any], **only: Any) -> None:
    """Raises where a config asks for what the family's module does not do; nothing is ignored in silence.

    Args:
        config: the ``config.json``.
        **only: field -> the value, or a tuple of the values, that it may have where it is there.

    Raises:
        UserError: another value.

    Example:
        >>> refuse({"hidden_act": "silu"}, hidden_act=("silu", "swish"))
    """
    for name, allowed in only.items():
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        if name in config and config[name] not in allowed:
            told = " or ".join(repr(value) for value in allowed)
            kind = re.sub(r"\W", "", str(config.get("model_type")))
            raise UserError(f"config.json: {name} is {config[name]!r}; jaxbig's {kind} knows {told}")
