"""`jaxbig chat` and `jaxbig generate` on a folder as Hugging Face has it, made here with a model drawn at random."""

import io
import json

import pytest
from byte_tokenizer import write_tokenizer

from jaxbig.cli import main
from jaxbig.generate.loop import generate
from jaxbig.hub.chat import render
from jaxbig.hub.load import create, load
from jaxbig.hub.save import save
from jaxbig.talk import talk
from jaxbig.write import write

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}"
    "<assistant>{% endif %}"
)
GREEDY = ["--temperature", "0", "--max-tokens", "7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("chat")
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 260, "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 200,
        "tie_word_embeddings": False,
    }  # fmt: skip
    model = create(config)
    save(model, model.params, place / "model")
    write_tokenizer(place / "model", chat_template=TEMPLATE)
    return place / "model"


def test_an_answer_is_what_generate_gives_for_the_whole_conversation(folder):
    out = io.StringIO()
    said = talk(
        [str(folder), *GREEDY, "--system", "Be brief."], io.StringIO("Hello\n\n/what\nAnd now?\n/quit\nno\n"), out
    )
    assert [each["role"] for each in said] == ["system", "user", "assistant", "user", "assistant"]
    assert out.getvalue() == "".join(f"{each['content']}\n" for each in said if each["role"] == "assistant")
    model = load(folder)
    for count in (2, 4):
        ids = model.tokenizer.encode(render(model.tokenizer, said[:count]), special=False)
        (new,) = generate(model.module, model.params, [ids], max_tokens=7, ends=[model.tokenizer.ids["eos"]])
        assert model.tokenizer.decode(new) == said[count]["content"]


def test_a_new_conversation_forgets(folder):
    first = talk([str(folder), *GREEDY], io.StringIO("Hello\n"), io.StringIO())
    assert talk([str(folder), *GREEDY], io.StringIO("Something\n/new\nHello\n"), io.StringIO()) == first


def test_generate_reads_the_folder_and_ends_where_its_files_say(folder):
    text = write([str(folder), "Once", *GREEDY], io.StringIO())
    model = load(folder)
    (new,) = generate(model.module, model.params, [model.tokenizer.encode("Once")], max_tokens=7)
    assert text == model.tokenizer.decode(new)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [new[2]]}))
    ended = write([str(folder), "Once", *GREEDY], io.StringIO())
    (folder / "generation_config.json").unlink()
    assert ended == model.tokenizer.decode(new[: new.index(new[2]) + 1])


def test_a_model_without_a_template_is_told_from_one_with(folder, capsys):
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in told.items() if k != "chat_template"}))
    assert main(["chat", str(folder)]) == 2
    assert "has no chat template" in capsys.readouterr().err
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
