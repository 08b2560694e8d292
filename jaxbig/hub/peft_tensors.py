"""One tensor of PEFT's files and the array here that it is: which axes each has, in which order.

Axes are told by letters, here and in torch::

    Part("a", "lora_A.weight", "Ir", "rI")      our a [*in, r] is PEFT's lora_A.weight [r, in]

Legend: I inputs, O outputs; i, o the same, always flattened; W the axes of the whole parameter; 1 an axis of length 1;
s one axis of length 1 for each of a convolution's window; any other letter an axis of the method's own. In torch, I
and O are flattened, but for a convolution's inputs: channels come first there, and then the window.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxbig.hub.peft_model import Layer
from jaxbig.site import Site

Axis = tuple[str, int]


class Part(NamedTuple):
    """A tensor of one module.

    Attributes:
        name: of the array in ``train[path]``; "" where that is the array itself.
        key: what follows the module's name in the file; one with ``{leaf}`` follows the name of what holds the
            parameter, and ``{leaf}`` is the parameter's own.
        ours, theirs: letters of the axes.
    """

    name: str
    key: str
    ours: str
    theirs: str

    def full(self, layer: Layer) -> str:
        """The tensor's name, without the prefix of all.

        Example:
            >>> layer = Layer("norm/bias", "norm.bias", None, False, False, False)
            >>> Part("", "ln_tuning_layers.{leaf}", "W", "W").full(layer)
            'norm.ln_tuning_layers.bias'
        """
        if "{leaf}" not in self.key:
            return f"{layer.stem}.{self.key}"
        parent, _, leaf = layer.name.rpartition(".")
        return ".".join(filter(None, (parent, self.key.replace("{leaf}", leaf))))


def to_peft(part: Part, layer: Layer, array: np.ndarray) -> np.ndarray:
    """The tensor that one layer's array is."""
    return _turned(array, _groups(part.ours, layer.site, False), _groups(part.theirs, layer.site, True), layer.site)


def from_peft(part: Part, layer: Layer, tensor: np.ndarray) -> np.ndarray:
    """One layer's array.

    Raises:
        ValueError: the tensor's shape is another; the text says which it should be, letters where any will do.
    """
    return _turned(tensor, _groups(part.theirs, layer.site, True), _groups(part.ours, layer.site, False), layer.site)


def _groups(letters: str, site: Site, torch: bool) -> list[list[Axis]]:
    """For each axis of an array, the logical axes that are flattened in it."""
    kind = site.use.kind
    inputs = [("I", i) for i in range(len(site.inputs))]
    outputs = [("O", i) for i in range(len(site.outputs))]
    if torch and kind == "conv":
        inputs = inputs[-1:] + inputs[:-1]
    apart = {"I": [[axis] for axis in inputs], "O": [[axis] for axis in outputs]}
    if torch:
        apart = {"I": apart["I"] if kind == "conv" else [inputs], "O": [outputs]}
    whole = _whole(site, apart, torch)
    special = {**apart, "i": [inputs], "o": [outputs], "W": whole, "1": [[]], "s": [[] for _ in inputs[1:]]}
    return [group for letter in letters for group in special.get(letter, [[(letter, 0)]])]


def _whole(site: Site, apart: dict[str, list[list[Axis]]], torch: bool) -> list[list[Axis]]:
    n, use = len(site.leaf.shape), site.use
    if use.kind not in ("product", "conv", "lookup"):
        return [[("W", i)] for i in range(n)]
    if torch:
        return apart["I"] + apart["O"] if use.kind == "lookup" else apart["O"] + apart["I"]
    places = {axis: ("I", i) for i, axis in enumerate(use.in_axes)}
    places |= {axis: ("O", i) for i, axis in enumerate(use.out_axes)}
    return [[places[axis]] for axis in range(-n, 0)]


def _turned(array: np.ndarray, source: list[list[Axis]], target: list[list[Axis]], site: Site) -> np.ndarray:
    sizes: dict[Axis, int] = {("I", i): n for i, n in enumerate(site.inputs)}
    sizes |= {("O", i): n for i, n in enumerate(site.outputs)}
    sizes |= {("W", i): n for i, n in enumerate(site.leaf.shape)}
    length = lambda group: math.prod(sizes[axis] for axis in group)  # noqa: E731
    wanted = [length(group) if all(axis in sizes for axis in group) else group[0][0] for group in source]
    fits = len(wanted) == array.ndim and all(
        isinstance(want, str) or want == n for want, n in zip(wanted, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"has the shape {array.shape}, the model wants ({', '.join(map(str, wanted))})")
    sizes |= {group[0]: n for group, want, n in zip(source, wanted, array.shape, strict=True) if isinstance(want, str)}
    before, after = ([axis for group in groups for axis in group] for groups in (source, target))
    apart = array.reshape([sizes[axis] for axis in before])
    return np.transpose(apart, [before.index(axis) for axis in after]).reshape([length(group) for group in target])
