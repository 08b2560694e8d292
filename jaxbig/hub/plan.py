"""Which tensors of a folder fill which leaves of a module, decided before any of them is read."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.fill import Source, stored_shape
from jaxbig.hub.safetensors_file import Stored
from jaxbig.models.family import LAYERS, Tensor

WEIGHTS = ("BF16", "F16", "F32", "F64")  # dtypes of narrower floats and of integers are codes, whose scales are others'


class Named(NamedTuple):
    """A leaf's tensors.

    Attributes:
        names: one, or one for each layer of a stack.
        stacked: whether the leaf has a first axis for them.
        turn: how their axes become the leaf's.
        head: whether a model without a head has none of them; then they may be missing.
    """

    names: tuple[str, ...]
    stacked: bool
    turn: str
    head: bool = False


class Plan(NamedTuple):
    """Attributes: sources: path -> what fills it; fresh: paths that no tensor fills; unused: tensors that fill none."""

    sources: dict[str, Source]
    fresh: list[str]
    unused: list[str]


def named(
    tensors: Sequence[Tensor], shapes: Mapping[str, Any], bare: Sequence[Tensor] | None = None
) -> dict[str, Named]:
    """The tensors of each leaf of a tree, unrolled or stacked.

    Args:
        tensors: of a family.
        shapes: path -> leaf or its shape.
        bare: those of the same model without a head; None: not known.

    Returns:
        path -> names.

    Raises:
        UserError: a leaf that the family does not know.

    Example:
        >>> import jax
        >>> stack = {"layers/up": jax.ShapeDtypeStruct((2, 3), "float32")}
        >>> named([Tensor("layer_{}/up", "h.{}.up")], stack)["layers/up"].names
        ('h.0.up', 'h.1.up')
    """
    known = {tensor.path: tensor for tensor in tensors}
    body = {tensor.name for tensor in (tensors if bare is None else bare)}
    return {path: _named(path, leaf, known, body) for path, leaf in shapes.items()}


def _named(path: str, leaf: Any, known: Mapping[str, Tensor], body: Set[str]) -> Named:
    if path in known:
        return Named((known[path].name,), False, known[path].turn, known[path].name not in body)
    parts = path.split("/")
    for i, part in enumerate(parts):
        template = "/".join([*parts[:i], "layer_{}", *parts[i + 1 :]])
        if template not in known:
            continue
        tensor = known[template]
        head = tensor.name not in body
        if part == LAYERS:
            return Named(tuple(tensor.name.format(k) for k in range(leaf.shape[0])), True, tensor.turn, head)
        if found := re.fullmatch(r"layer_(\d+)", part):
            return Named((tensor.name.format(found[1]),), False, tensor.turn, head)
    raise UserError(f"{path}: the model's family does not say which tensor of a file it is")


class Given(NamedTuple):
    """What is asked of a plan.

    Attributes:
        leaves: path -> its tensors.
        shapes: path -> leaf or its shape.
        prefix: what files of bare models leave out in front of names.
        dtype: of the leaves; None: the file's.
        new_classes: whether a head's leaf of another shape than the file's is one that no tensor fills.
    """

    leaves: Mapping[str, Named]
    shapes: Mapping[str, Any]
    prefix: str
    dtype: Any = None
    new_classes: bool = False


def planned(stored: Mapping[str, Stored], given: Given) -> Plan:
    """Finds the tensors of every leaf and compares their shapes with the model's.

    Args:
        stored: the files' tensors.
        given: what is wanted.

    Returns:
        the plan.

    Raises:
        UserError: a tensor is missing, has another shape than the model's, or is no float of 16 bits or more.
    """
    sources: dict[str, Source] = {}
    fresh, used = [], set()
    for path, its in given.leaves.items():
        found = [find(stored, name, given.prefix) for name in its.names]
        layer = stored_shape(given.shapes[path].shape[1 if its.stacked else 0 :], its.turn)
        tensors = []
        for name, tensor in zip(its.names, found, strict=True):
            if tensor is not None and (tensor.shape == layer or not (its.head and given.new_classes)):
                tensors.append(_checked(tensor, layer, path))
            elif not its.head or tensors:
                raise _missing(name, path, stored)
        if not tensors:
            fresh.append(path)
            continue
        if len(tensors) < len(its.names):
            raise _missing(its.names[0], path, stored)
        used |= {tensor.name for tensor in tensors}
        shape = tuple(given.shapes[path].shape)
        sources[path] = Source(tuple(tensors), its.stacked, its.turn, shape, _dtype(tensors, given))
    return Plan(sources, fresh, [name for name in stored if name not in used])


def find(stored: Mapping[str, Stored], name: str, prefix: str) -> Stored | None:
    """A tensor by its own name, with the prefix or without it, or by what LayerNorm's were called at first.

    Example:
        >>> find({"wte.weight": "the table"}, "transformer.wte.weight", "transformer")
        'the table'
    """
    bare = name.removeprefix(prefix + ".")
    for whole in dict.fromkeys([name, bare, f"{prefix}.{bare}"]):
        old = re.sub(r"(LayerNorm)\.weight$", r"\1.gamma", re.sub(r"(LayerNorm)\.bias$", r"\1.beta", whole))
        for known in (whole, old):
            if known in stored:
                return stored[known]
    return None


def _missing(name: str, path: str, stored: Mapping[str, Stored]) -> UserError:
    where = next(iter(stored.values())).file.parent if stored else "the file"
    return UserError(
        f"{where}: {name} (the model's {path}) is in none of its files; give the folder of the whole model"
    )


def _checked(tensor: Stored, shape: Sequence[int], path: str) -> Stored:
    if tensor.shape != tuple(shape):
        raise UserError(
            f"{tensor.file}: {tensor.name} has the shape {list(tensor.shape)}; {list(shape)} is what config.json makes "
            f"the model's {path}"
        )
    if tensor.code not in WEIGHTS:
        raise UserError(
            f"{tensor.file}: {tensor.name} is stored as {tensor.code}; weights are read in {', '.join(WEIGHTS)}: load "
            "the model in 16 bits and quantise it with jaxbig.quantize"
        )
    return tensor


def _dtype(tensors: Sequence[Stored], given: Given) -> np.dtype:
    """Of a leaf: the one asked for, or the widest of its layers'; 64 bits only where JAX has them on."""
    dtype = given.dtype
    if dtype is None:
        dtype = functools.reduce(jnp.promote_types, [tensor.dtype for tensor in tensors])
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


Names = Callable[[str], str | list[str] | None]


def names_by(leaves: Mapping[str, Named]) -> Names:
    """A function from a path to the name of its tensor, or to a list of them for a stack, as adapters' files want it.

    Example:
        >>> names_by({"head/kernel": Named(("lm_head.weight",), False, "matrix")})("head/kernel")
        'lm_head.weight'
    """
    table = {path: list(its.names) if its.stacked else its.names[0] for path, its in leaves.items()}
    return table.get
