"""Questions to a chat model, many at a time."""

import dataclasses

import pytest
from byte_tokenizer import write_tokenizer

from jaxbig.ask import ask
from jaxbig.errors import UserError
from jaxbig.hub.load import create, load
from jaxbig.hub.save import save

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 260, "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40,
    "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = create(CONFIG)
    folder = save(made, made.params, tmp_path_factory.mktemp("model") / "llama")
    write_tokenizer(folder, chat_template=TEMPLATE)
    return load(folder)


def test_many_are_each_by_itself(model):
    asked = [[{"role": "user", "content": text}] for text in ("a longer question", "Hi", "no", "What?", "four")]
    together = ask(model, model.params, asked, max_tokens=6, batch_size=2)
    alone = [ask(model, model.params, [each], max_tokens=6)[0] for each in asked]
    assert together == alone
    assert len(set(together)) > 1


def test_what_cannot_be_asked_is_told(model):
    asked = [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": "x" * 30}]]
    with pytest.raises(
        UserError, match=r"conversation 1 has 33 tokens, and with max_tokens=8 more than .* 40 positions"
    ):
        ask(model, model.params, asked, max_tokens=8)
    mute = dataclasses.replace(model)
    mute.__dict__["tokenizer"] = dataclasses.replace(model.tokenizer, template=None)
    with pytest.raises(UserError, match="no chat template"):
        ask(mute, model.params, asked)
