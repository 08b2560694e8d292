"""The number that an answer ends in."""

from decimal import Decimal

import pytest

from jaxbig.data import read_conversations
from jaxbig.metrics import final_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("He has 5.\n#### -1,234.50\nSo 9 it is not.", "-1234.5"),
        ("It is $18.00.", "18"),
        ("between 3 and 4", "4"),
        ("1,000,000!", "1000000"),
        ("half: .5", "0.5"),
        ("####", None),
        ("none", None),
        ("", None),
    ],
)
def test_numbers(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_same():
    assert same_number("so $1,250.00", "#### 1250")
    assert not same_number("#### 7", "#### 72")
    assert not same_number("none", "none")


def test_every_answer_of_gsm8k_has_one(real_data):
    answers = [talk[-1]["content"] for talk in read_conversations(real_data("instruct_gsm8k") / "test.jsonl.gz")]
    for answer in answers:
        assert final_number(answer) == Decimal(answer.rpartition("#### ")[2].replace(",", ""))
