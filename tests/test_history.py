"""Totals and the file of lines."""

import json
import math

import numpy as np

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
