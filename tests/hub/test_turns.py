"""What the assistant says, marked by hand and by transformers."""

import dataclasses

import numpy as np
import pytest
from byte_tokenizer import write_tokenizer

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.tokenizer import read_tokenizer
from jaxbig.hub.turns import all_turns, turns

CHATML = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' }}{% generation %}{{ m.content + '</s>' }}{% endgeneration %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
FORGETFUL = (  # Qwen 3 leaves what was thought out of earlier answers
    "{% for m in messages %}<s>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content | replace('.', '') }}"
    "{% else %}{{ m.content }}{% endif %}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "\nHello you."},
    {"role": "user", "content": "Ça va?"},
    {"role": "assistant", "content": "Oui."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder)
    return read_tokenizer(folder)


def marked(tokenizer, template, which="all", talk=TALK):
    """The texts of the runs of marked tokens."""
    found = turns(dataclasses.replace(tokenizer, template=template), talk, which)
    assert found.ids.shape == found.answers.shape
    edges = np.flatnonzero(np.diff(found.answers, prepend=False, append=False)).reshape(-1, 2)
    return [tokenizer.decode(found.ids[start:end], special=True) for start, end in edges]


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML, ["\nHello you.</s>", "Oui.</s>"]),  # the line break behind the end is the template's
        (LLAMA2, [" \nHello you. </s>", " Oui. </s>"]),
        (NO_END, [" \nHello you.\n", " Oui.\n"]),
    ],
)
def test_answers_with_their_ends(tokenizer, template, answers):
    assert marked(tokenizer, template) == answers
    assert marked(tokenizer, template, "last") == answers[-1:]


def test_before_an_answer_stands_what_a_model_is_asked_with(tokenizer):
    from jaxbig.hub.chat import render

    chat = dataclasses.replace(tokenizer, template=CHATML)
    found = turns(chat, TALK, "last")
    start = int(found.answers.argmax())
    assert found.ids[:start].tolist() == tokenizer.encode(render(chat, TALK[:-1]), special=False)


def test_a_special_token_inside_an_answer_is_part_of_it(tokenizer):
    talk = [TALK[1], {"role": "assistant", "content": "a</s>b"}]
    assert marked(tokenizer, CHATML, talk=talk) == ["a</s>b</s>"]
    assert marked(tokenizer, NO_END, talk=talk) == [" a</s>b\n"]


def test_a_template_that_rewrites_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"not prefix-stable at message 2.*which='last'"):
        marked(tokenizer, FORGETFUL)
    assert marked(tokenizer, FORGETFUL, "last") == ["Oui.</s>"]
    chat = dataclasses.replace(tokenizer, template=FORGETFUL)
    with pytest.raises(UserError, match=r"^conversation 1: .*prefix-stable"):
        all_turns(chat, [TALK[1:3], TALK])


def test_what_has_no_answer_is_told(tokenizer):
    with pytest.raises(UsageError, match="has no answer"):
        marked(tokenizer, CHATML, talk=TALK[:2])
    with pytest.raises(UsageError, match="the last message is not the assistant's"):
        marked(tokenizer, CHATML, "last", talk=TALK[:4])
    with pytest.raises(UsageError, match="which='first'"):
        marked(tokenizer, CHATML, "first")


@pytest.mark.parity
def test_transformers_marks_the_same(tokenizer, torch, tmp_path):
    from transformers import AutoTokenizer

    template = CHATML.replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}").replace(
        "{% endgeneration %}", "{% endgeneration %}{% else %}{{ m.content + '</s>' }}{% endif %}"
    )
    write_tokenizer(tmp_path, tokenizer_class="PreTrainedTokenizerFast", chat_template=template)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    want = theirs.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    found = turns(read_tokenizer(tmp_path), TALK)
    assert found.ids.tolist() == want["input_ids"]
    assert found.answers.astype(int).tolist() == want["assistant_masks"]
