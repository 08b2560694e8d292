"""Tables: types, headers, quotes, missing values, one vocabulary for two files; real ones by their published counts."""

import csv
import gzip

import numpy as np
import pytest

from jaxbig.data.credit import card_default, german_credit
from jaxbig.data.table import features, read_table, sniff


def table(tmp_path, text, **options):
    path = tmp_path / "a.csv"
    path.write_text(text, newline="")
    return read_table(path, **options)


def test_types_missing_values_and_vocabulary(tmp_path):
    read = table(
        tmp_path,
        'age,job,note\n31,baker,"He said ""no"", and left it"\n?,,"two\nlines of text here"\n1e3,10,a b c d e\n',
    )
    assert read.kinds == {"age": "number", "job": "category", "note": "text"}
    np.testing.assert_array_equal(read.columns["age"], np.array([31, np.nan, 1000], np.float32))
    assert read.columns["job"].tolist() == [1, -1, 0]
    assert read.vocabulary == {"job": ("10", "baker")}
    assert read.columns["note"].tolist() == ['He said "no", and left it', "two\nlines of text here", "a b c d e"]
    assert read.missing == {"age": 1, "job": 1}


def test_categories_that_are_numbers_are_in_their_order(tmp_path):
    read = table(tmp_path, "x\n10\n9\n-1\n10\n", kinds={"x": "category"}, delimiter=",", header=True)
    assert read.vocabulary == {"x": ("-1", "9", "10")}
    assert read.columns["x"].tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b\n1,x\n2,y\n", ["a", "b"]),  # names above numbers
        ("1,x\n2,y\n", ["c0", "c1"]),  # a number in the first line
        ("p,q\nx,y\nz,w\n", ["c0", "c1"]),  # no numbers at all: nothing tells
        ("\ufeffa;b\r\n1;x\r\n", ["a", "b"]),
        ('a\tb\n1\tsay "hi\n', ["a", "b"]),
        ("x   1\n y 2\n", ["c0", "c1"]),
    ],
)
def test_header_and_delimiter_are_found(tmp_path, text, names):
    assert list(table(tmp_path, text).columns) == names


def test_header_delimiter_and_names_can_be_said(tmp_path):
    read = table(tmp_path, "p,q\nx,y\n", header=True)
    assert read.vocabulary == {"p": ("x",), "q": ("y",)}
    assert list(table(tmp_path, "1,2\n", names=["u", "v"]).columns) == ["u", "v"]
    assert table(tmp_path, "1|2\n", delimiter="|").columns["c1"].tolist() == [2]


def test_like_keeps_names_kinds_and_codes(tmp_path):
    train = table(tmp_path, "job,pay\nbaker,1\nclerk,2\nactor,3\n")
    test = table(tmp_path, "job,pay\nclerk,x\n".replace("x", "9"), like=train)
    assert test.columns["job"].tolist() == [2]
    assert test.vocabulary == train.vocabulary
    numbers = table(tmp_path, "7,8\n", like=table(tmp_path, "a,b\nx,1\n7,2\n", header=True), header=False)
    assert numbers.columns["a"].tolist() == [0]


def test_rows_are_those_of_the_csv_module(tmp_path):
    rng, alphabet = np.random.default_rng(0), list("ab,;\"' \n")
    rows = [["".join(rng.choice(alphabet, 5)) + "x" for _ in range(3)] for _ in range(50)]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    read = read_table(tmp_path / "a.csv", delimiter=",", header=False, kinds=dict.fromkeys(("c0", "c1", "c2"), "text"))
    assert [list(row) for row in zip(*(column.tolist() for column in read.columns.values()), strict=True)] == rows


def test_features(tmp_path):
    read = table(tmp_path, "id,x,job,y\n1,5,a,0\n2,6,b,1\n3,7,a,1\n")
    batch = features(read, "y", leave_out=["id"])
    assert {name: array.tolist() for name, array in batch.items()} == {
        "number": [[5], [6], [7]],
        "category": [[0], [1], [0]],
        "label": [0, 1, 1],
    }
    assert features(table(tmp_path, "x,y\n1,0.5\n2,1\n"), "y")["label"].dtype == np.float32


def test_prose_is_no_table():
    assert sniff("It was, as he said, late.\nShe left.\nThey, too, left, and it rained.\n") is None
    assert sniff("alone\nwords\n") is None


def test_gzip(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read_table(tmp_path / "a.csv.gz").columns["b"].tolist() == [2]


def test_card_default_has_its_published_numbers(real_data):
    credit = card_default(real_data("finance_credit/UCI_Credit_Card.csv.gz"))
    assert credit.arrays["number"].shape == (30000, 23)
    assert np.bincount(credit.arrays["label"]).tolist() == [23364, 6636]
    assert credit.arrays["number"][0, :5].tolist() == [20000, 2, 2, 1, 24]


def test_german_credit_has_its_published_numbers(real_data):
    credit = german_credit(real_data("finance_credit/german.data"))
    assert np.bincount(credit.arrays["label"]).tolist() == [700, 300]
    assert (credit.arrays["number"].shape, credit.arrays["category"].shape) == ((1000, 7), (1000, 13))
    assert credit.numbers == ("duration", "amount", "rate", "residence", "age", "credits", "liable")
    assert credit.categories["status"] == ("A11", "A12", "A13", "A14")
    assert credit.arrays["number"][0, :2].tolist() == [6, 1169]


@pytest.mark.parametrize(
    ("path", "n", "kinds"),
    [
        ("text_sst2/test.tsv.gz", 872, ["text", "number"]),
        ("text_agnews/test.tsv.gz", 7600, ["text", "category"]),
        ("glue/RTE/dev.tsv.gz", 277, ["number", "text", "text", "category"]),
        ("glue/CoLA/dev.tsv.gz", 1043, ["category", "number", "category", "text"]),
    ],
)
def test_real_tables(real_data, path, n, kinds):
    read = read_table(real_data(path))
    assert list(read.kinds.values()) == kinds
    assert {len(column) for column in read.columns.values()} == {n}
