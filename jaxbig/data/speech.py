"""Two public sets of speech: spoken digits and emotions, from their wav files or from an npz archive of them."""

import os
from pathlib import Path

import numpy as np

from jaxbig.data.audio import Clips, WavFolder, read_wav
from jaxbig.data.npz import read_npz
from jaxbig.errors import UserError

EMOTIONS = {
    "W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness", "N": "neutral", "T": "sadness",
}  # fmt: skip
"""EmoDB's letters (Wut, Langeweile, Ekel, Angst, Freude, neutral, Trauer), in the order of their codes."""


def fsdd(path: str | os.PathLike, split: str = "train", seconds: float | None = 1.0) -> Clips:
    """The Free Spoken Digit Dataset: ten digits, six speakers, 8 kHz.

    Args:
        path: its folder ``recordings`` with files ``<digit>_<speaker>_<number>.wav``, or an npz archive with ``audio``
            int16 [S], ``offsets`` [N + 1] and ``names`` (the file names without ``.wav``).
        split: "test" is the official one, recordings 0 to 4 of each digit and speaker; "train" the rest; "all" both.
        seconds: as for `Clips`.

    Returns:
        `Clips` with the columns ``label`` int32 (the digit) and ``speaker`` int32 (in the order of their names).

    Raises:
        UserError: as `read_wav` and `read_npz`; a file name of another form.

    Example:
        >>> fsdd("recordings")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: recordings: no such file or folder; FSDD is a public set: give its folder ...

    Reference:
        Jackson et al. (2018), "Free Spoken Digit Dataset", v1.0.8.
    """
    hint = "FSDD is a public set: give its folder recordings (files <digit>_<speaker>_<number>.wav), or fsdd.npz"
    samples, offsets, names, rate = _packed(path, hint, 8000)
    parts = [name.split("_") for name in names]
    for name, part in zip(names, parts, strict=True):
        if len(part) != 3 or not part[0].isdigit() or not part[2].isdigit():
            raise UserError(f"{path}: {name!r} is not named <digit>_<speaker>_<number>; give FSDD's own files")
    if split not in ("train", "test", "all"):
        raise UserError(f"fsdd: split={split!r}; use 'train', 'test' or 'all'")
    speakers = sorted({part[1] for part in parts})
    columns = {"label": [int(part[0]) for part in parts], "speaker": [speakers.index(part[1]) for part in parts]}
    wanted = [i for i, part in enumerate(parts) if split == "all" or (int(part[2]) < 5) == (split == "test")]
    classes = {"label": [str(digit) for digit in range(10)], "speaker": speakers}
    return _chosen(path, samples, offsets, rate, columns, seconds, classes, wanted)


def emodb(path: str | os.PathLike, seconds: float | None = 2.0) -> Clips:
    """The Berlin Database of Emotional Speech: seven emotions, ten speakers.

    Args:
        path: its folder ``wav`` with files such as ``03a01Fa.wav``, or an npz archive with ``audio`` int16 [N, T] of
            8 kHz and ``names`` (the file names without ``.wav``).
        seconds: as for `Clips`.

    Returns:
        `Clips` with the columns ``label`` int32 (codes of `EMOTIONS`) and ``speaker`` int32 (in the order of their
        numbers), for splits that keep speakers apart.

    Raises:
        UserError: as `read_wav` and `read_npz`; a file name of another form.

    Example:
        >>> emodb("wav")
        Traceback (most recent call last):
            ...
        jaxbig.errors.UserError: wav: no such file or folder; EmoDB is a public set: give its folder wav (files ...

    Reference:
        Burkhardt et al. (2005), "A database of German emotional speech".
    """
    hint = "EmoDB is a public set: give its folder wav (files such as 03a01Fa.wav), or an npz archive of it"
    samples, offsets, names, rate = _packed(path, hint, 8000)
    for name in names:
        if len(name) != 7 or not name[:2].isdigit() or name[5] not in EMOTIONS:
            raise UserError(f"{path}: {name!r} is not named like 03a01Fa; give EmoDB's own files")
    speakers, letters = sorted({name[:2] for name in names}), list(EMOTIONS)
    columns = {
        "label": [letters.index(name[5]) for name in names],
        "speaker": [speakers.index(name[:2]) for name in names],
    }
    classes = {"label": list(EMOTIONS.values()), "speaker": speakers}
    return _chosen(path, samples, offsets, rate, columns, seconds, classes, list(range(len(names))))


def _packed(path: str | os.PathLike, hint: str, rate: int) -> tuple[np.ndarray, np.ndarray, list[str], int]:
    """Samples, offsets, names and rate, from a folder of wav files or from an npz archive."""
    if Path(path).is_dir():
        folder = WavFolder(path)
        clips = [read_wav(file)[0] for file in folder.paths]
        offsets = np.concatenate([[0], np.cumsum(folder.lengths, dtype=np.int64)])
        return np.concatenate(clips), offsets, [file.stem for file in folder.paths], folder.rate
    arrays = read_npz(path, hint=hint)
    if absent := [name for name in ("audio", "names") if name not in arrays]:
        raise UserError(f"{path}: holds no array {absent[0]!r}, only {', '.join(arrays)}")
    audio = arrays["audio"]
    if audio.dtype != np.int16 or audio.ndim != (1 if "offsets" in arrays else 2):
        raise UserError(
            f"{path}: audio is {audio.dtype.name} {list(audio.shape)}, not int16 [N, T], nor [S] with offsets"
        )
    offsets = arrays["offsets"] if "offsets" in arrays else np.arange(len(audio) + 1) * audio.shape[-1]
    names = [str(name) for name in arrays["names"]]
    if len(names) != len(offsets) - 1:
        raise UserError(f"{path}: {len(names)} names for {len(offsets) - 1} clips; get the file again")
    return audio.reshape(-1), offsets, names, rate


def _chosen(path, samples, offsets, rate, columns, seconds, classes, wanted: list[int]) -> Clips:
    """The clips that are wanted, copied together."""
    if not wanted:
        raise UserError(f"{path}: no clip belongs to this split; ask for another one")
    clips = [samples[offsets[i] : offsets[i + 1]] for i in wanted]
    ends = np.concatenate([[0], np.cumsum([len(clip) for clip in clips])])
    columns = {name: np.array(column, np.int32)[wanted] for name, column in columns.items()}
    return Clips(np.concatenate(clips), ends, rate, columns, seconds, classes, path)
