"""What a set holds, in numbers: against NumPy, where they were counted by hand, and with parts of it missing."""

import numpy as np

from jaxbig.data import ArraySource, Clips, Mapped
from jaxbig.summary import class_names, summarise


def test_numbers_are_those_of_numpy():
    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(0, 256, (700, 4, 4, 3), np.uint8), "x": rng.normal(5, 2, (700, 9))}
    summaries, seen = summarise(ArraySource(arrays))
    assert seen == 700
    values = summaries["image"].values
    np.testing.assert_allclose(values.mean, arrays["image"].mean((0, 1, 2)))
    np.testing.assert_allclose(values.std(), arrays["image"].std((0, 1, 2)))
    assert values.low.shape == (3,)
    x = summaries["x"].values
    np.testing.assert_allclose(
        [x.low, x.mean, x.high, x.std()],
        [arrays["x"].min(), arrays["x"].mean(), arrays["x"].max(), arrays["x"].std()],
    )
    assert (summaries["image"].shape, summaries["image"].dtype, summaries["x"].shape) == ((4, 4, 3), "uint8", (9,))


def test_classes_are_counted_where_there_are_few():
    n = 1100
    arrays = {"label": np.arange(n) % 3, "float": (np.arange(n) % 2).astype(np.float32), "id": np.arange(n)}
    summaries, _ = summarise(ArraySource({**arrays, "half": np.arange(n) % 2 / 2}))
    assert summaries["label"].counts == {0: 367, 1: 367, 2: 366}
    assert summaries["float"].counts == {0: 550, 1: 550}
    assert summaries["id"].counts is summaries["half"].counts is None


def test_missing_values_are_counted_and_left_out():
    summaries, _ = summarise(ArraySource({"x": np.float32([1, np.nan, 3]), "t": np.array(["a b", None, ""], object)}))
    assert (summaries["x"].missing, float(summaries["x"].values.mean)) == (1, 2)
    assert (summaries["t"].missing, summaries["t"].values.count, summaries["t"].words) == (1, 2, 2)
    nothing, _ = summarise(ArraySource({"x": np.float32([np.nan])}))
    assert nothing["x"].values.count == 0


def test_text_is_counted_by_characters_and_words():
    summaries, _ = summarise(ArraySource({"text": np.array(["to be", "or not to be"], object)}))
    text = summaries["text"]
    assert (text.dtype, text.words, text.vocabulary, text.characters) == ("text", 6, 4, 7)
    assert (text.values.low, text.values.mean, text.values.high) == (5, 8.5, 12)
    mixed, _ = summarise(ArraySource({"x": np.array([["a"], {"b": 1}], object)}))
    assert mixed["x"].dtype == "dict or list"


def test_recordings_are_counted_without_what_fills_them_up():
    clips = Clips(np.full(30, 2**14, np.int16), np.array([0, 10, 30]), rate=10)
    summaries, _ = summarise(clips, rate=10)
    assert (float(summaries["audio"].values.mean), summaries["audio"].values.count) == (0.5, 30)
    assert (float(summaries["audio"].seconds.low), float(summaries["audio"].seconds.high)) == (1, 2)


def test_few_rows_of_what_is_made_on_the_way():
    seen_rows = []
    source = Mapped({"x": np.arange(1000)}, lambda batch: seen_rows.extend(batch["x"].tolist()) or batch)
    summaries, seen = summarise(source, most=10)
    assert (seen, seen_rows) == (10, list(range(0, 1000, 100)))
    assert summaries["x"].values.count == 10
    assert summarise(source)[1] == 1000


def test_names_of_classes():
    assert class_names({0: 1, 2: 5}, ["a", "b", "c"]) == {"a": 1, "c": 5}
    assert class_names({-1: 4, 3: 5}, ()) == {"-1": 4, "3": 5}
