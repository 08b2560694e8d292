"""Lines of results: whole, in order, and none of what JSON has no word for."""

import json

import pytest

from jaxbig.errors import UserError
from jaxbig.record import record


def test_lines_are_added_and_old_ones_stay(tmp_path):
    path = tmp_path / "results" / "trial.jsonl"
    record(path, {"accuracy": 0.5})
    first = path.read_text()
    record(path, {"accuracy": 0.75})
    assert path.read_text().startswith(first)
    assert [json.loads(line)["accuracy"] for line in path.read_text().splitlines()] == [0.5, 0.75]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}], ids=["nan", "set"])
def test_what_is_no_json_leaves_the_file_alone(tmp_path, value):
    path = record(tmp_path / "trial.jsonl", {})
    before = path.read_text()
    with pytest.raises(UserError, match=r"trial\.jsonl: what was measured"):
        record(path, {"accuracy": value})
    assert path.read_text() == before
