"""A model that writes texts, with its tokenizer, from whatever format a path holds."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxbig.errors import UsageError, UserError
from jaxbig.hub import llama2c
from jaxbig.hub.chat import render
from jaxbig.hub.folder import CONFIG, read_json
from jaxbig.hub.gguf import is_gguf
from jaxbig.hub.load import load
from jaxbig.hub.model import Model
from jaxbig.hub.tokenizer import Tokenizer
from jaxbig.models.families import family_of


class TextModel(NamedTuple):
    """What it takes to go on with a text.

    Attributes:
        module: a decoder, or an encoder-decoder that reads texts.
        params: its parameters.
        encode: text -> ids, with what begins a text.
        decode: ids -> text.
        ends: ids that end a text.
        positions: the longest text that the model is made for, in tokens; None: nothing says.
        kind: of the format, for people.
        talk: messages, see `jaxbig.hub.chat.render` -> ids up to where the answer begins; None: there is no template.
        answers: what it writes is a text by itself, as an encoder-decoder's, and does not go on with the prompt.
    """

    module: Any
    params: Any
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    ends: tuple[int, ...]
    positions: int | None
    kind: str
    talk: Callable[[Sequence[Mapping[str, Any]]], list[int]] | None = None
    answers: bool = False


def text_model(path: str | Path) -> TextModel:
    """The model that a path holds; which format it is, the files' contents say.

    Args:
        path: a folder as Hugging Face has it, with a decoder or an encoder-decoder such as T5, and its tokenizer; one
            with a model of llama2.c; or a GGUF file, whose codes stay codes.

    Returns:
        the model.

    Raises:
        UsageError: there is nothing at the path, or nothing that is known here.
        UserError: a file is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    for known in _FORMATS:
        found = known(path)
        if found is not None:
            return found
    raise UsageError(
        f"{path}: no model that jaxbig can write texts with; it knows Hugging Face's folders (with a "
        "config.json), llama2.c's (two files *.bin) and GGUF files"
    )


def _llama2c(path: Path) -> TextModel | None:
    if not path.is_dir() or llama2c.find(path) is None:
        return None
    module, params, tokenizer, positions = llama2c.read_llama2c(path)
    return TextModel(module, params, tokenizer.encode, tokenizer.decode, tokenizer.ends, positions, "llama2.c")


def _hugging_face(path: Path) -> TextModel | None:
    return _published(path, "Hugging Face") if (path / CONFIG).is_file() else None


def _gguf(path: Path) -> TextModel | None:
    return _published(path, "GGUF") if is_gguf(path) else None


def _published(path: Path, kind: str) -> TextModel:
    model = load(path, task_of(path))
    return writer(model, model.params, kind)


def task_of(path: Path) -> str:
    """The task of a published model that writes texts: "seq2seq_lm" of an encoder-decoder, else "causal_lm".

    Raises:
        UsageError: a model that hears.
    """
    config = read_json(path / CONFIG) if path.is_dir() else {"model_type": "llama"}
    if config.get("model_type") == "whisper":
        raise UsageError(f"{path}: a Whisper, which hears; `jaxbig.generate.seq2seq` writes what it hears")
    return "seq2seq_lm" if "seq2seq_lm" in family_of(config).architectures.values() else "causal_lm"


def writer(model: Model, params: Any, kind: str) -> TextModel:
    """A published model that `jaxbig.load` gave, with these parameters, as one that writes.

    Args:
        model: of the task "causal_lm" or "seq2seq_lm", from a folder or file.
        params: leaves may be Weights.
        kind: of the format, for people.

    Raises:
        UserError: its head is in no file.
    """
    if model.fresh:
        raise UserError(f"{model.path}: has no {', '.join(model.fresh)}, so no head to write with; give a whole model")
    tokenizer, answers = model.tokenizer, model.task == "seq2seq_lm"
    # Of an encoder-decoder a text has no positions in common with its prompt.
    positions = None if answers else next((model.config[name] for name in LENGTHS if name in model.config), None)
    ends = () if model.path is None else ends_of(model.path, model.config, tokenizer)
    talk = partial(_talk, tokenizer) if tokenizer.template else None
    return TextModel(model.module, params, tokenizer.encode, tokenizer.decode, ends, positions, kind, talk, answers)


LENGTHS = ("max_position_embeddings", "n_positions")


def ends_of(path: str | Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a text: as generation_config.json says, else config.json, else the tokenizer.

    Args:
        path: the model's folder or file.
        config: its ``config.json``.
        tokenizer: its tokenizer.
    """
    generation = Path(path) / "generation_config.json"
    told = (read_json(generation) if generation.is_file() else {}, config, {"eos_token_id": tokenizer.ids.get("eos")})
    found: Any = next((each["eos_token_id"] for each in told if each.get("eos_token_id") is not None), [])
    return tuple(found) if isinstance(found, list) else (found,)


def _talk(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    return tokenizer.encode(render(tokenizer, messages), special=False)


# Each looks at a path and gives the model, or None where it is of another format.
_FORMATS: tuple[Callable[[Path], TextModel | None], ...] = (_hugging_face, _llama2c, _gguf)
