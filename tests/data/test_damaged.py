"""Damaged, mislabelled and absent files: one clear line each, that names the file and the place in it."""

import gzip
import io
import struct
import wave
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxbig.cli import main
from jaxbig.data.audio import Clips, WavFolder, read_wav
from jaxbig.data.credit import card_default, german_credit
from jaxbig.data.file import read, read_text
from jaxbig.data.idx import fashion_mnist, mnist, read_idx
from jaxbig.data.image import ImageFolder, PackedImages, decode
from jaxbig.data.npz import medmnist, read_npz
from jaxbig.data.recognise import recognise
from jaxbig.data.speech import emodb, fsdd
from jaxbig.data.table import Table, features, read_table
from jaxbig.data.text import columns, read_aligned, read_lines, read_records
from jaxbig.errors import UserError

IDX_LABELS = struct.pack(">HBBI", 0, 8, 1, 3) + bytes([7, 2, 1])
IDX_IMAGES = struct.pack(">HBBIII", 0, 8, 3, 2, 2, 2) + bytes(range(8))


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zipped(**files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("_", "."), data)
    return file.getvalue()


def wav(samples=(0, 1, 2), rate=8000, width=2, channels=1):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((channels, width, rate, 0, "NONE", ""))
        out.writeframes(np.asarray(samples, f"<i{width}").tobytes())
    return file.getvalue()


def image(mode="RGB", size=(4, 3), form="png"):
    file = io.BytesIO()
    Image.new(mode, size, 3 if mode != "RGB" else (1, 2, 3)).save(file, form)
    return file.getvalue()


def at(reader, name, *more, **options):
    return lambda folder: reader(folder / name, *more, **options)


def every(reader, name=""):
    def act(folder):
        source = reader(folder / name)
        return source.batch(np.arange(len(source)))

    return act


PNG = np.frombuffer(image(), np.uint8)
MNIST = {"train-images-idx3-ubyte": IDX_IMAGES, "train-labels-idx1-ubyte": IDX_LABELS}
# A file name -> bytes or text; what is read, given the folder; what the line must hold (a regular expression).
CASES = {
    "gzip cut off": ({"a.gz": gzip.compress(bytes(9999))[:-12]}, at(read, "a.gz"), r"a\.gz: damaged gzip"),
    "gzip overwritten": (
        {"a.gz": b"\x1f\x8b" + bytes(40)}, at(read, "a.gz"), r"a\.gz: damaged gzip data \(.*get the file again"
    ),
    "empty": ({"a": b""}, at(read, "a"), r"a: is empty"),
    "gzip of nothing": ({"a.gz": gzip.compress(b"")}, at(read, "a.gz"), r"a\.gz: is empty"),
    "absent, one like it": ({"abc.csv": "1"}, at(read, "abd.csv"), r"no such file; did you mean .*abc\.csv\?"),
    "a folder": ({"a/b": "1"}, at(read, "a"), r"a: is a folder; give a file"),
    "not UTF-8": ({"a.txt": "eins\nzwölf".encode("latin1")}, at(read_text, "a.txt"), r"a\.txt:2: byte 7 .*iconv"),
    "IDX that is text": ({"a": "hello"}, at(read_idx, "a"), "no IDX file, it begins with the bytes 68 65 6c 6c"),
    "IDX of no known type": ({"a": bytes([0, 0, 7, 1])}, at(read_idx, "a"), "byte 2, the IDX type, is 0x07"),
    "IDX cut in the header": ({"a": IDX_IMAGES[:11]}, at(read_idx, "a"), "cut off in the header at byte 11 of 16"),
    "IDX cut in the data": ({"a": IDX_IMAGES[:-2]}, at(read_idx, "a"), r"cut off at byte 22 of 24 for uint8 \[2"),
    "IDX too long": ({"a": IDX_IMAGES + b"!!"}, at(read_idx, "a"), "2 bytes too long"),
    "labels given as images": (
        {**MNIST, "train-images-idx3-ubyte": IDX_LABELS}, mnist, r"idx3-ubyte: holds \[3\], not images .*exchanged"
    ),
    "counts differ": (MNIST, mnist, r"labels-idx1-ubyte: 3 labels for the 2 images of train-images"),
    "images of a wrong type": (
        {**MNIST, "train-images-idx3-ubyte": IDX_IMAGES.replace(b"\x08\x03", b"\x09\x03", 1)}, mnist, "int8, not uint8"
    ),
    "MNIST without labels": (
        {"train-images-idx3-ubyte": IDX_IMAGES}, mnist, r"holds no train-labels-idx1-ubyte\[\.gz\]; MNIST is four"
    ),
    "MNIST of no such split": (MNIST, lambda f: mnist(f, "val"), "split='val'; use 'train' or 'test'"),
    "Fashion-MNIST absent": ({}, lambda f: fashion_mnist(folder=f / "no"), "the package dataset-fashion-mnist"),
    "npz cut off": ({"a.npz": npz(x=np.zeros(999))[:900]}, at(read_npz, "a.npz"), r"a\.npz: damaged npz archive"),
    "npz overwritten": (
        {"a.npz": npz(x=np.zeros(99)).replace(bytes(400), b"!" * 400)}, at(read_npz, "a.npz"), "damaged npz"
    ),
    "npz of objects": (
        {"a.npz": npz(x=np.array([{}], object))}, at(read_npz, "a.npz"), "'x' holds pickled Python .* never read"
    ),
    "npz that is a zip": ({"a.npz": zipped(b_txt="hi")}, at(read_npz, "a.npz"), r"holds b\.txt, no npz archive"),
    "npz that is something else": ({"a.npz": "text"}, at(read_npz, "a.npz"), "no npz archive, it begins with"),
    "npz with a broken array": ({"a.npz": zipped(x_npy="no")}, at(read_npz, "a.npz"), r"a\.npz: .*damaged"),
    "npz without the array": ({"a.npz": npz(x=[1])}, at(medmnist, "a.npz"), "no array 'train_images', only x"),
    "MedMNIST, counts differ": (
        {"a.npz": npz(val_images=np.zeros((3, 2, 2), np.uint8), val_labels=np.zeros((2, 1), int))},
        at(medmnist, "a.npz", "val"), "2 labels for 3 images in val",
    ),
    "MedMNIST, images of floats": (
        {"a.npz": npz(val_images=np.zeros((3, 2, 2)), val_labels=np.zeros((3, 1), int))},
        at(medmnist, "a.npz", "val"), r"val_images is float64 \[3, 2, 2\], not uint8",
    ),
    "packed images, falling offsets": (
        {"a.npz": npz(jpeg=PNG, offsets=[0, 9, 5])}, at(PackedImages, "a.npz"), r"offsets\[2\]=5 is not beyond"
    ),
    "packed images, cut off": (
        {"a.npz": npz(jpeg=PNG[:-4], offsets=[0, len(PNG)])}, at(PackedImages, "a.npz"), "it is cut off"
    ),
    "packed images, labels differ": (
        {"a.npz": npz(jpeg=PNG, offsets=[0, len(PNG)], labels=[1, 2])}, at(PackedImages, "a.npz"),
        r"1 images but labels \[2\]",
    ),
    "packed images, a label too large": (
        {"a.npz": npz(jpeg=PNG, offsets=[0, len(PNG)], labels=[1], classes=["a"])}, at(PackedImages, "a.npz"),
        "labels from 1 to 1, 1 classes",
    ),
    "packed images, no image": (
        {"a.npz": npz(jpeg=np.zeros(9, np.uint8), offsets=[0, 9])}, every(PackedImages, "a.npz"),
        r"a\.npz: image 0: cannot be decoded \(no image that Pillow knows\)",
    ),
    "no image": ({"c/a.png": "text"}, every(ImageFolder), r"a\.png: cannot be decoded \(no image"),
    "image cut off": (
        {"c/a.jpg": image(size=(64, 64), form="jpeg")[:-300]}, every(ImageFolder), r"(?i)a\.jpg: .*truncated"
    ),
    "image of 16 bits": ({"a.png": image("I;16")}, lambda f: decode(read(f / "a.png"), "a.png"), "more than 8"),
    "images of two sizes": (
        {"c/a.png": image(), "c/b.png": image(size=(4, 4))}, every(ImageFolder),
        r"b\.png: 4 x 4 pixels, but .*a\.png has 3 x 4; give a size to resize",
    ),
    "a class without images": ({"c/a.png": image(), "d/a.txt": "1"}, ImageFolder, r"d: holds no image"),
    "a class that is not known": ({"c/a.png": image()}, at(ImageFolder, "", classes=["d"]), "c: no class of that name"),
    "wav that is text": ({"a.wav": "RIFF no"}, at(read_wav, "a.wav"), r"a\.wav: no wav file.*ffmpeg"),
    "wav cut off": ({"a.wav": wav([1] * 100)[:-50]}, at(read_wav, "a.wav"), "at byte 194: 75 samples of 100"),
    "wav cut in the header": ({"a.wav": wav()[:30]}, at(read_wav, "a.wav"), r"a\.wav: no PCM wav file"),
    "wav of stereo": ({"a.wav": wav([1, 2], channels=2)}, at(read_wav, "a.wav"), "2 channels, not one; .*-ac 1"),
    "wav that is not PCM": (
        {"a.wav": wav().replace(b"\x01\x00\x01\x00", b"\x06\x00\x01\x00", 1)}, at(read_wav, "a.wav"),
        r"no PCM wav file \(unknown format: 6\)",
    ),
    "wav without samples": ({"a.wav": wav([])}, at(read_wav, "a.wav"), "holds no samples"),
    "wav of two rates": (
        {"a.wav": wav(), "b.wav": wav(rate=16000)}, WavFolder, r"b\.wav: 16000 samples a second, but .*a\.wav has 8000"
    ),
    "no wav files": ({"a.txt": "1"}, WavFolder, "holds no wav file"),
    "clips of no length": (
        {}, lambda f: Clips(np.zeros(3, np.int16), np.array([0, 3]), 8000, seconds=0), "seconds=0 at 8000"
    ),
    "FSDD with another name": ({"seven.wav": wav()}, fsdd, r"'seven' is not named <digit>_<speaker>_<number>"),
    "FSDD without a split": ({"7_a_9.wav": wav()}, lambda f: fsdd(f, "test"), "no clip belongs to this split"),
    "FSDD, names differ": (
        {"a.npz": npz(audio=np.zeros(9, np.int16), offsets=[0, 4, 9], names=["1_a_1"])}, at(fsdd, "a.npz"),
        "1 names for 2 clips",
    ),
    "EmoDB with another name": ({"03a01X.wav": wav()}, emodb, "'03a01X' is not named like 03a01Fa"),
    "EmoDB of floats": (
        {"a.npz": npz(audio=np.zeros((1, 9)), names=["03a01Fa"])}, at(emodb, "a.npz"), r"audio is float64 \[1, 9\]"
    ),
    "a ragged row": ({"a.csv": "a,b\n1,2\n\n3\n"}, at(read_table, "a.csv"), r"a\.csv:4: 1 values, but 2 in line 1"),
    "a ragged line": ({"a": "a\tb\n" * 60 + "a\n"}, at(read_table, "a"), "a:61: 1 values, but 2 in line 1"),
    "an open quote": ({"a.csv": 'a,b\n1,"2\n'}, at(read_table, "a.csv", delimiter=","), r"a\.csv:2: unexpected end"),
    "blank lines only": ({"a.csv": "\n \n"}, at(read_table, "a.csv", delimiter=" "), "blank lines only"),
    "a header only": ({"a.csv": "a,b\n"}, at(read_table, "a.csv", header=True), "but no rows"),
    "a word among numbers": (
        {"a.csv": "a,b\n1,2\nx,3\n"}, at(read_table, "a.csv", kinds={"a": "number"}, header=True),
        r"a\.csv:3: column 'a': 'x' is no number",
    ),
    "a number too large": (
        {"a.csv": "a,b\n1e99,2\n"}, at(read_table, "a.csv"), "column 'a': '1e99' is no number within float32"
    ),
    "columns of one name": ({"a.csv": "a,a\n1,2\n"}, at(read_table, "a.csv"), r"a\.csv:1: two columns are called 'a'"),
    "too few names": ({"a.csv": "1,2\n"}, at(read_table, "a.csv", names=["a"]), "2 columns, but 1 names"),
    "no such column": ({"a.csv": "1,2\n"}, at(read_table, "a.csv", kinds={"z": "text"}), "no column 'z'; there are c0"),
    "no such kind": ({"a.csv": "1,2\n"}, at(read_table, "a.csv", kinds={"c0": "date"}), "kind 'date'; use"),
    "two characters": ({"a.csv": "1,2\n"}, at(read_table, "a.csv", delimiter="||"), "use one character"),
    "a category that is not known": (
        {"a.csv": "j,n\na,1\n", "b.csv": "j,n\nb,1\n"}, lambda f: read_table(f / "b.csv", like=read_table(f / "a.csv")),
        r"b\.csv:2: column 'j': 'b' is none of the 1 categories",
    ),
    "other columns": (
        {"a.csv": "j,n\na,1\n", "b.csv": "n,j\n1,a\n"},
        lambda f: read_table(f / "b.csv", like=read_table(f / "a.csv"), header=True), "columns n, j, but like has j, n",
    ),
    "a label that is missing": (
        {"a.csv": "x,y\n1,2\n3,\n"}, lambda f: features(read_table(f / "a.csv"), "y"), "'y' is no label: 1 values are"
    ),
    "a label that is not there": ({}, lambda f: features(Table({}, {}, {}, {}), "y"), "no column 'y'"),
    "credit, another table": ({"a.csv": "a,b\n1,2\n"}, at(card_default, "a.csv"), "2 columns from 'a' to 'b'"),
    "credit, German, another table": ({"a": "A 1\n"}, at(german_credit, "a"), "2 columns, not 21"),
    "blank text": ({"a.txt": "\n\n"}, at(read_lines, "a.txt"), "blank lines only"),
    "translations of other lengths": (
        {"a.en": "a\nb\n", "a.de": "c\n"}, lambda f: read_aligned({"en": f / "a.en", "de": f / "a.de"}),
        r"a\.de: 1 lines, but 2 in .*a\.en",
    ),
    "a translation that is blank": (
        {"a.en": "a\nb\n", "a.de": "c\n\n"}, lambda f: read_aligned({"en": f / "a.en", "de": f / "a.de"}),
        r"a\.de:2: is blank, but not so in .*a\.en",
    ),
    "a bad JSON line": (
        {"a.jsonl": '{"a": 1}\n\n{"a": }\n'}, at(read_records, "a.jsonl"), r"a\.jsonl:3:7: no JSON \(Expecting value"
    ),
    "JSON cut off": ({"a.json": '[\n {"a": 1},\n'}, at(read_records, "a.json"), r"a\.json:3:\d+: no JSON"),
    "a JSON line of a list": ({"a.jsonl": '{"a": 1}\n[2]\n'}, at(read_records, "a.jsonl"), ":2: is a JSON list"),
    "no JSON records": ({"a.json": "[]"}, at(read_records, "a.json"), "holds no records"),
    "JSON records without fields": ({"a": "[{}]"}, lambda f: columns(read_records(f / "a")), "1 records without any"),
    "none of the formats": ({"a.bin": b"\x07\0\0\0"}, at(recognise, "a.bin"), r"a\.bin: none of the known formats"),
    "nothing in a folder": ({"README": "hi"}, recognise, "holds no data"),
    "folders in a folder": ({"a/b.txt": "hi", "c/b.txt": "hi"}, recognise, "holds only the folders a, c; give"),
}  # fmt: skip


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)


@pytest.mark.parametrize(("files", "act", "says"), CASES.values(), ids=CASES)
def test_one_clear_line(tmp_path, files, act, says):
    write(tmp_path, files)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        act(tmp_path)
    caught.match(says)
    assert len(str(caught.value)) < 100 + 3 * len(str(tmp_path)) + 200


SHOWN = {
    "IDX": ({"a": IDX_IMAGES[:-2]}, "a: cut off at byte 22 of 24"),
    "npz": ({"a": npz(x=np.zeros(999))[:900]}, "a: damaged npz archive"),
    "table": ({"a": "a,b\n" * 60 + "3\n"}, "a:61: 1 values, but 2 in line 1"),
    "JSON": ({"a": '{"a": 1}\n{"a"}\n'}, "a:2:5: no JSON"),
    "image": ({"a": image()[:-30]}, "a: cannot be decoded"),
    "wav": ({"a": wav(channels=2, samples=(1, 2))}, "a: 2 channels"),
    "model": ({"a": b"\x40\0\0\0" + bytes(99)}, "a: none of the known formats"),
    "images of two sizes": ({"a/x/a.png": image(), "a/x/b.png": image(size=(4, 4))}, "b.png: 4 x 4 pixels"),
}


@pytest.mark.parametrize(("files", "says"), SHOWN.values(), ids=SHOWN)
def test_the_command_says_it_in_one_line_and_ends_with_1(tmp_path, capsys, files, says):
    write(tmp_path, files)
    assert main(["data", "show", str(tmp_path / "a")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("jaxbig: error: ")
    assert err.count("\n") == 1
    assert says in err
