"""What PEFT saves of parameters themselves: normalisation layers, rows of a table, modules that are saved whole."""

from typing import Any

from jaxbig.errors import UserError
from jaxbig.hub.peft_codec import Codec, by_kind
from jaxbig.hub.peft_tensors import Part

LN_TUNING = Codec(
    "ln_tuning", "LN_TUNING",
    lambda layer, arguments: [Part("", "ln_tuning_layers.{leaf}", "W", "W")], ["ln_tuning_layers.{leaf}"],
    lambda arguments, layer, arrays: {}, lambda about, layer, tensors: {}, {"exclude_modules": None},
)  # fmt: skip

# transformers' Conv1D, whose kernels lie as ours do and not as torch's; other models have linear layers of that name.
_EITHER = ("c_attn", "c_proj", "c_fc", "q_attn")


def _whole(layer, arguments) -> list[Part]:
    if layer.kind == "product" and layer.stem.rpartition(".")[2] in _EITHER:
        raise UserError(
            f"full: {layer.name} may be a linear layer's [out, in] or a Conv1D's [in, out], which its name does not "
            "tell; adapt it instead, or leave it out"
        )
    return [Part("", "{leaf}", "W", "W")]


# Beside an adapter of any kind; the config names them in ``modules_to_save``.
FULL = Codec(
    "full", "", _whole, ["{leaf}"],
    lambda arguments, layer, arrays: {}, lambda about, layer, tensors: {}, {}, once=True,
)  # fmt: skip

_ROWS = {"lookup": (Part("rows", "trainable_tokens_delta", "nO", "no"),)}


def _tokens_say(arguments, layer, arrays) -> dict[str, Any]:
    if layer.site.in_axes != (-2,):
        raise UserError(f"trainable_tokens: {layer.path} has its rows along another axis than PEFT's tables have")
    return {"token_indices": list(arguments["tokens"])}


def _tokens_take(about, layer, tensors) -> dict[str, Any]:
    return {"tokens": _tokens_say({"tokens": about["token_indices"]}, layer, {})["token_indices"]}


TRAINABLE_TOKENS = Codec(
    "trainable_tokens", "TRAINABLE_TOKENS", by_kind(_ROWS), ["trainable_tokens_delta"], _tokens_say, _tokens_take,
    {"init_weights": True}, once=True, copied="trainable_tokens_delta",
    whole=False,
)  # fmt: skip
