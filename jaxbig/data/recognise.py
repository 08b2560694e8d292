"""Which format a file or a folder is in, told by what it holds and not by its name, and its parts as sources."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxbig.data.audio import Clips, WavFolder, read_wav
from jaxbig.data.file import decoded, inside, missing, read
from jaxbig.data.idx import FASHION_CLASSES, MNIST, idx_name, mnist, read_idx
from jaxbig.data.image import ImageFolder, PackedImages, decode, images_in
from jaxbig.data.npz import MEDMNIST, medmnist, read_npz
from jaxbig.data.source import ArraySource, Source
from jaxbig.data.speech import emodb, fsdd
from jaxbig.data.table import read_table, sniff
from jaxbig.data.text import columns, read_aligned, read_lines, read_records
from jaxbig.errors import UserError

_NOTES = re.compile(r"(?i)(source|readme|license|copying|citation|changelog|notice).*")
_IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_ORDER = ("train", "val", "dev")
_FSDD_NAME = re.compile(r"\d_[A-Za-z]+_\d+")
_NOTHING: Mapping = MappingProxyType({})
_EMODB_NAME = re.compile(r"\d{2}[a-z]\d{2}[A-Z][a-z]")


class Part(NamedTuple):
    """One split or file of a set.

    Attributes:
        source: its examples.
        classes: name of an array -> names of its codes.
        rate: samples a second of ``audio``; None where there is none.
    """

    source: Source
    classes: Mapping[str, Sequence[str]]
    rate: int | None = None


class Recognised(NamedTuple):
    """A set of data.

    Attributes:
        format: what it was recognised as.
        parts: a split's or a file's name -> the part.
        left_out: files that were not read, and why.
    """

    format: str
    parts: dict[str, Part]
    left_out: str = ""


def recognise(path: str | os.PathLike, size: tuple[int, int] | None = None) -> Recognised:
    """Reads a file or a folder in whichever of the known formats it is.

    Args:
        path: IDX, npz (arrays, MedMNIST, packed JPEGs, packed recordings), separated values, JSON, jsonl, text, wav or
            an image; or a folder of MNIST's files, of images or recordings (a sub-folder a class), of lines in several
            languages (``train.en``, ``train.de``), or of several files of one format.
        size: (height, width) that images in files are resized to.

    Returns:
        the set; images and recordings in files are read when they are asked for.

    Raises:
        UserError: no such file or folder; none of the formats; as the format's reader.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers"
        >>> _ = path.write_text("x,y\\n1,2\\n3,4\\n")
        >>> recognise(path).format, len(recognise(path).parts["numbers"].source)
        ('table', 2)
    """
    path = Path(path)
    if not path.exists():
        raise missing(path)
    return _folder(path, size) if path.is_dir() else _file(path, size)


def _file(path: Path, size: tuple[int, int] | None) -> Recognised:
    data = read(path)
    stem = path.name.removesuffix(".gz")
    if data.startswith(b"PK"):
        return _npz(path, size)
    if data[:2] == b"\0\0" and len(data) > 3 and data[2] in range(8, 15):
        array = read_idx(path)
        return _one("IDX", stem, ArraySource({"image" if array.ndim == 3 else "label": array}))
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        samples, rate = read_wav(path)
        return _one("recording (wav)", stem, Clips(samples, np.array([0, len(samples)]), rate), rate=rate)
    if data.startswith(_IMAGE_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return _one("image", stem, ArraySource({"image": decode(data, str(path), size)[None]}))
    if b"\0" in data[:4096]:
        raise UserError(
            f"{path}: none of the known formats, it begins with the bytes {data[:4].hex(' ')}; known are IDX, npz, "
            "wav, images, separated values, JSON and text, each gzipped or not"
        )
    text = decoded(path, data)
    if re.match(r"\s*(\{|\[\s*[\[{\]])", text):
        return _one("JSON records", stem, ArraySource(columns(read_records(path))))
    if sniff(text):
        table = read_table(path)
        return _one("table", stem, ArraySource(table.columns), table.vocabulary)
    return _one("text", stem, ArraySource(read_lines(path)))


def _one(kind: str, name: str, source: Source, classes: Mapping = _NOTHING, rate: int | None = None) -> Recognised:
    return Recognised(kind, {name: Part(source, classes, rate)})


def _npz(path: Path, size: tuple[int, int] | None) -> Recognised:
    arrays = read_npz(path)
    if {"jpeg", "offsets"} <= arrays.keys():
        packed = PackedImages(path, size)
        return _one("packed images (npz)", path.name, packed, {"label": packed.classes} if packed.classes else {})
    if splits := [split for split in MEDMNIST if {f"{split}_images", f"{split}_labels"} <= arrays.keys()]:
        parts = {split: Part(ArraySource(medmnist(path, split)), {}) for split in splits}
        return Recognised("MedMNIST (npz)", parts)
    names = [str(name) for name in arrays["names"]] if {"audio", "names"} <= arrays.keys() else []
    return _speech(path, names, "npz") or _one("arrays (npz)", path.name, ArraySource(arrays))


def _speech(path: Path, names: list[str], kind: str) -> Recognised | None:
    """The two known sets of speech, told by how their files are named."""
    if names and all(map(_FSDD_NAME.fullmatch, names)):
        halves = {split: fsdd(path, split, None) for split in ("train", "test")}
        parts = {split: Part(clips, clips.classes, clips.rate) for split, clips in halves.items()}
        return Recognised(f"Free Spoken Digit Dataset ({kind})", parts)
    if names and all(map(_EMODB_NAME.fullmatch, names)):
        clips = emodb(path, None)
        return _one(f"EmoDB ({kind})", path.name, clips, clips.classes, clips.rate)
    return None


def _folder(folder: Path, size: tuple[int, int] | None) -> Recognised:
    held = inside(folder)
    files, folders = [path for path in held if path.is_file()], [path for path in held if path.is_dir()]
    names = {idx_name(path.name) for path in files}
    if splits := [split for split, prefix in MNIST.items() if f"{prefix}-images-idx3-ubyte" in names]:
        classes = {"label": FASHION_CLASSES} if "fashion" in folder.resolve().name else {}
        return Recognised("MNIST (IDX)", {split: Part(ArraySource(mnist(folder, split)), classes) for split in splits})
    if any(path.suffix.lower() == ".wav" for path in folder.rglob("*")):
        wavs = WavFolder(folder)
        speech = _speech(folder, [path.stem for path in wavs.paths], "wav")
        return speech or _one("recordings (wav)", folder.name, wavs, wavs.classes, wavs.rate)
    notes = [path.name for path in files if _NOTES.fullmatch(path.name)]
    images = images_in(folder)
    files = [path for path in files if path.name not in notes and path not in images]
    # Pictures somewhere below other files are no set of images.
    if images and (not files or (folders and all(map(images_in, folders)))):
        return _images(folder, folders, size)
    if not files:
        holds = f"only the folders {', '.join(path.name for path in folders)}" if folders else "no data"
        raise UserError(f"{folder}: holds {holds}; give the folder or the file that holds the data")
    found = _translations(files) or _files(files, size)
    return found._replace(left_out=f"{', '.join(notes)} (notes)" if notes else "")


def _images(folder: Path, folders: list[Path], size: tuple[int, int] | None) -> Recognised:
    """A folder of classes; or of splits, where each sub-folder has the same sub-folders of images again."""
    inner = [{path.name for path in inside(sub) if path.is_dir() and images_in(path)} for sub in folders]
    if folders and all(inner) and all(names == inner[0] for names in inner):
        sources = {sub.name: ImageFolder(sub, size) for sub in folders}
        parts = {name: Part(source, {"label": source.classes}) for name, source in sources.items()}
        return Recognised("folders of images", parts)
    source = ImageFolder(folder, size)
    return _one("folder of images", folder.name, source, {"label": source.classes} if source.classes else {})


def _translations(files: list[Path]) -> Recognised | None:
    """Files ``PART.LANGUAGE[.gz]``, with the same languages for each part and two at least."""
    parts: dict[str, dict[str, Path]] = {}
    for path in files:
        stem, _, language = path.name.removesuffix(".gz").rpartition(".")
        if not stem or not re.fullmatch(r"[a-z]{2}", language):
            return None
        parts.setdefault(stem, {})[language] = path
    if len({tuple(sorted(part)) for part in parts.values()}) > 1 or min(map(len, parts.values())) < 2:
        return None
    sources = {stem: ArraySource(read_aligned(paths)) for stem, paths in parts.items()}
    return Recognised("aligned lines", {stem: Part(source, {}) for stem, source in sources.items()})


def _files(files: list[Path], size: tuple[int, int] | None) -> Recognised:
    """Several files, each of them a part, those to train on first."""
    ordered = sorted(
        files, key=lambda path: next((i for i, word in enumerate(_ORDER) if word in path.name), len(_ORDER))
    )
    found = {path.name.removesuffix(".gz"): _file(path, size) for path in ordered}
    parts = {
        part if len(found) == 1 or len(one.parts) == 1 else f"{name}: {part}": whole
        for name, one in found.items()
        for part, whole in one.parts.items()
    }
    return Recognised(" and ".join(dict.fromkeys(one.format for one in found.values())), parts)
