"""Damaged and hostile folders: one line says what is wrong and where, soon, and without allocating what is claimed.

Each case is a whole folder of a small model in which one thing is changed. Together they must be quick: nothing but
headers is read before the folder is known to be a model.
"""

import contextlib
import json
import os
import shutil
import struct
import time
import tracemalloc
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from hub import made
from safetensors.numpy import save_file

import jaxbig
from jaxbig.errors import UserError

CONFIG = made.CONFIG | {"num_hidden_layers": 1}
ARRAYS = made.tensors(CONFIG)
WEIGHTS, INDEX, UP = "model.safetensors", "model.safetensors.index.json", "model.layers.0.mlp.up_proj.weight"
MOST_BYTES, MOST_SECONDS = 20_000_000, 5.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of one file and one of three that nothing is wrong with."""
    place = tmp_path_factory.mktemp("whole")
    made.write(place / "one", ARRAYS, CONFIG)
    made.write(place / "three", ARRAYS, CONFIG, parts=3)
    for name in ("one", "three"):
        jaxbig.load(place / name)
    return place


@contextlib.contextmanager
def watched():
    """Nothing that is done here may allocate more than `MOST_BYTES`."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES


# What is changed. Each takes the folder.


def fields(folder, **changes):
    """Fields of config.json; None removes one."""
    found = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps({name: its for name, its in found.items() if its is not None}))


def text(folder, what, name="config.json"):
    (folder / name).write_bytes(what if isinstance(what, bytes) else what.encode())


def cut(folder, keep):
    """The first bytes of the file; a function of (header's length, size)."""
    data = (folder / WEIGHTS).read_bytes()
    text(folder, data[: keep(8 + struct.unpack("<Q", data[:8])[0], len(data))], WEIGHTS)


def length(folder, number):
    """Another length of the header."""
    data = (folder / WEIGHTS).read_bytes()
    text(folder, struct.pack("<Q", number) + data[8:], WEIGHTS)


def header(folder, change):
    """The header changed: by a function of its text, or of the object it is, which may give another."""
    data = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    found = change(json.loads(data[8 : 8 + size]))
    found = (found if isinstance(found, str) else json.dumps(found)).encode()
    text(folder, struct.pack("<Q", len(found)) + found + data[8 + size :], WEIGHTS)


def entry(folder, **changes):
    """The description of one tensor changed."""
    header(folder, lambda table: {**table, UP: {**table[UP], **changes}})


def tensors(folder, name=UP, change=None):
    """One tensor changed, added (by `change` of None) or, without it, removed."""
    arrays = dict(ARRAYS)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays.get(name))
    save_file(arrays, folder / WEIGHTS)


def spoilt(value):
    def change(array):
        array = array.copy()
        array[1, 2] = value
        return array

    return change


def index(folder, change):
    """The index changed: its weight_map, or by a text as a whole."""
    if isinstance(change, str):
        text(folder, change, INDEX)
        return
    found = json.loads((folder / INDEX).read_text())
    found["weight_map"] = change(found["weight_map"])
    text(folder, json.dumps(found), INDEX)


def moved(change):
    """The offsets of a tensor moved."""
    return lambda folder: header(folder, lambda t: {**t, UP: {**t[UP], "data_offsets": change(*t[UP]["data_offsets"])}})


def twice(table):
    """A header that names a tensor twice."""
    return json.dumps(table)[:-1] + f', "{UP}": {json.dumps(table[UP])}}}'


def remove(folder, *names):
    for name in names:
        (folder / name).unlink()


def pickled(folder):
    remove(folder, WEIGHTS)
    text(folder, b"\x80\x04.", "pytorch_model.bin")


def looped(folder, name):
    remove(folder, name)
    (folder / name).symlink_to(name)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("{}")


def linked(folder):
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def unreadable(folder, name):
    (folder / name).chmod(0)
    if os.access(folder / name, os.R_OK):
        pytest.skip("who runs this may read everything")


def outside(folder):
    """A file that is there, but not in the folder."""
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder.parent / "out.safetensors")
    index(folder, lambda table: dict.fromkeys(table, "../out.safetensors"))


def shard(folder, change):
    name = "model-00002-of-00003.safetensors"
    change(folder / name)


def fewer(path):
    """A shard without a tensor that the index finds in it."""
    names = [
        name for name, its in json.loads((path.parent / INDEX).read_text())["weight_map"].items() if its == path.name
    ]
    save_file({name: ARRAYS[name] for name in names[1:]}, path)


def tied_apart(folder):
    fields(folder, tie_word_embeddings=True)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 123456789\n"
DEEP = "[" * 100_000
HUGE = 10**12
# name -> (what is changed, what the message says)
ONE = {
    "weights cut to nothing": (partial(cut, keep=lambda head, size: 0), "header"),
    "cut in the length": (partial(cut, keep=lambda head, size: 5), "5"),
    "cut in the header": (partial(cut, keep=lambda head, size: head - 20), "header"),
    "cut behind the header": (partial(cut, keep=lambda head, size: head), "the file at"),
    "cut in the tensors": (partial(cut, keep=lambda head, size: size - 100), "the file at"),
    "one byte short": (partial(cut, keep=lambda head, size: size - 1), "the file at"),
    "bytes behind": (lambda f: text(f, (f / WEIGHTS).read_bytes() + b"more", WEIGHTS), "the file at"),
    "header longer than the file": (partial(length, number=10**6), "1000000 bytes"),
    "header of 2^60 bytes": (partial(length, number=2**60), "1152921504606846976 bytes"),
    "header of 2^64 - 1 bytes": (partial(length, number=2**64 - 1), "18446744073709551615 bytes"),
    "header of no bytes": (partial(length, number=0), "header is no JSON"),
    "header no JSON": (partial(header, change=lambda t: "so it goes"), "header is no JSON"),
    "header a list": (partial(header, change=list), "header is a list"),
    "header with NaN": (partial(header, change=lambda t: {**t, "x": float("nan")}), "NaN is no number"),
    "header no text": (partial(text, what=struct.pack("<Q", 4) + b"\xff\xfe\xff\xfe", name=WEIGHTS), "no UTF-8"),
    "header nested deep": (partial(header, change=lambda t: DEEP), "nested too deep"),
    "a name twice": (partial(header, change=twice), "given twice"),
    "a name of two lines": (partial(header, change=lambda t: {**t, "a\nb": t[UP]}), "no name of a tensor"),
    "metadata no texts": (partial(header, change=lambda t: {**t, "__metadata__": {"a": 1}}), "__metadata__"),
    "overlapping": (moved(lambda start, stop: [start - 4, stop - 4]), "comes next"),
    "a gap": (moved(lambda start, stop: [start + 4, stop + 4]), "comes next"),
    "out of range": (moved(lambda start, stop: [start + 10**9, stop + 10**9]), r"ends at byte 1000\d+"),
    "far out of range": (moved(lambda start, stop: [2**62, 2**62 + stop - start]), r"ends at byte 4611\d+"),
    "negative offsets": (moved(lambda start, stop: [-8, stop - start - 8]), r"the offsets \[-8"),
    "offsets the wrong way round": (moved(lambda start, stop: [stop, start]), "the offsets"),
    "offsets of 80 bits": (moved(lambda start, stop: [2**80, 2**80 + stop - start]), "the offsets"),
    "three offsets": (moved(lambda start, stop: [start, stop, stop]), "the offsets"),
    "offsets in fractions": (moved(lambda start, stop: [start + 0.5, stop]), "the offsets"),
    "a dtype that is none": (partial(entry, dtype="F31"), "unknown dtype 'F31'"),
    "a dtype that is a number": (partial(entry, dtype=32), "unknown dtype 32"),
    "a dtype of another length": (partial(entry, dtype="F64"), "does not take the"),
    "a shape of another length": (partial(entry, shape=[12, 9]), "does not take the"),
    "a huge shape": (partial(entry, shape=[2**40, 2**40]), "does not take the"),
    "a negative shape": (partial(entry, shape=[-12, -8]), "the shape"),
    "a shape of booleans": (partial(entry, shape=[True, 96]), "the shape"),
    "a shape of 40 axes": (partial(entry, shape=[1] * 38 + [12, 8]), "the shape"),
    "an entry of another kind": (partial(header, change=lambda t: {**t, UP: 3}), "not described"),
    "a pointer of LFS": (partial(text, what=LFS, name=WEIGHTS), "git lfs pull"),
    "config a pointer of LFS": (partial(text, what=LFS), "git lfs pull"),
    "weights a loop of links": (partial(looped, name=WEIGHTS), "holds neither"),
    "weights a folder": (lambda f: (remove(f, WEIGHTS), (f / WEIGHTS).mkdir()), "holds neither"),
    "weights not to be read": (partial(unreadable, name=WEIGHTS), "cannot be read"),
    "config not to be read": (partial(unreadable, name="config.json"), "cannot be read"),
    "no weights": (lambda f: remove(f, WEIGHTS), "holds neither"),
    "a pickle alone": (pickled, r"pytorch_model\.bin alone.*save_pretrained"),
    "empty": (emptied, "no such file"),
    "not there": (shutil.rmtree, "no such folder"),
    "a file": (a_file, "is a file"),
    "a loop of links": (linked, "no such folder"),
    "no config": (lambda f: remove(f, "config.json"), "no such file"),
    "config a loop of links": (partial(looped, name="config.json"), "no such file"),
    "config empty": (partial(text, what=""), "no JSON"),
    "config no JSON": (partial(text, what="{'model_type': 'llama'}"), "no JSON"),
    "config no text": (partial(text, what=b"\xff\xfe\x00"), "no UTF-8"),
    "config a list": (partial(text, what="[1]"), "is a list"),
    "config with NaN": (partial(fields, rms_norm_eps=float("nan")), "NaN is no number"),
    "config nested deep": (partial(text, what='{"a":' + DEEP), "nested too deep"),
    "config with a name twice": (partial(text, what='{"model_type": "llama", "model_type": "gpt2"}'), "given twice"),
    "config with a number of 5000 digits": (partial(text, what='{"a": ' + "9" * 5000 + "}"), "no JSON"),
    "a field missing": (partial(fields, hidden_size=None), "has no 'hidden_size'"),
    "layers missing": (partial(fields, num_hidden_layers=None), "has no 'num_hidden_layers'"),
    "a size in words": (partial(fields, hidden_size="8"), "hidden_size is '8'"),
    "a size in fractions": (partial(fields, hidden_size=8.0), r"hidden_size is 8\.0"),
    "a size a list": (partial(fields, vocab_size=[19]), r"vocab_size is \[19\]"),
    "a size true": (partial(fields, num_hidden_layers=True), "num_hidden_layers is True"),
    "a negative size": (partial(fields, intermediate_size=-12), "intermediate_size is -12"),
    "no heads": (partial(fields, num_attention_heads=0), "llama"),
    "heads that do not fit groups": (partial(fields, num_key_value_heads=3), "not a multiple of 3 heads"),
    "a huge vocabulary": (partial(fields, vocab_size=HUGE), "vocab_size is 1000000000000"),
    "a large vocabulary": (partial(fields, vocab_size=2**31 - 1), "vocab_size is 2147483647"),
    "a huge width": (partial(fields, hidden_size=2**30), "hidden_size is 1073741824"),
    "a million layers": (partial(fields, num_hidden_layers=10**6), "num_hidden_layers is 1000000"),
    "a width of two kinds": (partial(fields, head_dim=0), "llama|head_dim|shape"),
    "rotary no table": (partial(fields, rope_parameters="default"), r"config\.json"),
    "rotary of no kind": (partial(fields, rope_parameters={"rope_type": "odd", "rope_theta": 1.0}), "odd"),
    "an activation that is none": (partial(fields, hidden_act="shout"), "shout"),
    "an activation that is a list": (partial(fields, hidden_act=["silu"]), "is unknown"),
    "epsilon in words": (partial(fields, rms_norm_eps="small"), r"config\.json"),
    "another model_type": (partial(fields, model_type="perceiver"), "model_type is 'perceiver'; jaxbig knows"),
    "model_type a list": (partial(fields, model_type=["llama"]), "model_type is"),
    "no model_type": (partial(fields, model_type=None, architectures=None), "no model_type"),
    "model_type of two lines": (partial(fields, model_type="a\nb" * 500), "model_type is"),
    "another architecture": (partial(fields, architectures=["LlamaForMusic"]), "'LlamaForMusic' is none of"),
    "no architecture": (partial(fields, architectures=None), "names no architecture"),
    "architectures a text": (partial(fields, architectures="LlamaForCausalLM"), "names no architecture"),
    "architectures empty": (partial(fields, architectures=[]), "names no architecture"),
    "quantised": (partial(fields, quantization_config={"quant_method": "gptq"}), "quantization_config"),
    "fewer layers than config says": (partial(fields, num_hidden_layers=2), r"layers\.1\..* is in none of its files"),
    "another width than config says": (partial(fields, intermediate_size=16), r"\[8, 12\]; \[8, 16\] is what"),
    "a tensor missing": (tensors, f"{UP} .* is in none of its files"),
    "a head missing": (partial(tensors, name="lm_head.weight"), r"lm_head\.weight, of the head"),
    "a tensor turned": (partial(tensors, change=lambda a: a.T.copy()), r"has the shape \[8, 12\]"),
    "a tensor flat": (partial(tensors, change=lambda a: a.ravel()), r"has the shape \[96\]"),
    "a layer too many": (
        partial(tensors, name="model.layers.1.mlp.up_proj.weight", change=lambda _: ARRAYS[UP]),
        "is in its files, and not in the llama",
    ),
    "a bias that config denies": (
        partial(tensors, name="model.layers.0.mlp.up_proj.bias", change=lambda _: np.ones(12, np.float32)),
        "is in its files, and not in the llama",
    ),
    "a head that differs from its table": (tied_apart, "differs from the embedding"),
    "NaN": (partial(tensors, change=spoilt(np.nan)), f"{UP} holds NaN or infinity.*allow_nonfinite"),
    "infinity": (partial(tensors, change=spoilt(-np.inf)), f"{UP} holds NaN or infinity"),
    "integers": (partial(tensors, change=lambda a: a.astype(np.int8)), "stored as I8"),
    "truths": (partial(tensors, change=lambda a: a > 0), "stored as BOOL"),
    "float8": (partial(tensors, change=lambda a: a.astype(ml_dtypes.float8_e4m3fn)), "stored as F8_E4M3"),
}  # fmt: skip
THREE = {
    "a shard missing": (lambda f: shard(f, os.unlink), "is missing"),
    "a shard cut": (lambda f: shard(f, lambda path: os.truncate(path, path.stat().st_size - 9)), "00002.*the file at"),
    "a shard empty": (lambda f: shard(f, lambda path: os.truncate(path, 0)), "00002.*header"),
    "a shard a loop of links": (partial(looped, name="model-00002-of-00003.safetensors"), "is missing"),
    "a tensor that a shard lacks": (lambda f: shard(f, fewer), "says that .* holds .*, which it does not"),
    "a path upwards": (outside, r"names the file '\.\./out"),
    "an absolute path": (partial(index, change=lambda t: dict.fromkeys(t, "/etc/a.safetensors")), "'/etc/a"),
    "a path of Windows": (partial(index, change=lambda t: dict.fromkeys(t, "..\\a.safetensors")), "names the file"),
    "a pickle for a shard": (partial(index, change=lambda t: dict.fromkeys(t, "a.bin")), r"names the file 'a\.bin'"),
    "no name for a shard": (partial(index, change=lambda t: dict.fromkeys(t, "")), "names the file ''"),
    "an index of numbers": (partial(index, change=lambda t: dict.fromkeys(t, 1)), "no weight_map"),
    "an index a list": (partial(index, change=list), "no weight_map"),
    "an index of nothing": (partial(index, change=lambda t: {}), "no weight_map"),
    "an index without a map": (partial(index, change="{}"), "no weight_map"),
    "an index no JSON": (partial(index, change="{"), "no JSON"),
    "an index a loop of links": (partial(looped, name=INDEX), "holds neither"),
    "an index that forgets one": (
        partial(index, change=lambda t: {n: f for n, f in t.items() if n != UP}), "is in none of its files",
    ),
    "an index a pointer of LFS": (partial(text, what=LFS, name=INDEX), "git lfs pull"),
}  # fmt: skip
CASES = [("one", *case) for case in ONE.items()] + [("three", *case) for case in THREE.items()]


# Cases that claim sizes: their memory is watched, which makes everything several times slower.
WORDS = ("huge", "large", "million", "2^", "bits", "deep", "range")
HOSTILE = {name for _, name, _ in CASES if any(word in name for word in WORDS)}


@pytest.mark.parametrize(("kind", "name", "case"), CASES, ids=[name for _, name, _ in CASES])
def test_one_line_says_what_is_wrong(whole, tmp_path, kind, name, case):
    change, says = case
    folder = shutil.copytree(whole / kind, tmp_path / "model")
    change(folder)
    start = time.perf_counter()
    watch = watched() if name in HOSTILE else contextlib.nullcontext()
    with watch, pytest.raises(UserError, match=says) as caught:
        jaxbig.load(folder)
    assert time.perf_counter() - start < MOST_SECONDS
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert message.startswith(str(folder))


def test_weights_that_are_meant_to_be_infinite(whole, tmp_path):
    folder = shutil.copytree(whole / "one", tmp_path / "model")
    tensors(folder, change=spoilt(np.inf))
    found = jaxbig.load(folder, allow_nonfinite=True)
    assert np.isinf(found.params["layer_0"]["mlp"]["up"]["kernel"]).sum() == 1


def test_a_sparse_file_of_a_claimed_terabyte(whole, tmp_path):
    """A header and a size that agree on a huge tensor, on a disk that holds none of it: the shape is told, not read."""
    folder = shutil.copytree(whole / "one", tmp_path / "model")
    claimed = json.dumps({UP: {"dtype": "F32", "shape": [2**18, 2**20], "data_offsets": [0, 2**40]}}).encode()
    text(folder, struct.pack("<Q", len(claimed)) + claimed, WEIGHTS)
    try:
        os.truncate(folder / WEIGHTS, 8 + len(claimed) + 2**40)
    except OSError:
        pytest.skip("no sparse files here")
    with watched(), pytest.raises(UserError, match="is in none of its files"):
        jaxbig.load(folder)
