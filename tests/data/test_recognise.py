"""Formats are told by what files hold: under names that say nothing, and as the real sets lie on disk."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from jaxbig.data.recognise import recognise

IDX = {
    "images": struct.pack(">HBBIII", 0, 8, 3, 2, 2, 2) + bytes(range(8)),
    "labels": struct.pack(">HBBI", 0, 8, 1, 2) + bytes([7, 2]),
}
FILES = {
    "IDX": IDX["images"],
    "table": b"a,b\n1,2\n",
    "JSON records": b' [{"a": 1}]',
    "text": b"Once upon a time\nthere was,\n",
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_without_a_telling_name(tmp_path, kind, pack):
    path = tmp_path / "file"
    path.write_bytes(pack(FILES[kind]))
    found = recognise(path)
    assert (found.format, list(found.parts)) == (kind, ["file"])


def test_arrays_images_and_recordings(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        np.savez(file, x=np.arange(3))
    assert recognise(tmp_path / "file").parts["file"].source.batch(np.array([2]))["x"].tolist() == [2]
    Image.new("RGB", (4, 2)).save(tmp_path / "picture", "png")
    assert (
        recognise(tmp_path / "picture", size=(8, 8)).parts["picture"].source.batch(np.array([0]))["image"].shape[1] == 8
    )
    wavfile.write(tmp_path / "sound", 8000, np.zeros(9, np.int16))
    assert recognise(tmp_path / "sound").parts["sound"].rate == 8000


def test_folders(tmp_path):
    for split in ("train", "t10k"):
        for kind, data in IDX.items():
            (tmp_path / "digits").mkdir(exist_ok=True)
            (tmp_path / "digits" / f"{split}-{kind}-idx{3 if kind == 'images' else 1}-ubyte").write_bytes(data)
    found = recognise(tmp_path / "digits")
    assert (found.format, {name: len(part.source) for name, part in found.parts.items()}) == (
        "MNIST (IDX)", {"train": 2, "test": 2},
    )  # fmt: skip
    for path in ("pets/train/cat/1.png", "pets/train/dog/1.png", "pets/test/cat/1.png", "pets/test/dog/2.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 2)).save(tmp_path / path)
    pets = recognise(tmp_path / "pets")
    assert (list(pets.parts), pets.parts["test"].classes) == (["test", "train"], {"label": ("cat", "dog")})
    assert list(recognise(tmp_path / "pets" / "train").parts) == ["train"]
    (tmp_path / "words" / "yes").mkdir(parents=True)
    wavfile.write(tmp_path / "words" / "yes" / "1.wav", 8000, np.zeros(9, np.int16))
    assert recognise(tmp_path / "words").parts["words"].classes == {"label": ("yes",)}
    (tmp_path / "fsdd").mkdir()
    for name in ("7_ann_0", "7_ann_9"):
        wavfile.write(tmp_path / "fsdd" / f"{name}.wav", 8000, np.zeros(9, np.int16))
    assert list(recognise(tmp_path / "fsdd").parts) == ["train", "test"]


def test_pictures_below_other_files_are_no_set_of_images(tmp_path):
    for path in ("docs/a/1.png", "tests/a.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 2)).save(tmp_path / path, "png")
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    assert recognise(tmp_path).format == "table"
    assert recognise(tmp_path / "docs").format == "folder of images"


def test_folders_of_text(tmp_path):
    for name in ("train.en", "train.de", "val.en", "val.de"):
        (tmp_path / name).write_text("a line\n")
    (tmp_path / "README.md").write_text("notes")
    found = recognise(tmp_path)
    assert (found.format, sorted(found.parts), found.left_out) == (
        "aligned lines",
        ["train", "val"],
        "README.md (notes)",
    )
    (tmp_path / "test.en").write_text("a line\n")  # a part that lacks a language: no longer translations
    assert list(recognise(tmp_path).parts) == ["train.de", "train.en", "val.de", "val.en", "test.en"]


REAL = {
    "cifar10_jpeg_subset": ("packed images (npz)", [20000, 5000]),
    "finance_credit/german.data": ("table", [1000]),
    "glue/RTE": ("table", [2127, 363, 277]),
    "instruct_gsm8k": ("JSON records", [7473, 1319]),
    "instruct_llamafactory": ("JSON records and text", [999, 175, 300, 300, 30]),
    "lm_tinyshakespeare": ("text", [32777]),
    "lm_wikitext2": ("text", [2461, 2891]),
    "medical_pneumoniamnist": ("MedMNIST (npz)", [4708, 524, 624]),
    "mnist": ("MNIST (IDX)", [60000, 10000]),
    "mt_multi30k": ("aligned lines", [1000, 1000, 29000, 1014]),
    "speech_emodb": ("EmoDB (npz)", [535]),
    "speech_fsdd": ("Free Spoken Digit Dataset (npz)", [2700, 300]),
    "text_agnews": ("table", [10001, 7600]),
}


@pytest.mark.parametrize("folder", REAL)
def test_real_folders(real_data, folder):
    found = recognise(real_data(folder))
    counts = [len(part.source) for part in found.parts.values()]
    assert (found.format, counts) == REAL[folder]
