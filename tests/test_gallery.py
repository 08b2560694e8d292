"""Batches as pictures: what is drawn, and that the spectrogram is SciPy's."""

import io

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.signal import stft

from jaxbig.gallery import gallery, spectrogram


def pixels(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    file.seek(0)
    return imread(file)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_images_are_drawn_with_their_labels():
    images = np.zeros((5, 8, 8, 3), np.uint8)
    images[1, ..., 0] = 255
    figure = gallery({"image": images, "label": np.array([0, 1, 2, 1, 7])}, {"label": ["ape", "bee", "cow"]})
    assert [axes.get_title() for axes in figure.axes] == ["ape", "bee", "cow", "bee", "7", ""]
    drawn = figure.axes[1].images[0].get_array()
    assert drawn.shape == (8, 8, 3)
    assert drawn[0, 0].tolist() == [1, 0, 0]
    assert pixels(figure).std() > 0.1


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 5), (4, 8, 8, 1), (4, 8, 8, 3)])
def test_every_kind_of_image(shape):
    figure = gallery({"image": np.random.default_rng(0).normal(size=(2, *shape))})
    assert figure.axes[0].images[0].get_array().shape[:2] == (8, 8)
    pixels(figure)


def test_recordings_are_drawn_as_long_as_they_are():
    batch = {"audio": np.ones((2, 400), np.float32), "length": np.array([400, 100]), "label": np.array([0, 1])}
    figure = gallery(batch, {"label": ["no", "yes"]}, rate=100)
    assert len(figure.axes) == 4
    assert [len(axes.lines[0].get_xdata()) for axes in figure.axes[::2]] == [400, 100]
    assert figure.axes[2].get_title(loc="left") == "yes"
    assert figure.axes[3].images[0].get_extent()[1] == 1.0
    pixels(figure)


def test_silence_and_single_samples_can_be_drawn():
    pixels(gallery({"audio": np.zeros((1, 1), np.float32), "length": np.array([1])}, rate=8000))


def test_the_spectrogram_is_that_of_scipy():
    clip = np.random.default_rng(0).normal(size=2048)
    window = np.hanning(256)
    _, _, z = stft(clip, window=window, nperseg=256, noverlap=192, boundary=None, padded=False, scaling="spectrum")
    expected = 10 * np.log10(np.abs(z * window.sum()) ** 2)
    inner = slice(1, -1)  # SciPy doubles nothing here, but treats the mean of each window apart in some versions
    np.testing.assert_allclose(spectrogram(clip)[inner], expected[inner], atol=1e-2)


def test_rows_are_drawn_as_text():
    batch = {
        "n": np.float32([1.5, np.nan]),
        "kind": np.array([0, -1]),
        "text": np.array(["$x$ & <b>\nsecond 漢", None], object),
        "vector": np.zeros((2, 3), np.float32),
    }
    figure = gallery(batch, {"kind": ["first"]})
    head, one, other = texts(figure)
    assert head.split() == ["n", "kind", "text", "vector"]
    assert one.split() == ["1.5", "first", "$x$", "&", "<b>", "second", "□", "float32", "[3]"]
    assert other.split() == ["missing", "missing", "missing", "float32", "[3]"]
    pixels(figure)


def test_long_rows_are_wrapped_and_cut_and_many_columns_counted():
    long = np.array(["word " * 200], object)
    lines = texts(gallery({"text": long}))
    assert len(lines) == 4
    assert lines[-1].rstrip().endswith("…")
    many = {f"column_{i}": np.array([1234567]) for i in range(40)}
    assert texts(gallery(many))[-1] == "and 26 more columns"


def test_nothing_cannot_be_drawn():
    for batch in ({}, {"image": np.zeros((0, 8, 8))}):
        with pytest.raises(ValueError, match="no examples"):
            gallery(batch)
