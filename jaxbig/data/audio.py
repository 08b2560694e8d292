"""Recordings, from wav files or from memory, as batches of clips of one length."""

import io
import os
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbig.data.array import Batch
from jaxbig.data.file import inside, read
from jaxbig.data.npz import checked_offsets
from jaxbig.data.source import positions
from jaxbig.errors import UserError

_SCALE = {1: 2**7, 2: 2**15, 3: 2**23, 4: 2**31}
_MEND = "convert it, e.g. ffmpeg -i in.wav -ac 1 -c:a pcm_s16le out.wav"


def read_wav(path: str | os.PathLike, hint: str = "") -> tuple[np.ndarray, int]:
    """Reads a mono PCM wav file.

    Args:
        path: the file, of 8, 16, 24 or 32 bits.
        hint: how to get the file where it is not there.

    Returns:
        float32 [T] in [-1, 1), and the rate in samples a second.

    Raises:
        UserError: no wav file, not PCM, not mono, cut off, or without samples.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.wav"
        >>> with wave.open(str(path), "wb") as file:
        ...     file.setparams((1, 2, 8000, 0, "NONE", ""))
        ...     file.writeframes(np.array([0, 16384, -32768], "<i2").tobytes())
        >>> read_wav(path)
        (array([ 0. ,  0.5, -1. ], dtype=float32), 8000)
    """
    samples, rate, scale = _pcm(path, read(path, hint))
    return samples.astype(np.float32) / scale, rate


class Clips:
    """Recordings as a source: each is cut, or filled up with zeros at its end, to one length.

    Args:
        samples: int16 or float32 [S], all clips behind each other.
        offsets: int [N + 1]; clip i is ``samples[offsets[i]:offsets[i + 1]]``.
        rate: samples a second.
        columns: name -> array [N] of what else is known: labels, speakers.
        seconds: the length of every clip in a batch; None takes the longest clip's.
        classes: name of a column -> names of its codes.

    Attributes:
        columns: name -> array [N], for splits by label or by speaker. rate, classes: as given.
        length: T, samples in a batch's clips. lengths: int32 [N], samples of each clip.

    A batch has ``audio`` float32 [B, T] in [-1, 1), ``length`` int32 [B] (samples that are not filling), and `columns`.

    Raises:
        UserError: offsets that do not fit, a column of another length, seconds not above 0.

    Example:
        >>> clips = Clips(np.array([1, 2, 3], np.int16), np.array([0, 1, 3]), rate=8000)
        >>> (clips.batch(np.array([0]))["audio"] * 32768).tolist()
        [[1.0, 0.0]]
    """

    def __init__(
        self,
        samples: np.ndarray,
        offsets: np.ndarray,
        rate: int,
        columns: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        classes: Mapping[str, Sequence[str]] | None = None,
        path: str | os.PathLike = "clips",
    ):
        self.samples, self.offsets = samples, checked_offsets(path, np.asarray(offsets), len(samples))
        self.lengths = np.diff(self.offsets).astype(np.int32)
        self.rate, self.length = rate, _length(seconds, rate, self.lengths)
        self.columns = _columns(path, columns or {}, len(self.lengths))
        self.classes = {name: tuple(names) for name, names in (classes or {}).items()}

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, index: np.ndarray) -> Batch:
        """Clips `index` (int64 [B]), cut or filled up to T samples."""
        index = positions(index, len(self))
        clips = [self.samples[self.offsets[i] : self.offsets[i + 1]] for i in index]
        scale = 1 if self.samples.dtype.kind == "f" else _SCALE[self.samples.dtype.itemsize]
        return _filled(clips, self.length, scale) | {name: column[index] for name, column in self.columns.items()}


class WavFolder:
    """Mono PCM wav files as a source, read when they are asked for; a sub-folder a class, or all in one folder.

    Args:
        folder: its sub-folders' names, sorted, are the classes; without sub-folders there are no labels.
        seconds: as for `Clips`.

    Attributes:
        paths: the N files. rate, columns, classes, length, lengths: as those of `Clips`.

    A batch is one of `Clips`, with ``label`` int32 [B] where there are classes.

    Raises:
        UserError: no wav file, a damaged one, one of another rate than the first; as `read_wav`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "yes" / "1.wav"
        >>> path.parent.mkdir()
        >>> with wave.open(str(path), "wb") as file:
        ...     file.setparams((1, 2, 8000, 0, "NONE", ""))
        ...     file.writeframes(bytes(8))
        >>> words = WavFolder(path.parent.parent, seconds=0.001)
        >>> words.classes, words.batch(np.array([0]))["audio"].shape
        ({'label': ('yes',)}, (1, 8))
    """

    def __init__(self, folder: str | os.PathLike, seconds: float | None = None):
        held = inside(folder, "give a folder of wav files, or one with one sub-folder of them a class")
        folders = [path for path in held if path.is_dir()]
        found = {path: _wavs(path) for path in folders} if folders else {Path(folder): _wavs(folder)}
        if empty := [path for path, files in found.items() if not files]:
            raise UserError(f"{empty[0]}: holds no wav file; remove it or fill it")
        self.paths = [path for files in found.values() for path in files]
        heads = [_pcm(path, read(path)) for path in self.paths]
        self.rate = heads[0][1]
        for path, (_, rate, _) in zip(self.paths, heads, strict=True):
            if rate != self.rate:
                raise UserError(f"{path}: {rate} samples a second, but {self.paths[0]} has {self.rate}; resample one")
        self.lengths = np.array([len(samples) for samples, _, _ in heads], np.int32)
        self.length = _length(seconds, self.rate, self.lengths)
        labels = [i for i, files in enumerate(found.values()) for _ in files]
        self.columns: Batch = {"label": np.array(labels, np.int32)} if folders else {}
        self.classes = {"label": tuple(path.name for path in folders)} if folders else {}

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, index: np.ndarray) -> Batch:
        """Recordings `index` (int64 [B]), read now, cut or filled up to T samples."""
        index = positions(index, len(self))
        clips = [read_wav(self.paths[i])[0] for i in index]
        return _filled(clips, self.length, 1) | {name: column[index] for name, column in self.columns.items()}


def _pcm(path: str | os.PathLike, data: bytes) -> tuple[np.ndarray, int, int]:
    """Samples as integers, the rate, and the scale of one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise UserError(f"{path}: no wav file, it begins with the bytes {data[:4].hex(' ')}; {_MEND}")
    try:
        with wave.open(io.BytesIO(data), "rb") as file:
            channels, width, rate, frames = file.getparams()[:4]
            raw = file.readframes(frames)
    except (wave.Error, EOFError) as error:
        raise UserError(f"{path}: no PCM wav file ({' '.join(str(error).split()) or 'cut off'}); {_MEND}") from error
    if channels != 1:
        raise UserError(f"{path}: {channels} channels, not one; {_MEND}")
    if width not in _SCALE:
        raise UserError(f"{path}: {8 * width} bits a sample, not 8, 16, 24 or 32; {_MEND}")
    if not frames:
        raise UserError(f"{path}: holds no samples; remove it or get it again")
    if len(raw) != frames * width:
        raise UserError(f"{path}: cut off at byte {len(data)}: {len(raw) // width} samples of {frames}; get it again")
    if width == 1:
        return np.frombuffer(raw, np.uint8).astype(np.int16) - 128, rate, _SCALE[1]
    if width == 3:
        # The three bytes become the upper ones of four, which keeps the sign.
        padded = np.zeros((frames, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0] >> 8, rate, _SCALE[3]
    return np.frombuffer(raw, f"<i{width}"), rate, _SCALE[width]


def _wavs(folder: str | os.PathLike) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() == ".wav" and path.is_file())


def _length(seconds: float | None, rate: int, lengths: np.ndarray) -> int:
    if seconds is None:
        return int(lengths.max())
    if not seconds * rate >= 1:
        raise UserError(f"clips: seconds={seconds} at {rate} samples a second is no sample; use more seconds, or None")
    return round(seconds * rate)


def _columns(path: str | os.PathLike, columns: Mapping[str, Any], n: int) -> Batch:
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    if wrong := [name for name, array in arrays.items() if array.shape[:1] != (n,)]:
        raise UserError(f"{path}: column {wrong[0]!r} is {list(arrays[wrong[0]].shape)}, but there are {n} clips")
    return arrays


def _filled(clips: Sequence[np.ndarray], length: int, scale: int) -> Batch:
    audio = np.zeros((len(clips), length), np.float32)
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip)] = clip[:length]
    lengths = np.array([min(len(clip), length) for clip in clips], np.int32)
    return {"audio": audio / np.float32(scale), "length": lengths}
