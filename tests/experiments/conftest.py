"""Small sets in the public formats, for experiments that are run end to end."""

import gzip
from pathlib import Path

import numpy as np
import pytest


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="session")
def blots(tmp_path_factory) -> Path:
    """Ten coarse patterns with noise, in the four files of MNIST: a set that any network learns in a few steps."""
    folder, random = tmp_path_factory.mktemp("blots"), np.random.default_rng(0)
    patterns = np.kron(random.integers(0, 2, (10, 4, 4)), np.ones((7, 7))) * 200
    for stem, size in (("train", 320), ("t10k", 48)):
        labels = np.arange(size) % 10
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", patterns[labels] + random.integers(0, 50, (size, 28, 28)))
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)
    return folder
