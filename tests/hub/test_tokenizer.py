"""Tokenizers and chat templates: ids, texts and conversations are those of transformers."""

import json
from types import SimpleNamespace

import pytest

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.chat import render
from jaxbig.hub.tokenizer import Tokenizer, read_tokenizer

TEXTS = [
    "The capital of France is Paris.", "", " ", "ﬁ ligature e\u0301",
    "  two  spaces\tand\na line\n\n", "naïve café – Ærøskøbing 東京 🤖👩‍👧",
    "don't you've we'll", "x" * 200, "<s> [CLS] <|end|> inside", "1234567 3.14 -0", "\u200bzero\u00a0width",
]  # fmt: skip
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<|end|>"]
NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def trained(kind: str):
    """A small tokenizer of each kind in use, trained on a few lines."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    lines = [text for text in TEXTS if text.strip()] * 3 + ["def main(argv): return 0  # the end of a program"]
    if kind == "bytes":  # GPT-2's, Llama 3's, Qwen's
        core, options = Core(models.BPE()), {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, **options)
    elif kind == "pieces":  # T5's, Llama 2's
        core = Core(models.Unigram())
        core.normalizer = normalizers.NFKC()
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    else:
        core = Core(models.WordPiece(unk_token="<unk>"))
        core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        core.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL)
    core.train_from_iterator(lines, trainer)
    if kind == "words":
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
        core.enable_truncation(5)  # as sentence-transformers leave it: their own business
        core.enable_padding(length=5, pad_token="<pad>")
    return core


def folder_of(path, kind: str = "bytes", **config):
    trained(kind).save(str(path / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", **NAMES, **config}
    (path / "tokenizer_config.json").write_text(json.dumps(told))
    return path


def same_ids(ours: Tokenizer, theirs, texts) -> None:
    for text in texts:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, special=special) == ids, text
            for shown in (True, False):
                expected = theirs.decode(ids, skip_special_tokens=not shown)
                assert ours.decode(ids, special=shown) == expected, text
    pairs = list(reversed(texts))
    both = theirs(texts, pairs)
    assert ours.encode_all(texts, pairs) == both["input_ids"]
    assert ours.encode_all(texts, pairs, most=9) == theirs(texts, pairs, max_length=9, truncation=True)["input_ids"]
    if "token_type_ids" in both:
        assert ours.types_all(texts, pairs) == both["token_type_ids"]
    for name, number in ours.ids.items():
        assert number == getattr(theirs, f"{name}_token_id")
    assert len(ours) == len(theirs)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["bytes", "pieces", "words"])
@pytest.mark.parametrize(
    "config",
    [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False},
     {"mask_token": {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "special": True,
                     "__type": "AddedToken"}},
     {"added_tokens_decoder": {"990": {"content": "<|tool|>", "special": True, "lstrip": False, "rstrip": False,
                                       "single_word": False, "normalized": False}}}],
    ids=["plain", "bos", "bos and eos", "neither", "a token that is not there", "added"],
)  # fmt: skip
def test_is_transformers_tokenizer(tmp_path, kind, config):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, kind, **config)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    same_ids(read_tokenizer(folder), theirs, [*TEXTS, "a <mask> b <|tool|> c"])


@pytest.mark.parity
@pytest.mark.parametrize("without", [(), ("tokenizer.json",)], ids=["tokenizer.json", "vocab.txt"])
def test_a_real_bert_s(tmp_path, minilm, without):
    transformers = pytest.importorskip("transformers")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if name not in without:
            (tmp_path / name).write_bytes((minilm / name).read_bytes())
    same_ids(read_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path), TEXTS)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "config"),
    [("GPT2Tokenizer", {}), ("GPT2Tokenizer", {"add_bos_token": True}), ("GPT2Tokenizer", {"add_prefix_space": True}),
     ("RobertaTokenizer", {})],
)  # fmt: skip
def test_two_files_of_byte_pairs(tmp_path, name, config):
    transformers = pytest.importorskip("transformers")
    model = json.loads(trained("bytes").to_str())["model"]
    more = ["<mask>"] if name == "RobertaTokenizer" else ["<|endoftext|>"]
    words = [word for word in model["vocab"] if name == "RobertaTokenizer" or word not in SPECIAL] + more
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **config}))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), read_tokenizer(tmp_path)
    same_ids(ours, theirs, TEXTS)


def test_a_stream_is_the_text_and_holds_back_half_a_character(tmp_path):
    tokenizer = read_tokenizer(folder_of(tmp_path))
    text = "naïve 東京 🤖 end"
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream(number) for number in [*ids, tokenizer.ids["eos"]]]
    assert "".join(pieces) == text
    assert "" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


CHATML = (
    "{%- for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + message.content | trim"
    " + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}
  {%- set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- if message.role == 'user' %}[INST]
    {{- ' ' + ('<<SYS>>' + system + '<</SYS>>' if loop.first and system else '') + message.content }} [/INST]
    {%- else %}{% generation %} {{ message.content }} {{ eos_token }}{% endgeneration %}{% endif %}
    {%- if message.stop is defined %}{% break %}{% endif %}
{%- endfor %}"""
TOOLS = """{% macro show(tool) %}{{ tool | tojson(indent=2) }}{% endmacro %}{% set ns = namespace(n=0) %}
{%- if tools %}{% for tool in tools %}{% set ns.n = ns.n + 1 %}{{ ns.n }}: {{ show(tool) }}
{% endfor %}{% endif %}{{ messages | map(attribute='content') | join('|') }}{{ '😀é<&>' | tojson }}{{ thinking }}"""
TALK = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Héllo <b>&"},
        {"role": "assistant", "content": " Hi."}, {"role": "user", "content": "Bye"}]  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("template", [CHATML, LLAMA, TOOLS], ids=["chatml", "llama", "tools"])
def test_conversations_are_transformers(tmp_path, template):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, chat_template=template)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), read_tokenizer(folder)
    for messages in (TALK, TALK[1:], TALK[:2], [*TALK[:2], {**TALK[2], "stop": 1}, TALK[3]]):
        for generate in (True, False):
            more = {"tools": [{"name": "add", "of": ["é", 1.5, None]}], "thinking": True}
            text = render(ours, messages, generate=generate, **more)
            assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, **more)
            ids = theirs.apply_chat_template(messages, add_generation_prompt=generate, **more)["input_ids"]
            assert ours.encode(text, special=False) == ids


def test_the_template_s_file_comes_first_and_of_several_the_default(tmp_path):
    folder = folder_of(
        tmp_path, chat_template=[{"name": "rag", "template": "no"}, {"name": "default", "template": "a"}]
    )
    assert read_tokenizer(folder).template == "a"
    (folder / "chat_template.jinja").write_text("b")
    assert read_tokenizer(folder).template == "b"


HOSTILE = {
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "unsafe",
    "{{ messages.append(1) }}": "append",
    "{% for i in range(10000000) %}{% endfor %}": "Range too big",
    "{% for i in range(99999) %}{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}": "characters",
    "{{ raise_exception('not so') }}": "not so",
    "{% for m in messages %}": "endfor",
    "{% include 'secret' %}": "no loader",
    "{{ messages[0].nothing.more }}": "nothing",
    "{{ 1 + messages[0].content }}": "TypeError",
    "{{ 1 / 0 }}": "division",
}


@pytest.mark.parametrize("template", HOSTILE, ids=HOSTILE.values())
def test_a_hostile_or_broken_template_is_one_line(template):
    tokenizer = Tokenizer(None, {}, template, "there")
    with pytest.raises(UserError, match="there: the chat template") as caught:
        render(tokenizer, TALK)
    assert HOSTILE[template] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json, vocab\.txt"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match="needs converting"):
        read_tokenizer(tmp_path)
    for text in ("", "{", "[]", '{"version": "1.0"}', "\x00\x01"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="cannot be read") as caught:
            read_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)
    folder_of(tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"no token '<mask>'; it has bos '<s>'"):
        tokenizer.id_of("<mask>")
    with pytest.raises(UserError, match="no chat template"):
        render(tokenizer, TALK)
    with pytest.raises(UsageError, match="list of texts"):
        tokenizer.encode_all("text")
    with pytest.raises(UsageError, match="2 texts and 1 second"):
        tokenizer.encode_all(["a", "b"], ["c"])
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(UserError, match="tokenizer_config"):
        read_tokenizer(tmp_path)


def test_named_tokens(tmp_path):
    tokenizer = read_tokenizer(folder_of(tmp_path, "words"))
    assert tokenizer.id_of("bos") == tokenizer.id_of("<s>") == tokenizer.encode("a")[0] == 2
    assert SimpleNamespace(**tokenizer.ids).pad == 0
