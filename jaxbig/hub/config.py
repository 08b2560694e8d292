"""A published model's ``config.json``: what it says of the task, and the checks that come before a module is built."""

from collections.abc import Mapping
from typing import Any

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.gguf import Held
from jaxbig.hub.safetensors_file import Stored
from jaxbig.models.family import Family

Config = dict[str, Any]
# Fields that are numbers of something in every family that has them; the families read more, and check those.
_COUNTS = (
    "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "type_vocab_size",
    "n_embd", "n_head", "n_positions", "n_inner", "n_heads", "dim", "hidden_dim", "d_model", "d_ff", "d_kv",
    "num_heads", "head_dim", "num_channels", "num_labels", "encoder_attention_heads", "decoder_attention_heads",
    "encoder_ffn_dim", "decoder_ffn_dim", "num_mel_bins", "max_source_positions", "max_target_positions",
    "classifier_proj_size", "relative_attention_num_buckets",
)  # fmt: skip
_LAYERS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers",
)  # fmt: skip
# Computed, so not in the files.
_POSITIONS = ("max_position_embeddings", "sliding_window", "max_window_layers", "relative_attention_max_distance")
_SIDES = ("image_size", "patch_size")
_PARTS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")
MOST_LAYERS = 2048  # a module of more takes hours to build


def check(config: Mapping[str, Any], where: Any, stored: Mapping[str, Stored] | Mapping[str, Held]) -> None:
    """Raises where a config cannot be that of a model with such files: no module of a billion layers is ever built.

    Args:
        config: ``config.json``.
        where: its path, for messages.
        stored: the tensors of the files.

    Raises:
        UserError: a size is no whole number, there are more layers than tensors or a side is longer than all tensors
            together, there are more than 2048 layers, or the weights are quantised.

    Example:
        >>> check({"n_layer": 10**9}, "config.json", {})
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: config.json: n_layer is 1000000000; the files hold 0 tensors in all: they are
        another model's
    """
    elements = sum(tensor.size for tensor in stored.values())
    for name in (*_COUNTS, *_LAYERS, *_POSITIONS):
        value = config.get(name)
        if value is not None and (type(value) is not int or not 0 <= value < 2**31):
            raise UserError(f"{where}: {name} is {value!r:.40}; it has to be a whole number below 2**31")
        if name in _LAYERS and (value or 0) > len(stored):
            raise UserError(
                f"{where}: {name} is {value}; the files hold {len(stored)} tensors in all: they are another model's"
            )
        if name in _LAYERS and (value or 0) > MOST_LAYERS:
            raise UserError(f"{where}: {name} is {value}; jaxbig builds models of at most {MOST_LAYERS} layers")
        if name in _COUNTS and (value or 0) > max(elements, 2**16):
            raise UserError(
                f"{where}: {name} is {value}; the files hold {elements} numbers in all: they are another model's"
            )
    for name in _SIDES:
        value = config.get(name)
        for side in value if isinstance(value, list) else [value]:
            if side is not None and (type(side) is not int or not 1 <= side <= 2**16):
                raise UserError(f"{where}: {name} is {value!r:.40}; it has to be a number of pixels, at most 65536")
    for name in _PARTS:
        if isinstance(part := config.get(name), Mapping):
            check(part, f"{where}: {name}", stored)
    if config.get("quantization_config"):
        raise UserError(
            f"{where}: has a quantization_config: its weights are codes, which jaxbig does not read; load the model in "
            "16 bits and quantise it with jaxbig.quantize"
        )


def task_of(config: Mapping[str, Any], family: Family, where: Any) -> str:
    """The task of the head that a config names.

    Raises:
        UserError: it names no architecture, or none that the family has.
    """
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise UserError(f"{where}: names no architecture; pass task=, one of {_tasks(family)}")
    if named[0] not in family.architectures:
        raise UserError(
            f"{where}: the architecture {named[0]!r:.80} is none of jaxbig's {family.name}, which has "
            f"{', '.join(family.architectures)}; pass task= to read it as one of {_tasks(family)}"
        )
    return family.architectures[named[0]]


def for_task(config: Mapping[str, Any], family: Family, task: str, num_classes: int | None = None) -> Config:
    """The config of the same model with a head for a task.

    Args:
        config: ``config.json``.
        family: the model's.
        task: one of those that the family has.
        num_classes: of the head; None: as the config says.

    Returns:
        a copy with the architecture, and names for the classes where their number is another.

    Raises:
        UsageError: the family has no such task.

    Example:
        >>> family = Family("toy", {"ToyForSequenceClassification": "sequence_classification"}, None, None, "toy", None)
        >>> for_task({}, family, "sequence_classification", 2)["id2label"]
        {'0': 'LABEL_0', '1': 'LABEL_1'}
    """
    if task not in family.architectures.values():
        raise UsageError(f"task={task!r}: jaxbig's {family.name} has {_tasks(family)}")
    found = dict(config)
    given = config.get("architectures") or [""]
    if family.architectures.get(given[0]) != task:
        found["architectures"] = [next(name for name, its in family.architectures.items() if its == task)]
    if num_classes is not None:
        labels = config.get("id2label")
        if not isinstance(labels, dict) or len(labels) != num_classes:
            found["id2label"] = {str(i): f"LABEL_{i}" for i in range(num_classes)}
            found["label2id"] = {name: int(i) for i, name in found["id2label"].items()}
        if "num_labels" in found:
            found["num_labels"] = num_classes
    return found


def _tasks(family: Family) -> str:
    return ", ".join(dict.fromkeys(family.architectures.values()))
