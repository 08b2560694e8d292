"""NumPy's npz archives, and the sets of images that are published in them."""

import io
import os
import zipfile
import zlib

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.file import read
from jaxbig.errors import UserError

MEDMNIST = ("train", "val", "test")
"""The splits that MedMNIST has."""


def read_npz(path: str | os.PathLike, names: tuple[str, ...] = (), hint: str = "") -> Batch:
    """Reads arrays of an npz archive; nothing in it is ever unpickled.

    Args:
        path: the archive.
        names: the arrays to read; () reads all.
        hint: how to get the file where it is not there.

    Returns:
        name -> array.

    Raises:
        UserError: no npz archive, a damaged one, one without an array of that name, or one that holds Python objects.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/a.npz"
        >>> np.savez(path, x=np.arange(3))
        >>> read_npz(path)
        {'x': array([0, 1, 2])}
    """
    data = read(path, hint)
    if not data.startswith(b"PK"):
        raise UserError(f"{path}: no npz archive, it begins with the bytes {data[:4].hex(' ')}; write it with np.savez")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as zipped:
            if strange := [name for name in zipped.namelist() if not name.endswith(".npy")]:
                raise UserError(
                    f"{path}: a zip archive that holds {strange[0]}, no npz archive; unpack it and give the folder"
                )
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            if absent := [name for name in names if name not in archive.files]:
                raise UserError(f"{path}: holds no array {absent[0]!r}, only {', '.join(archive.files)}")
            return {name: _member(path, archive, name) for name in names or archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: damaged npz archive ({' '.join(str(error).split())}); get it again") from error


def medmnist(path: str | os.PathLike, split: str = "train") -> Batch:
    """Reads a set of MedMNIST, such as ``pneumoniamnist.npz``: seventeen sets of medical images in one layout.

    Args:
        path: the archive with the arrays ``train_images``, ``train_labels``, ``val_images``, ...
        split: "train", "val" or "test".

    Returns:
        ``image`` uint8 [N, H, W, C] (C = 1 for grey; [N, D, H, W, 1] for volumes), and ``label`` int32 [N], or [N, L]
        where the set has L labels an image.

    Raises:
        UserError: as `read_npz`; no such split; images and labels differ in number; images are not bytes.

    Example:
        >>> medmnist("pneumoniamnist.npz")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: pneumoniamnist.npz: no such file or folder; it is one npz file of ...

    Reference:
        Yang et al. (2023), "MedMNIST v2", arXiv:2110.14795.
    """
    if split not in MEDMNIST:
        raise UserError(f"medmnist: split={split!r}; use 'train', 'val' or 'test'")
    arrays = read_npz(
        path,
        (f"{split}_images", f"{split}_labels"),
        "it is one npz file of the public MedMNIST collection; give its path",
    )
    images, labels = arrays.values()
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{path}: {split}_images is {images.dtype.name} {list(images.shape)}, not uint8 [N, H, W], [N, H, W, 3] "
            "or [N, D, H, W]; give a set of MedMNIST"
        )
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2):
        raise UserError(f"{path}: {split}_labels is {labels.dtype.name} {list(labels.shape)}, not integers [N, L]")
    if len(images) != len(labels):
        raise UserError(f"{path}: {len(labels)} labels for {len(images)} images in {split}; get the file again")
    if images.ndim == 3 or images.shape[-1] != 3:
        images = images[..., None]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return {"image": images, "label": labels.astype(np.int32)}


def checked_offsets(path: str | os.PathLike, offsets: np.ndarray, end: int) -> np.ndarray:
    """Offsets [N + 1] of N parts that lie behind each other in `end` elements, as int64.

    Raises:
        UserError: they do not begin at 0, fall, or do not end at `end`.

    Example:
        >>> checked_offsets("a.npz", np.array([0, 2, 5]), 5)
        array([0, 2, 5])
    """
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        raise UserError(f"{path}: offsets are {offsets.dtype.name} {list(offsets.shape)}, not integers [N + 1]")
    offsets = offsets.astype(np.int64)
    if falling := np.flatnonzero(np.diff(offsets) <= 0).tolist():
        at = falling[0]
        raise UserError(f"{path}: offsets[{at + 1}]={offsets[at + 1]} is not beyond offsets[{at}]={offsets[at]}")
    if offsets[0] != 0 or offsets[-1] != end:
        raise UserError(
            f"{path}: offsets run from {offsets[0]} to {offsets[-1]}, the data from 0 to {end}; it is cut off"
        )
    return offsets


def _member(path: str | os.PathLike, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = archive[name]
    except ValueError as error:
        if "pickle" in str(error):
            raise UserError(
                f"{path}: array {name!r} holds pickled Python objects, which are never read; save it as numbers or text"
            ) from error
        raise UserError(f"{path}: array {name!r} is damaged ({' '.join(str(error).split())}); get it again") from error
    if not isinstance(array, np.ndarray):  # NumPy gives bytes where its own header is not there
        raise UserError(f"{path}: array {name!r} is damaged (it has no header); get it again")
    return array
