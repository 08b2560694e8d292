"""Images in files: colours, sizes and orders survive; the real sets have their published numbers."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxbig.data import fingerprint
from jaxbig.data.image import ImageFolder, PackedImages, decode
from jaxbig.data.npz import medmnist

ROWS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]], [[1, 2, 3], [4, 5, 6]]], np.uint8)


def png(array, **more):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png", **more)
    return file.getvalue()


def test_decode_keeps_pixels_and_makes_grey():
    np.testing.assert_array_equal(decode(png(ROWS), "a"), ROWS)
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    grey = np.round(ROWS @ np.array([0.299, 0.587, 0.114]))
    np.testing.assert_allclose(decode(png(ROWS), "a", channels=1)[..., 0], grey, atol=1)
    assert decode(png(ROWS[..., 0]), "a").shape == (3, 2, 3)
    transparent = np.concatenate([ROWS, np.zeros((3, 2, 1), np.uint8)], axis=-1)
    np.testing.assert_array_equal(decode(png(transparent), "a"), ROWS)


def test_decode_turns_photographs_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # "the top row is the right-hand side"
    np.testing.assert_array_equal(decode(png(ROWS, exif=exif), "a"), np.rot90(ROWS, -1))


def test_resizing_averages_over_all_old_pixels():
    checks = np.tile(np.array([[0, 200], [200, 0]], np.uint8), (8, 8))
    small = decode(png(checks), "a", size=(4, 2), channels=1)
    assert small.shape == (4, 2, 1)
    np.testing.assert_allclose(small[..., 0], 100, atol=12)


def folder_of(tmp_path):
    for name, shade in (("b", 10), ("a", 20)):
        for i in range(2):
            path = tmp_path / name / "deep" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(np.full((3, 2, 3), shade + i, np.uint8)))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_has_a_class_for_each_sub_folder(tmp_path):
    source = ImageFolder(folder_of(tmp_path))
    assert (len(source), source.classes, source.labels.tolist()) == (4, ("a", "b"), [0, 0, 1, 1])
    batch = source.batch(np.array([3, 0, 3]))
    assert batch["image"][:, 0, 0, 0].tolist() == [11, 20, 11]
    assert batch["label"].tolist() == [1, 0, 1]
    assert source.batch(np.array([], int))["label"].shape == (0,)
    assert ImageFolder(tmp_path, classes=["b", "a", "c"]).labels.tolist() == [1, 1, 0, 0]
    assert ImageFolder(tmp_path, size=5).batch(np.array([0]))["image"].shape == (1, 5, 5, 3)
    assert "label" not in ImageFolder(tmp_path / "a" / "deep").batch(np.array([0]))


def test_packed_images_are_those_packed(tmp_path):
    files = [png(np.full((3, 2, 3), shade, np.uint8)) for shade in (5, 6, 7)]
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(tmp_path / "a.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets)
    batch = PackedImages(tmp_path / "a.npz").batch(np.array([2, 0]))
    assert batch["image"][:, 0, 0, 0].tolist() == [7, 5]
    assert batch.keys() == {"image"}


def test_medmnist_layouts(tmp_path):
    grey, colour = np.zeros((4, 6, 6), np.uint8), np.zeros((4, 6, 6, 3), np.uint8)
    several, one = np.zeros((4, 14), np.uint8), np.arange(4, dtype=np.uint8)[:, None]
    np.savez(
        tmp_path / "a.npz",
        train_images=grey, train_labels=one, val_images=colour, val_labels=several,
        test_images=np.zeros((4, 6, 6, 6), np.uint8), test_labels=one,
    )  # fmt: skip
    shapes = {s: {k: v.shape for k, v in medmnist(tmp_path / "a.npz", s).items()} for s in ("train", "val", "test")}
    assert shapes == {
        "train": {"image": (4, 6, 6, 1), "label": (4,)},
        "val": {"image": (4, 6, 6, 3), "label": (4, 14)},
        "test": {"image": (4, 6, 6, 6, 1), "label": (4,)},
    }


def test_the_cifar10_subset(real_data):
    source = PackedImages(real_data("cifar10_jpeg_subset/test.npz"))
    assert (len(source), len(source.classes)) == (5000, 10)
    assert np.bincount(source.labels).tolist() == [500] * 10
    images = source.batch(np.arange(0, 5000, 10))["image"]
    assert images.shape == (500, 32, 32, 3)
    # Published for CIFAR-10: 0.4914 0.4822 0.4465; this is a tenth of a JPEG copy's test part.
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=0.02)
    assert fingerprint(source)["examples"] == 5000


@pytest.mark.parametrize(("split", "counts"), [("train", [1214, 3494]), ("val", [135, 389]), ("test", [234, 390])])
def test_pneumoniamnist_has_the_official_counts(real_data, split, counts):
    batch = medmnist(real_data("medical_pneumoniamnist/pneumoniamnist.npz"), split)
    assert np.bincount(batch["label"]).tolist() == counts
    assert batch["image"].shape == (sum(counts), 28, 28, 1)
