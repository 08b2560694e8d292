"""PEFT's updates of other forms than low rank: LoHa, LoKr, FourierFT, SHiRA."""

import math
from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.peft_codec import Codec, by_kind, keys_of
from jaxbig.hub.peft_tensors import Part
from jaxbig.tune.fourierft import SHUFFLED, drawn
from jaxbig.tune.lokr import divided

_PATTERNS = {"r": "rank_pattern", "alpha": "alpha_pattern"}
_LYCORIS = {
    "r": 8, "alpha": 8, "rank_pattern": {}, "alpha_pattern": {}, "rank_dropout": 0.0, "module_dropout": 0.0,
    "use_effective_conv2d": False, "exclude_modules": None, "init_weights": True, "layers_to_transform": None,
    "layers_pattern": None,
}  # fmt: skip

_HADAMARD = {
    kind: (
        Part("a1", "hada_w1_b", "ir", "ri"), Part("b1", "hada_w1_a", "ro", "or"),
        Part("a2", "hada_w2_b", "ir", "ri"), Part("b2", "hada_w2_a", "ro", "or"),
    )
    for kind in ("product", "conv")
}  # fmt: skip


def _ranked(arguments, layer, arrays) -> dict[str, Any]:
    return {"r": arguments["rank"], "alpha": arguments["alpha"]}


LOHA = Codec(
    "loha", "LOHA", by_kind(_HADAMARD), keys_of(_HADAMARD), _ranked,
    lambda about, layer, tensors: {"rank": about["r"], "alpha": float(about["alpha"])},
    _LYCORIS, patterns=_PATTERNS,
)  # fmt: skip

_KRONECKER = (
    Part("c", "lokr_w1", "xy", "yx"), Part("d", "lokr_w2", "xy", "yx"),
    Part("a", "lokr_w2_b", "xr", "rx"), Part("b", "lokr_w2_a", "ry", "yr"),
)  # fmt: skip


def _kronecker(layer, arguments) -> list[Part]:
    """The second factor is whole where the rank is no less than half of its larger side."""
    if layer.kind != "product":
        return []
    sides = [divided(n, arguments["factor"])[1] for n in layer.site.matrix]
    names = "cab" if 2 * arguments["rank"] < max(sides) else "cd"
    return [part for part in _KRONECKER if part.name in names]


LOKR = Codec(
    "lokr", "LOKR", _kronecker, [part.key for part in _KRONECKER],
    lambda arguments, layer, arrays: (
        _ranked(arguments, layer, arrays) | {"decompose_factor": arguments["factor"]}
    ),
    lambda about, layer, tensors: {
        "rank": about["r"], "alpha": float(about["alpha"]), "factor": about["decompose_factor"]
    },
    _LYCORIS | {"decompose_both": False, "decompose_factor": -1, "rank_dropout_scale": False},
    patterns=_PATTERNS,
)  # fmt: skip

_SPECTRUM = {"product": (Part("spectrum", "fourierft_spectrum", "n", "n"),)}


def _fourier_says(arguments, layer, arrays) -> dict[str, Any]:
    return {
        "n_frequency": arguments["frequencies"],
        "scaling": arguments["scale"],
        "random_loc_seed": arguments["seed"],
        "init_weights": arguments["zero"],
    }


def _fourier_takes(about, layer, tensors) -> dict[str, Any]:
    if math.prod(layer.site.matrix) >= SHUFFLED:
        raise UserError(f"fourierft: {layer.path} is too large for the places that torch draws to be known here")
    return {
        "frequencies": about["n_frequency"],
        "scale": float(about["scaling"]),
        "seed": about["random_loc_seed"],
        "zero": bool(about["init_weights"]),
    }


def _places_of_each(link, path) -> dict[str, Any]:
    """One set for all layers of a stack, said of each."""
    places, stack = link.state[path].places, link.train[path]["spectrum"].shape[:-1]
    return {"places": np.broadcast_to(places, (*stack, len(places)))}


def _drawn_alike(arrays, arguments, layer) -> dict[str, Any]:
    """PEFT keeps no places but draws them again: those of the adapter have to be the same."""
    inputs, outputs = layer.site.matrix
    places = drawn(arguments["seed"], inputs, outputs, arguments["frequencies"])
    if inputs * outputs >= SHUFFLED or not np.array_equal(places, arrays["places"]):
        raise UserError(
            f"fourierft: the places of {layer.path} are not those that PEFT draws from the seed {arguments['seed']}, "
            "and its file holds none"
        )
    return arrays


FOURIERFT = Codec(
    "fourierft", "FOURIERFT", by_kind(_SPECTRUM), keys_of(_SPECTRUM), _fourier_says, _fourier_takes,
    {"n_frequency": 1000, "scaling": 150.0, "random_loc_seed": 777, "fan_in_fan_out": False, "exclude_modules": None,
     "bias": "none", "layers_to_transform": None, "layers_pattern": None, "n_frequency_pattern": {},
     "init_weights": False},
    only={"bias": ("none",)}, patterns={"n_frequency": "n_frequency_pattern"}, before=_drawn_alike,
    frozen=_places_of_each,
)  # fmt: skip

_ENTRIES = {"product": (Part("values", "shira_weight", "n", "n"), Part("pairs", "shira_indices", "pn", "pn"))}


def _shira_says(arguments, layer, arrays) -> dict[str, Any]:
    if arguments["scale"] != 1:
        raise UserError(f"shira: scale={arguments['scale']}; PEFT's file holds none: multiply the values by it")
    return {"r": arguments["rank"]}


def _as_pairs(arrays, arguments, layer) -> dict[str, Any]:
    """Places in I x O as PEFT's (output, input)."""
    rows, columns = np.divmod(arrays["places"], layer.site.matrix[1])
    return {"values": arrays["values"], "pairs": np.stack([columns, rows]).astype(np.int32)}


def _as_places(arrays, about, layer) -> dict[str, Any]:
    columns, rows = arrays["pairs"].astype(np.int64)
    inputs, outputs = layer.site.matrix
    places = rows * outputs + columns
    fits = (rows >= 0) & (rows < inputs) & (columns >= 0) & (columns < outputs)
    if not fits.all() or len(np.unique(places)) < len(places):
        raise UserError(f"{layer.stem}.shira_indices are no distinct entries of a matrix [{outputs}, {inputs}]")
    return {"values": arrays["values"], "places": places.astype(np.int32)}


def _shira_settled(state, arrays, shared) -> dict[str, Any]:
    return {path: state[path].replace(places=its["places"]) for path, its in arrays.items()}


SHIRA = Codec(
    "shira", "SHIRA", by_kind(_ENTRIES), keys_of(_ENTRIES), _shira_says,
    lambda about, layer, tensors: {"rank": about["r"], "scale": 1.0},
    {"r": 32, "mask_type": "random", "random_seed": None, "fan_in_fan_out": False, "init_weights": True},
    before=_as_pairs, after=_as_places, frozen=lambda link, path: {"places": link.state[path].places},
    settle=_shira_settled,
)  # fmt: skip
