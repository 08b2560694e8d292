"""The tokenizer in a GGUF file's metadata, built through the library that Hugging Face's files are for.

Files name how a text is cut before its bytes are paired (``tokenizer.ggml.pre``) and do not say what the name means:
llama.cpp's program knows. `CUTS` has those names whose meaning is written down here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.errors import UserError
from jaxbig.hub.gguf import Container
from jaxbig.hub.tokenizer import Tokenizer

# What GGUF calls the tokens that jaxbig names, spelled as there.
NAMED = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip
# The kinds of tokens that text does not become by pairing: control tokens and those that somebody added.
CONTROL, ADDED = 3, 4
_KINDS = range(7)
# How texts are cut: by GPT-2's rule alone, by single digits and then by it, by a rule of their own.
_GPT2, _DIGITS = "gpt2", "digits"
_OWN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3, _QWEN2 = _OWN.format(digits="{1,3}"), _OWN.format(digits="")
CUTS = {
    "gpt-2": _GPT2, "smollm": _DIGITS, "starcoder": _DIGITS, "refact": _DIGITS, "command-r": _DIGITS,
    "codeshell": _DIGITS, "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}  # fmt: skip


def tokenizer_of(container: Container) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Args:
        container: what the file holds.

    Returns:
        the tokenizer, with the file's chat template.

    Raises:
        UserError: it is no byte-level pairing ("gpt2"; SentencePiece's and BERT's are not read), texts are cut in a way
            that is not known here, its lists are missing or damaged, or the package `tokenizers` is missing.

    Deviations from llama.cpp: texts of Qwen are brought into Unicode's form NFC first, as its published tokenizer does.
    """
    data, file = container.data, container.file
    kind, cut = data.get("tokenizer.ggml.model"), data.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise UserError(f"{file}: tokenizer.ggml.model is {kind!r:.40}; jaxbig reads gpt2's kind, pairs of bytes")
    if not isinstance(cut, str) or cut not in CUTS:
        raise UserError(f"{file}: tokenizer.ggml.pre is {cut!r:.40}; jaxbig knows {', '.join(CUTS)}")
    tokens, kinds = _tokens(container), _kinds(container)
    named = {
        ours: tokens[number] for ours, name in NAMED.items() if (number := _id(container, name, tokens)) is not None
    }
    try:
        core = _core(tokens, _merges(container), CUTS[cut])
    except ImportError as error:
        raise UserError("reading a tokenizer needs the package tokenizers: pip install 'jaxbig[hub]'") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file}: its tokenizer cannot be built ({error}); fetch it again") from error
    _add(core, tokens, kinds)
    _surround(core, container, named, cut)
    template = data.get("tokenizer.chat_template")
    return Tokenizer(core, named, template if isinstance(template, str) and template else None, str(file))


def _damaged(container: Container, what: str) -> UserError:
    return UserError(f"{container.file}: is damaged: {what}; fetch it again")


def _tokens(container: Container) -> list[str]:
    tokens = container.data.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise _damaged(container, "tokenizer.ggml.tokens is no list of texts")
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))
        raise _damaged(container, f"its token {twice!r:.60} is given twice")
    return tokens


def _kinds(container: Container) -> np.ndarray:
    count = len(container.data["tokenizer.ggml.tokens"])
    kinds = container.data.get("tokenizer.ggml.token_type", np.ones(count, np.int32))
    if not isinstance(kinds, np.ndarray) or kinds.shape != (count,) or not np.isin(kinds, _KINDS).all():
        raise _damaged(container, f"tokenizer.ggml.token_type is no list of {count:,} kinds of tokens")
    return kinds


def _merges(container: Container) -> list[tuple[str, str]]:
    merges = container.data.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(pair, str) and pair.count(" ") == 1 for pair in merges):
        raise _damaged(container, "tokenizer.ggml.merges is no list of pairs of tokens")
    return [(first, second) for first, _, second in (pair.partition(" ") for pair in merges)]


def _id(container: Container, name: str, tokens: list[str]) -> int | None:
    found = container.data.get(f"tokenizer.ggml.{name}_token_id")
    if found is None:
        return None
    if type(found) is not int or not 0 <= found < len(tokens):
        raise _damaged(container, f"tokenizer.ggml.{name}_token_id is {found!r:.40}, of {len(tokens):,} tokens")
    return found


def _core(tokens: list[str], merges: list[tuple[str, str]], cut: str) -> Any:
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Core

    pairs = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=cut == _LLAMA3
    )  # fmt: skip
    core = Core(pairs)
    bytes_of = lambda regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)  # noqa: E731
    if cut == _GPT2:
        core.pre_tokenizer = bytes_of(True)
    elif cut == _DIGITS:
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of(True)])
    else:
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cut), "isolated"), bytes_of(False)])
    if cut == _QWEN2:
        core.normalizer = normalizers.NFC()
    core.decoder = decoders.ByteLevel()
    return core


def _add(core: Any, tokens: list[str], kinds: np.ndarray) -> None:
    """Control tokens are special: `Tokenizer.decode` leaves them out. Those that somebody added are found in texts."""
    from tokenizers import AddedToken

    for kind, special in ((CONTROL, True), (ADDED, False)):
        found = [
            AddedToken(tokens[i], normalized=False, special=special) for i in np.flatnonzero(kinds == kind) if tokens[i]
        ]
        (core.add_special_tokens if special else core.add_tokens)(found)


def _surround(core: Any, container: Container, named: Mapping[str, str], cut: str) -> None:
    """The tokens that begin and end every text; Llama 3's begin one where the file does not say."""
    from tokenizers.processors import TemplateProcessing

    usual = {"bos": CUTS[cut] == _LLAMA3, "eos": False}
    asked = {name: container.data.get(f"tokenizer.ggml.add_{name}_token", usual[name]) for name in usual}
    used = [name for name, wanted in asked.items() if wanted is True]
    for name in used:
        if name not in named:
            raise _damaged(container, f"it adds the {name} token to texts, and has none")
    if used:
        before = [named["bos"]] if "bos" in used else []
        after = [named["eos"]] if "eos" in used else []
        core.post_processor = TemplateProcessing(
            single=[*before, "$A", *after], pair=[*before, "$A", *after, *before, "$B:1", *after],
            special_tokens=[(token, core.token_to_id(token)) for token in dict.fromkeys([*before, *after])],
        )  # fmt: skip


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a tokenizer as Hugging Face's files have it, which `jaxbig.hub.tokenizer.read_tokenizer` reads.

    Args:
        tokenizer: the tokenizer.
        folder: gets ``tokenizer.json`` and ``tokenizer_config.json``.
    """
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {f"{name}_token": token for name, token in tokenizer.named.items()}
    if tokenizer.template is not None:
        config["chat_template"] = tokenizer.template
    (folder / "tokenizer.json").write_text(tokenizer.core.to_str(), encoding="utf-8")
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
