"""CIFAR's binary version, against files written by hand and against the same images as JPEGs."""

import numpy as np
import pytest

from jaxbig.data.cifar import cifar
from jaxbig.errors import UserError


def test_pixels_lie_where_they_belong(tmp_path):
    """Plane by plane in the file, channels last in the array; the training set's five files in order."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (10, 32, 32, 3), np.uint8), rng.integers(0, 10, 10, np.uint8)
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    for i in range(5):
        records = b"".join(
            bytes([labels[j]]) + b"".join(images[j, :, :, c].tobytes() for c in range(3)) for j in (2 * i, 2 * i + 1)
        )
        (inner / f"data_batch_{i + 1}.bin").write_bytes(records)
    for folder in (tmp_path, inner):
        found = cifar(folder, "train")
        np.testing.assert_array_equal(found["image"], images)
        np.testing.assert_array_equal(found["label"], labels)


def test_of_a_hundred_classes_the_fine_label_is_the_label(tmp_path):
    (tmp_path / "test.bin").write_bytes(bytes([7, 42]) + bytes(range(256)) * 12)
    found = cifar(tmp_path, "test", classes=100)
    assert (found["label"].tolist(), found["coarse"].tolist()) == ([42], [7])
    assert found["image"][0, 0, :3].tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes(3073) + b"x", "3,074 bytes are not a multiple of 3,073"),
        (b"", "is empty"),
        (bytes([10]) + bytes(3072), "label 10"),
    ],
)
def test_damaged_files(tmp_path, data, says):
    (tmp_path / "test_batch.bin").write_bytes(data)
    with pytest.raises(UserError, match=says):
        cifar(tmp_path, "test")


def test_wrong_arguments(tmp_path):
    with pytest.raises(UserError, match=r"data_batch_1\.bin"):
        cifar(tmp_path)
    with pytest.raises(UserError, match="classes=20"):
        cifar(tmp_path, classes=20)
