"""Totals and the file of lines."""

import json
import math

import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.history import History, Totals


def test_totals_weigh_by_count_and_go_on_from_saved_sums():
    batches = [{"loss": (np.float32(2), np.float32(4))}, {"loss": (np.float32(7), np.float32(1))}]
    whole, first = Totals(), Totals()
    whole.add(batches)
    first.add(batches[:1])
    second = Totals(json.loads(json.dumps(first.sums)))
    second.add(batches[1:])
    assert whole.means("val_") == second.means("val_") == {"val_loss": 9 / 5}
    assert math.isnan(Totals({"loss": [0, 0]}).means()["loss"])


def test_the_loss_comes_first():
    assert list(Totals({"accuracy": [1, 1], "loss": [1, 1], "b": [1, 1]}).means()) == ["loss", "accuracy", "b"]


def test_sums_may_be_arrays_and_come_back_from_json_exactly():
    batches = [{"confusion": (np.array([[3, 1], [0, 2]], np.float32) + 0.1 * i, np.float32(6))} for i in range(3)]
    whole, first = Totals(), Totals()
    whole.add(batches)
    first.add(batches[:1])
    second = Totals(json.loads(json.dumps(first.sums)))
    second.add(batches[1:])
    assert whole.sums == second.sums
    expected = sum(batch["confusion"][0].astype(np.float64) for batch in batches)
    np.testing.assert_array_equal(whole.sums["confusion"][0], expected)
    assert whole.sums["confusion"][1] == 18


def test_means_tell_what_a_confusion_matrix_stands_for():
    totals = Totals({"confusion": [[[3, 1], [0, 2]], 6], "loss": [3, 6], "accuracy": [5, 6]})
    means = totals.means("val_")
    assert list(means) == ["val_loss", "val_accuracy", "val_f1", "val_precision", "val_recall"]
    assert means["val_recall"] == pytest.approx((3 / 4 + 1) / 2)


def test_a_sum_keeps_its_shape():
    totals = Totals({"confusion": [[[3, 1], [0, 2]], 6]})
    with pytest.raises(UserError, match=r"metric confusion: its sum was \(2, 2\) and is \(3, 3\) now"):
        totals.add([{"confusion": (np.ones((3, 3)), 1.0)}])


def test_lines_undone_by_a_kill_are_not_written_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = History(path)
    for epoch in (1, 2, 3):
        first.append({"epoch": epoch, "loss": 0.1 * epoch})
    with open(path, "a") as file:
        file.write('{"epoch": 4, "lo')
    again = History(path, first.lines[:2])
    again.append({"epoch": 3, "loss": math.nan})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[2]["loss"] is None
    assert lines[1]["loss"] == 0.2
