"""Images in files, decoded when they are asked for: folders of classes, and JPEGs packed into one npz archive."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxbig.data.array import Batch
from jaxbig.data.file import inside, read
from jaxbig.data.npz import checked_offsets, read_npz
from jaxbig.data.source import positions
from jaxbig.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_MODES = {1: "L", 3: "RGB"}
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")


def decode(data: bytes, name: str, size: tuple[int, int] | None = None, channels: int = 3) -> np.ndarray:
    """Decodes one image.

    Args:
        data: the bytes of a JPEG, PNG, or another file that Pillow reads.
        name: what errors call it.
        size: (height, width) to resize to (bilinear, over the whole of the old pixels; the aspect is not kept).
        channels: 3 for RGB, 1 for grey; transparency is dropped.

    Returns:
        uint8 [height, width, channels], upright as the camera's tag says.

    Raises:
        UserError: no image, a truncated one, or one of more than 8 bits a channel.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (4, 2), "red").save(file, "png")
        >>> decode(file.getvalue(), "a.png").shape, decode(file.getvalue(), "a.png", size=(8, 8), channels=1).shape
        ((2, 4, 3), (8, 8, 1))
    """
    if channels not in _MODES:
        raise UserError(f"decode: channels={channels}; use 3 for RGB or 1 for grey")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.mode not in _EIGHT_BIT:
                raise UserError(f"{name}: {opened.mode} pixels of more than 8 bits are not read; convert it to 8 bits")
            opened.load()
            image: Any = ImageOps.exif_transpose(opened).convert(_MODES[channels])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no image that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(f"{name}: cannot be decoded ({' '.join(reason.split())}); replace or remove it") from error
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)


class ImageFolder:
    """A folder with one sub-folder of images a class, as a source; or images alone, without labels.

    Args:
        folder: its sub-folders' names, sorted, are the classes 0, 1, ...; images may lie deeper inside them.
        size: (height, width) to resize to, or one number for both; needed where the images differ in size.
        channels: 3 or 1.
        classes: the classes in order, where it shall be another one, or that of the training folder.

    Attributes:
        paths: the N files. classes: names, () where there are no sub-folders. labels: int32 [N].

    A batch has ``image`` uint8 [B, H, W, channels] and, where there are classes, ``label`` int32 [B].

    Raises:
        UserError: no such folder, no images, a class without images, a sub-folder that is not in `classes`; on `batch`:
            an image that cannot be decoded, images of different sizes.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (4, 4)).save(folder / name / "1.png")
        >>> pets = ImageFolder(folder)
        >>> len(pets), pets.classes, pets.batch(np.array([1]))["label"].tolist()
        (2, ('cat', 'dog'), [1])
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        size: int | tuple[int, int] | None = None,
        channels: int = 3,
        classes: Sequence[str] | None = None,
    ):
        self.size, self.channels = _both(size), channels
        held = inside(folder, "give a folder with one sub-folder of images a class")
        folders = [path for path in held if path.is_dir()]
        if classes is not None and not folders:
            raise UserError(f"{folder}: holds no sub-folders, but classes were given; leave classes out")
        self.classes = tuple(classes if classes is not None else (path.name for path in folders))
        if strange := [path for path in folders if path.name not in self.classes]:
            raise UserError(f"{strange[0]}: no class of that name; the classes are {', '.join(self.classes)}")
        found = {path: images_in(path) for path in folders} if folders else {Path(folder): images_in(folder)}
        if empty := [path for path, images in found.items() if not images]:
            raise UserError(f"{empty[0]}: holds no image ({', '.join(SUFFIXES)}); remove it or fill it")
        self.paths = [image for images in found.values() for image in images]
        names = [path.name for path, images in found.items() for _ in images]
        self.labels = np.array([self.classes.index(name) if folders else 0 for name in names], np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, index: np.ndarray) -> Batch:
        """Images `index` (int64 [B]), read and decoded now."""
        index = positions(index, len(self))
        images = [decode(read(self.paths[i]), str(self.paths[i]), self.size, self.channels) for i in index]
        stacked = _stack(images, [str(self.paths[i]) for i in index], self.size, self.channels)
        return {"image": stacked} | ({"label": self.labels[index]} if self.classes else {})


class PackedImages:
    """Encoded images behind each other in an npz archive, as a source.

    Args:
        path: an archive with ``jpeg`` uint8 (the files' bytes, one behind the other) and ``offsets`` int [N + 1]
            (image i is ``jpeg[offsets[i]:offsets[i + 1]]``); where there are labels, ``labels`` int [N] and
            ``classes`` (names).
        size, channels: as for `ImageFolder`.

    Attributes:
        classes: names, () where the archive has none. labels: int32 [N], None where the archive has none.

    A batch has ``image`` uint8 [B, H, W, channels] and ``label`` int32 [B].

    Raises:
        UserError: as `read_npz`; offsets that do not fit the bytes; labels of another number, or outside the classes.

    Example:
        >>> import tempfile
        >>> file, path = io.BytesIO(), Path(tempfile.mkdtemp()) / "a.npz"
        >>> Image.new("RGB", (4, 4)).save(file, "jpeg")
        >>> data = np.frombuffer(file.getvalue(), np.uint8)
        >>> np.savez(path, jpeg=data, offsets=[0, len(data)], labels=[3])
        >>> PackedImages(path).batch(np.array([0]))["image"].shape
        (1, 4, 4, 3)
    """

    def __init__(self, path: str | os.PathLike, size: int | tuple[int, int] | None = None, channels: int = 3):
        arrays = read_npz(path)
        if absent := [name for name in ("jpeg", "offsets") if name not in arrays]:
            raise UserError(f"{path}: holds no array {absent[0]!r}, only {', '.join(arrays)}")
        self.path, self.size, self.channels = Path(path), _both(size), channels
        self.data, self.offsets = arrays["jpeg"], checked_offsets(path, arrays["offsets"], len(arrays["jpeg"]))
        self.classes = tuple(str(name) for name in arrays.get("classes", ()))
        self.labels = arrays["labels"].astype(np.int32) if "labels" in arrays else None
        if self.labels is not None and self.labels.shape != (len(self),):
            raise UserError(f"{path}: {len(self)} images but labels {list(self.labels.shape)}; get the file again")
        if (
            self.labels is not None
            and self.classes
            and not (0 <= self.labels.min() <= self.labels.max() < len(self.classes))
        ):
            raise UserError(
                f"{path}: labels from {self.labels.min()} to {self.labels.max()}, {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, index: np.ndarray) -> Batch:
        """Images `index` (int64 [B]), decoded now."""
        index = positions(index, len(self))
        names = [f"{self.path}: image {i}" for i in index]
        data = [self.data[self.offsets[i] : self.offsets[i + 1]].tobytes() for i in index]
        images = [decode(d, name, self.size, self.channels) for d, name in zip(data, names, strict=True)]
        stacked = _stack(images, names, self.size, self.channels)
        return {"image": stacked} | ({} if self.labels is None else {"label": self.labels[index]})


def images_in(folder: str | os.PathLike) -> list[Path]:
    """The images in a folder and below it, by the ends of their names, sorted.

    Example:
        >>> import tempfile
        >>> images_in(tempfile.mkdtemp())
        []
    """
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _both(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _stack(images: list[np.ndarray], names: list[str], size: tuple[int, int] | None, channels: int) -> np.ndarray:
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            raise UserError(
                f"{name}: {image.shape[0]} x {image.shape[1]} pixels, but {names[0]} has {images[0].shape[0]} x "
                f"{images[0].shape[1]}; give a size to resize them all"
            )
    return np.stack(images) if images else np.zeros((0, *(size or (0, 0)), channels), np.uint8)
