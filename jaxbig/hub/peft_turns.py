"""PEFT's methods that multiply a weight: OFT, BOFT, HRA, IA3."""

from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.peft_codec import Codec, by_kind, fits, keys_of
from jaxbig.hub.peft_tensors import Part

_REST = {"exclude_modules": None, "init_weights": True, "layers_to_transform": None, "layers_pattern": None,
         "bias": "none"}  # fmt: skip

_BLOCKS = {"product": (Part("skew", "oft_R.weight", "bk", "bk"),)}


def _block_of(n: int, wanted: int) -> int:
    """The side that PEFT takes for n inputs: the divisor of n that is nearest to the one wanted, the smaller of two.

    Example:
        >>> _block_of(40, 32), _block_of(48, 32), _block_of(12, 32)
        (40, 24, 12)
    """
    if wanted >= n:
        return n
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    return min(divisors, key=lambda k: (abs(k - wanted), k))


def _side(arrays, layer) -> int:
    return layer.site.matrix[0] // len(arrays["skew"])


def _oft_says(arguments, layer, arrays) -> dict[str, Any]:
    terms, side = arguments["terms"], _side(arrays, layer)
    if terms == 3:
        raise UserError("oft: terms=3; the series that PEFT calls so has Q^3 in it, which are the 4 terms here")
    wanted = arguments["block"] if _block_of(layer.site.matrix[0], arguments["block"]) == side else side
    return {"oft_block_size": wanted, "use_cayley_neumann": terms > 0, "num_cayley_neumann_terms": terms or 5}


def _oft_takes(about, layer, tensors) -> dict[str, Any]:
    inputs, terms = layer.site.matrix[0], about["num_cayley_neumann_terms"]
    if about["use_cayley_neumann"] and terms < 2:
        raise UserError(f"oft: num_cayley_neumann_terms={terms} of the config turns nothing")
    wanted = about["oft_block_size"] or inputs // about["r"]
    side = _block_of(inputs, wanted)
    largest = max(k for k in range(1, min(wanted, inputs) + 1) if inputs % k == 0)
    return {
        "block": wanted if largest == side else side,
        "terms": max(terms, 4) if about["use_cayley_neumann"] and terms > 2 else terms * about["use_cayley_neumann"],
    }


def _signed(arrays, series: bool) -> dict[str, Any]:
    """PEFT's inverse is that of I + Q, its series that of I - Q."""
    return {"skew": arrays["skew"] if series else -arrays["skew"]}


OFT = Codec(
    "oft", "OFT", by_kind(_BLOCKS), keys_of(_BLOCKS), _oft_says, _oft_takes,
    _REST | {"r": 0, "oft_block_size": 32, "module_dropout": 0.0, "fan_in_fan_out": False, "coft": False, "eps": 6e-05,
             "block_share": False, "use_cayley_neumann": True, "num_cayley_neumann_terms": 5},
    only={"coft": (False,), "block_share": (False,), "bias": ("none",)},
    before=lambda arrays, arguments, layer: _signed(arrays, arguments["terms"] > 0),
    after=lambda arrays, about, layer: _signed(arrays, about["use_cayley_neumann"]),
)  # fmt: skip

_BUTTERFLY = {"product": (Part("skew", "boft_R", "mbkl", "mbkl"), Part("gain", "boft_s", "o", "o1"))}


def _boft_says(arguments, layer, arrays) -> dict[str, Any]:
    factors, _, side, _ = arrays["skew"].shape
    return {"boft_block_size": side, "boft_block_num": 0, "boft_n_butterfly_factor": factors}


def _boft_takes(about, layer, tensors) -> dict[str, Any]:
    if "boft_R" in tensors and tensors["boft_R"].ndim == 4:
        return {"block": tensors["boft_R"].shape[-1], "factors": tensors["boft_R"].shape[0]}
    return {"block": about["boft_block_size"], "factors": about["boft_n_butterfly_factor"]}


def _whole(arrays, arguments, layer) -> dict[str, Any]:
    """A of PEFT with Q = (A^T - A) / 2, from the entries of Q above the diagonal: A = -Q."""
    skew = arrays["skew"]
    side = layer.site.matrix[0] // skew.shape[-2]
    rows, columns = np.triu_indices(side, 1)
    whole = np.zeros((*skew.shape[:-1], side, side), skew.dtype)
    whole[..., rows, columns], whole[..., columns, rows] = -skew, skew
    return {**arrays, "skew": whole}


def _above(arrays, about, layer) -> dict[str, Any]:
    whole = arrays["skew"]
    rows, columns = np.triu_indices(whole.shape[-1], 1)
    return {**arrays, "skew": ((whole[..., columns, rows] - whole[..., rows, columns]) / 2).astype(whole.dtype)}


BOFT = Codec(
    "boft", "BOFT", by_kind(_BUTTERFLY), keys_of(_BUTTERFLY), _boft_says, _boft_takes,
    _REST | {"boft_block_size": 4, "boft_block_num": 0, "boft_n_butterfly_factor": 1, "boft_dropout": 0.0,
             "fan_in_fan_out": False},
    only={"bias": ("none",)}, before=_whole, after=_above,
)  # fmt: skip

_NORMALS = {kind: (Part("u", "hra_u", "ir", "ir"),) for kind in ("product", "conv")}

HRA = Codec(
    "hra", "HRA", by_kind(_NORMALS), keys_of(_NORMALS),
    lambda arguments, layer, arrays: {"r": arguments["rank"]},
    lambda about, layer, tensors: {"rank": about["r"]},
    _REST | {"r": 8, "apply_GS": False}, only={"apply_GS": (False,), "bias": ("none",)},
)  # fmt: skip


def _gain(layer, arguments) -> list[Part]:
    shape = {"product": {"out": "o1", "in": "1i"}, "conv": {"out": "1os"}}.get(layer.kind, {}).get(arguments["side"])
    if arguments["side"] == "out" and layer.biased and not arguments["biases"]:
        raise UserError(f"ia3: {layer.stem} has a bias, which PEFT scales along; make it with ia3(biases=True)")
    return [Part("gain", "ia3_l", "io"[arguments["side"] == "out"], shape)] if shape else []


def _ia3_takes(about, layer, tensors) -> dict[str, Any]:
    named = about["feedforward_modules"] or []
    given = fits(named, layer.stem) if isinstance(named, str) else any(map(layer.stem.endswith, named))
    return {"side": "in" if given else "out", "biases": not given}


IA3 = Codec(
    "ia3", "IA3", _gain, ["ia3_l"],
    lambda arguments, layer, arrays: {"feedforward_modules": [layer.stem] if arguments["side"] == "in" else []},
    _ia3_takes,
    {"exclude_modules": None, "feedforward_modules": None, "fan_in_fan_out": False, "init_ia3_weights": True},
    joined=("feedforward_modules",),
)  # fmt: skip
