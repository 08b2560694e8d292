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

# Beside an adapter of any kind; the config names them in ``modules_to_save``.
FULL = Codec(
    "full", "",
    lambda layer, arguments: [Part("", "{leaf}", "W", "W")], ["{leaf}"],
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
    {"init_weights": True}, once=True, whole=False,
)  # fmt: skip
