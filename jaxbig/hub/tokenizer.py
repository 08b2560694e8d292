"""A published model's tokenizer: text to token ids and back, by the library that its files are written for.

``tokenizer.json`` is the tokenizer; ``tokenizer_config.json`` and ``special_tokens_map.json`` name the tokens that mean
something (the end of a text, padding, ...) and may carry the chat template. Older folders without a tokenizer.json have
BERT's ``vocab.txt`` or GPT-2's ``vocab.json`` and ``merges.txt``, from which the same is built.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.folder import read_json

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MOST_BYTES = 1 << 28  # the largest published tokenizer.json has 33 MB


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back.

    Attributes:
        core: the `tokenizers.Tokenizer`.
        named: "bos", "eos", "unk", "sep", "pad", "cls", "mask" -> the token, as far as the files name them.
        template: the chat template's source, or None; see `jaxbig.hub.chat.render`.
        where: the folder, for messages.
    """

    core: Any
    named: Mapping[str, str]
    template: str | None = None
    where: str = ""

    def __len__(self) -> int:
        """Of the vocabulary, added tokens included."""
        return self.core.get_vocab_size(with_added_tokens=True)

    def id_of(self, token: str) -> int:
        """The id of a token, "<|im_end|>", or of a named one, "eos".

        Raises:
            UserError: the tokenizer has no such token.
        """
        found = self.core.token_to_id(self.named.get(token, token))
        if found is None:
            known = ", ".join(f"{name} {text!r}" for name, text in self.named.items()) or "no named token"
            raise UserError(f"{self.where}: the tokenizer has no token {token!r}; it has {known}")
        return found

    @cached_property
    def ids(self) -> dict[str, int]:
        """The ids of the named tokens."""
        found = {name: self.core.token_to_id(token) for name, token in self.named.items()}
        return {name: number for name, number in found.items() if number is not None}

    def encode(self, text: str, pair: str | None = None, *, special: bool = True, most: int | None = None) -> list[int]:
        """The token ids of a text, or of two.

        Args:
            text, pair: the second one for models that read two.
            special: whether the tokens that begin, part and end a text for the model are put in. A chat that
                `jaxbig.hub.chat.render` gave has them already.
            most: tokens at most, special ones included; the longer of two texts loses its end first.
        """
        return self.encode_all([text], None if pair is None else [pair], special=special, most=most)[0]

    def encode_all(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, special: bool = True, most: int | None = None
    ) -> list[list[int]]:
        """`encode` of many, on all cores."""
        return [each.ids for each in self._encodings(texts, pairs, special, most)]

    def types_all(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, most: int | None = None
    ) -> list[list[int]]:
        """For each token of `encode_all`, which of its texts it belongs to: 0 or 1, BERT's types."""
        return [each.type_ids for each in self._encodings(texts, pairs, True, most)]

    def _encodings(self, texts: Sequence[str], pairs: Sequence[str] | None, special: bool, most: int | None) -> list:
        if isinstance(texts, str):
            raise UsageError("encode_all wants a list of texts; `encode` takes one")
        if pairs is not None and len(pairs) != len(texts):
            raise UsageError(f"encode_all: {len(texts)} texts and {len(pairs)} second ones; give one for each")
        if most is None:
            self.core.no_truncation()
        else:
            self.core.enable_truncation(most, strategy="longest_first")
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return self.core.encode_batch(inputs, add_special_tokens=special)

    def decode(self, ids: Sequence[int] | np.ndarray, *, special: bool = False) -> str:
        """The text of token ids; `special`: whether special tokens are shown."""
        return self.core.decode([int(number) for number in ids], skip_special_tokens=not special)

    def stream(self) -> Callable[[int], str]:
        """A function that is given one id after the other and returns what text is whole by then, "" while none is."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda number: stream.step(self.core, int(number)) or ""


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer in a model's folder.

    Args:
        folder: with tokenizer.json; or vocab.txt; or vocab.json and merges.txt. Padding and truncation that a
            tokenizer.json asks for are left out: batches are made elsewhere.

    Returns:
        the tokenizer. Named tokens that the vocabulary lacks are added. What is put around a text is what
        tokenizer.json says, or what BERT, GPT-2 and RoBERTa do where there is none; transformers, too, ignores an
        ``add_bos_token`` in the config beside a tokenizer.json.

    Raises:
        UserError: no tokenizer's files, or damaged ones; the package `tokenizers` is missing.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "vocab.txt").write_text("[PAD] [UNK] [CLS] [SEP] [MASK] small talk ##s".replace(" ", chr(10)))
        >>> tokenizer = read_tokenizer(folder)
        >>> tokenizer.encode("Small talks"), tokenizer.decode([2, 5, 6, 7, 3]), tokenizer.ids["pad"]
        ([2, 5, 6, 7, 3], 'small talks', 0)
    """
    folder = Path(folder)
    config = _optional(folder / "tokenizer_config.json")
    told = _optional(folder / "special_tokens_map.json") | config
    core, usual = _core(folder, config)
    tokens = {name: token for name in NAMED if (token := told.get(f"{name}_token", usual.get(name))) is not None}
    named = {name: text for name, token in tokens.items() if (text := _text(token)) is not None}
    _add(core, config, tokens)
    core.no_padding()
    core.no_truncation()
    return Tokenizer(core, named, _template(folder, config), str(folder))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _core(folder: Path, config: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """The library's tokenizer, and the named tokens that files of its kind leave unsaid."""
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("reading a tokenizer needs the package tokenizers: pip install 'jaxbig[hub]'") from error
    whole, words, pieces = (folder / name for name in ("tokenizer.json", "vocab.txt", "vocab.json"))
    try:
        if whole.exists():
            if whole.stat().st_size > MOST_BYTES:
                raise UserError(f"{whole}: {whole.stat().st_size:,} bytes are no tokenizer; at most {MOST_BYTES:,}")
            return tokenizers.Tokenizer.from_file(str(whole)), {}
        if words.exists():
            options = {name: config[key] for name, key in BERT_OPTIONS.items() if config.get(key) is not None}
            return _bert(words, options), dict(zip(NAMED[2:], BERT_TOKENS, strict=True))
        if pieces.exists() and (folder / "merges.txt").exists():
            return _byte_pairs(pieces, folder / "merges.txt", config)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder}: its tokenizer cannot be read ({error}); copy its files again") from error
    more = "; its tokenizer.model needs converting to a tokenizer.json" if (folder / "tokenizer.model").exists() else ""
    raise UserError(f"{folder}: no tokenizer.json, vocab.txt, or vocab.json with merges.txt{more}")


BERT_OPTIONS = {"lowercase": "do_lower_case", "strip_accents": "strip_accents",
                "handle_chinese_chars": "tokenize_chinese_chars"}  # fmt: skip
BERT_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")


def _bert(vocabulary: Path, options: Mapping[str, Any]) -> Any:
    from tokenizers import BertWordPieceTokenizer

    return BertWordPieceTokenizer(str(vocabulary), **options)._tokenizer


def _byte_pairs(vocabulary: Path, merges: Path, config: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """GPT-2's, or RoBERTa's, whose vocabulary has a token that begins every text."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing, TemplateProcessing

    prefix = config.get("add_prefix_space") is True
    core = ByteLevelBPETokenizer(str(vocabulary), str(merges), add_prefix_space=prefix)._tokenizer
    first, last = core.token_to_id("<s>"), core.token_to_id("</s>")
    if first is not None and last is not None:
        core.post_processor = RobertaProcessing(("</s>", last), ("<s>", first), add_prefix_space=prefix)
        return core, dict(zip(NAMED, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True))
    end = "<|endoftext|>"
    core.add_special_tokens([end])
    if config.get("add_bos_token") is True:
        core.post_processor = TemplateProcessing(
            single=f"{end} $A", pair=f"{end} $A {end} $B", special_tokens=[(end, core.token_to_id(end))]
        )
    return core, dict.fromkeys(NAMED[:3], end)


def _text(token: Any) -> str | None:
    """A token as the files write it: its text, or a dictionary with its content."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) and token else None


def _add(core: Any, config: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Tokens that the vocabulary does not have yet; a named one becomes special."""
    from tokenizers import AddedToken

    def added(entry: Any, **more: bool) -> Any:
        flags = {name: entry[name] is True for name in FLAGS if isinstance(entry, Mapping) and name in entry}
        return AddedToken(_text(entry), **{**flags, **more})

    decoder = config.get("added_tokens_decoder")
    for entry in decoder.values() if isinstance(decoder, Mapping) else ():
        if (text := _text(entry)) is not None and core.token_to_id(text) is None:
            core.add_tokens([added(entry)])
    special = {token.content for token in core.get_added_tokens_decoder().values()}
    for entry in named.values():
        if (text := _text(entry)) is not None and text not in special:
            core.add_special_tokens([added(entry, special=True)])
            special.add(text)


FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or the config's; of several, the one named default."""
    alone = folder / "chat_template.jinja"
    if alone.exists():
        if alone.stat().st_size > 1 << 20:
            raise UserError(f"{alone}: {alone.stat().st_size:,} bytes are no chat template; at most 1 MB")
        try:
            return alone.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{alone}: cannot be read ({error})") from error
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else None
