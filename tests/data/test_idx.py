"""IDX files, MNIST and Fashion-MNIST: what is written comes back, the real sets have their published numbers."""

import gzip
import struct

import numpy as np
import pytest

from jaxbig.data.idx import FASHION_CLASSES, FASHION_FOLDER, fashion_mnist, idx_name, mnist, read_idx

TYPES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array):
    array = np.asarray(array)
    head = struct.pack(f">HBB{array.ndim}I", 0, TYPES[array.dtype.name], array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (0, 5)])
def test_reads_every_type_and_shape(tmp_path, dtype, shape):
    array = np.arange(-3, np.prod(shape) - 3).astype(dtype).reshape(shape)
    (tmp_path / "a").write_bytes(idx_bytes(array))
    read = read_idx(tmp_path / "a")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("pattern", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "{}-{}-idx{}-ubyte.gz"])
def test_all_spellings_of_the_files(tmp_path, pattern):
    images, labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 2], np.uint8)
    for prefix in ("train", "t10k"):
        for kind, array in (("images", images), ("labels", labels)):
            path = tmp_path / pattern.format(prefix, kind, array.ndim)
            data = idx_bytes(array)
            path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
            assert idx_name(path.name) == f"{prefix}-{kind}-idx{array.ndim}-ubyte"
    for split in ("train", "test"):
        batch = mnist(tmp_path, split)
        assert batch["image"].shape == (2, 3, 4, 1)
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"][..., 0], images)
        assert batch["label"].tolist() == [7, 2]


def test_mnist_is_complete(real_data):
    folder = real_data("mnist")
    train, test = mnist(folder), mnist(folder, "test")
    assert (train["image"].shape, test["image"].shape) == ((60000, 28, 28, 1), (10000, 28, 28, 1))
    assert train["label"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test["label"][:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert round(float(train["image"].mean()) / 255, 4) == 0.1307  # the published mean


def test_fashion_mnist_from_the_package_of_debian():
    from pathlib import Path

    if not Path(FASHION_FOLDER).exists():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    train = fashion_mnist()
    assert train["image"].shape == (60000, 28, 28, 1)
    assert np.bincount(train["label"]).tolist() == [6000] * len(FASHION_CLASSES)
