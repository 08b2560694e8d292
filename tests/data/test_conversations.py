"""Conversations and preferences in the forms that public sets have."""

import json

import pytest

from jaxbig.data import Preference, few_shot, read_conversations, read_preferences
from jaxbig.errors import UserError


def said(role, content):
    return {"role": role, "content": content}


ASKED = [said("user", "Hi"), said("assistant", "Hello")]


def written(tmp_path, *records, whole=False):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(list(records)) if whole else "\n".join(map(json.dumps, records)))
    return path


@pytest.mark.parametrize("whole", [False, True])
def test_forms_mean_the_same(tmp_path, whole):
    records = [
        {"messages": ASKED},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": ""},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "output": "Hello"},
        {"question": "Hi", "answer": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": "Hi", "response": "Hello", "id": 3},
    ]
    assert read_conversations(written(tmp_path, *records, whole=whole)) == [ASKED] * len(records)


def test_systems_and_what_messages_carry_stay(tmp_path):
    tool = {"role": "tool", "content": "4", "name": "add"}
    records = [
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"instruction": "Hi", "output": "Hello", "system": "Be brief."},
        {"messages": [*ASKED, tool]},
    ]
    first, second, third = read_conversations(written(tmp_path, *records))
    assert first == second == [said("system", "Be brief."), *ASKED]
    assert third == [*ASKED, tool]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "Hi"}, "record 2: is of no known form; it has text, the forms are"),
        ({"messages": [said("user", "Hi")]}, "record 2: nobody answers"),
        ({"messages": [said("robot", "Hi")]}, "role is 'robot'"),
        ({"messages": ["Hi"]}, "a message is 'Hi'"),
        ({"messages": [{"role": "user"}]}, "a message has role"),
        ({"messages": [said("user", ["Hi"])]}, "is no text"),
        ({"instruction": "Hi"}, "has no output, only instruction"),
        ({"question": 3, "answer": "Hello"}, "3 is no text"),
    ],
)
def test_what_is_none_is_told(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        read_conversations(written(tmp_path, {"messages": ASKED}, record))


def test_preferences_in_all_forms(tmp_path):
    good, bad = said("assistant", "Hello"), said("assistant", "Go away")
    user = said("user", "Hi")
    records = [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go away"},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello"},
         "rejected": {"from": "gpt", "value": "Go away"}},
    ]  # fmt: skip
    assert read_preferences(written(tmp_path, *records)) == [Preference([user], good, bad)] * len(records)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Hi", "chosen": "Hello"}, "has no rejected, only prompt, chosen"),
        ({"chosen": "Hello", "rejected": "Go"}, "there is no prompt"),
        ({"chosen": [said("user", "Hi")], "rejected": [said("user", "Hi")]}, "is the user's"),
        ({"chosen": [said("user", "A"), ASKED[1]], "rejected": [said("user", "B"), ASKED[1]]}, "different prompts"),
        ({"prompt": "A", "chosen": ASKED, "rejected": ASKED}, "are not the prompt's"),
    ],
)
def test_what_is_no_preference_is_told(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        read_preferences(written(tmp_path, record))


def test_the_systems_word_comes_first_once():
    shots = [[said("system", "A"), *ASKED]]
    found = few_shot(shots, [said("system", "B"), said("user", "Bye")])
    assert found == [said("system", "B"), *ASKED, said("user", "Bye")]
    assert shots[0][0] == said("system", "A")


def test_real_files(real_data):
    folder = real_data("instruct_llamafactory")
    assert len(read_conversations(folder / "alpaca_en_demo.json.gz")) == 999
    assert len(read_preferences(folder / "dpo_en_demo.json.gz")) == 300
    assert len(read_conversations(real_data("instruct_gsm8k") / "test.jsonl.gz")) == 1319
