"""Lines, aligned lines and JSON records, made and real."""

import gzip
import json

import numpy as np

from jaxbig.data.file import read_text
from jaxbig.data.text import columns, read_aligned, read_lines, read_records


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("\ufeffa\u2028b\x0bc\r\n\n \nlast".encode()))
    assert read_lines(path)["text"].tolist() == ["a\u2028b\x0bc", "last"]
    assert read_lines(path, keep_blank=True)["text"].tolist() == ["a\u2028b\x0bc", "", " ", "last"]


def test_records_from_lines_and_from_an_array_are_the_same(tmp_path):
    records = [{"q": "1 + 1", "a": 2, "x": 1}, {"q": "ü", "a": 3, "x": 0.5, "more": [1]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps(records, indent=2))
    assert read_records(tmp_path / "a.jsonl") == read_records(tmp_path / "a.json") == records
    by_field = columns(records)
    assert {name: array.dtype.name for name, array in by_field.items()} == {
        "q": "object", "a": "int64", "x": "float64", "more": "object",
    }  # fmt: skip
    assert by_field["more"].tolist() == [None, [1]]
    assert columns([{"b": True}, {"b": False}])["b"].dtype == bool
    assert columns([{"b": True}, {"b": 2}])["b"].tolist() == [True, 2]
    assert columns([{"x": [1, 2]}, {"x": [3, 4]}])["x"].shape == (2,)


def test_real_records(real_data):
    questions = columns(read_records(real_data("instruct_gsm8k/test.jsonl.gz")))
    assert (len(questions["question"]), questions.keys()) == (1319, {"question", "answer"})
    assert questions["answer"][0].endswith("#### 18")
    assert len(read_records(real_data("instruct_llamafactory/dpo_en_demo.json.gz"))) == 300


def test_real_translations(real_data):
    folder = real_data("mt_multi30k")
    pairs = read_aligned({language: folder / f"train.{language}.gz" for language in ("en", "de", "fr")})
    assert {name: len(lines) for name, lines in pairs.items()} == {"en": 29000, "de": 29000, "fr": 29000}
    assert pairs["de"][0] == "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche."


def test_real_text(real_data):
    text = read_text(real_data("lm_tinyshakespeare/input.txt"))
    assert (len(text), text[:14], len(set(text))) == (1115394, "First Citizen:", 65)
    assert isinstance(read_lines(real_data("lm_wikitext2/wikitext2_valid.txt.gz"))["text"], np.ndarray)
