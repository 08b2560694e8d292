"""`jaxbig info` and `jaxbig convert` on folders of published models."""

import io
import json

import ml_dtypes
import numpy as np
import pytest
from hub import made
from rich.console import Console
from safetensors import deserialize
from safetensors.numpy import load_file, save_file

from jaxbig import load
from jaxbig.cli import main
from jaxbig.convert import convert
from jaxbig.errors import UsageError, UserError
from jaxbig.hub.fill import BLOCK
from jaxbig.info import info

ARRAYS = made.tensors()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.write(tmp_path_factory.mktemp("models") / "llama", ARRAYS, parts=2)


def told(act, *words):
    console = Console(file=io.StringIO(), width=160)
    act([str(word) for word in words], console)
    return console.file.getvalue()


def all_of(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_info_tells_what_headers_say(folder):
    numbers = sum(array.size for array in ARRAYS.values())
    text = told(info, folder)
    assert "llama, architecture LlamaForCausalLM" in text
    assert f"{numbers:,} numbers, {4 * numbers:,} bytes, F32" in text
    assert f"jaxbig.load reads Llama for causal_lm, 3 layers, {numbers:,} parameters\n" in text
    assert "model-00002-of-00002.safetensors" in text
    assert "model.layers.2.mlp.up_proj.weight" not in text
    row = next(row for row in told(info, folder, "--leaves").splitlines() if "layers.2.mlp.up_proj.weight" in row)
    assert "12x8" in row
    assert "F32" in row


def test_info_of_a_model_that_is_not_jaxbig_s(tmp_path, capsys):
    """Its headers are shown all the same, then why it cannot be loaded."""
    config = made.CONFIG | {"model_type": "mystery", "architectures": ["Mystery"]}
    folder = made.write(tmp_path / "mystery", {"w": np.ones((2, 3), np.float16)}, config)
    assert main(["info", str(folder)]) == 1
    said = capsys.readouterr()
    assert "mystery, architecture Mystery" in said.out
    assert "6 numbers, 12 bytes, F16" in said.out
    assert said.err.count("\n") == 1
    assert "model_type is 'mystery'; jaxbig knows" in said.err


def test_info_names_what_is_no_part_of_the_model(tmp_path):
    folder = made.write(tmp_path / "more", ARRAYS | {"mtp.weight": np.ones(2, np.float32)})
    assert "parameters; no part of it: mtp.weight" in told(info, folder)


def test_info_of_a_pickle(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(made.CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UserError, match="a pickle runs what it reads"):
        told(info, tmp_path)


def test_info_reads_no_weights(folder, monkeypatch):
    monkeypatch.setattr("jaxbig.hub.fill._read", None)
    assert "reads Llama for causal_lm" in told(info, folder)
    with pytest.raises(UsageError, match="leave --step out"):
        told(info, folder, "--step", "3")


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float64"])
def test_convert(folder, tmp_path, dtype):
    (folder / "tokenizer.json").write_text("{}")
    more = () if dtype is None else ("--dtype", dtype)
    text = told(convert, folder, tmp_path / "out", "--max-shard-size", "1KB", *more)
    kind = np.dtype(np.float32 if dtype is None else getattr(ml_dtypes, dtype, dtype))
    found = all_of(tmp_path / "out")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == kind
        assert found[name].tobytes() == array.astype(kind).tobytes()
    files = len(list((tmp_path / "out").glob("*.safetensors")))
    assert files > 2
    assert f"{len(ARRAYS)} tensors, {sum(a.nbytes for a in found.values()):,} bytes in {files} files" in text
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == made.CONFIG | {"dtype": kind.name}
    assert (tmp_path / "out" / "tokenizer.json").exists()
    if dtype == "bfloat16":
        assert load(tmp_path / "out").params["norm"]["scale"].dtype == kind
    else:  # one file again
        told(convert, tmp_path / "out", tmp_path / "out", "--overwrite")
        (file,) = (tmp_path / "out").glob("*.safetensors*")
        assert load_file(file).keys() == ARRAYS.keys()


def test_convert_keeps_what_is_no_float_and_casts_block_by_block(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "long": random.normal(size=3 * BLOCK // 8 + 5).astype(np.float32), "codes": np.arange(-5, 5, dtype=np.int8),
        "scalar": np.array(3.25, np.float32), "none": np.zeros((0, 3), np.float32),
        "narrow": np.ones(3, ml_dtypes.float8_e5m2),
    }  # fmt: skip
    folder = made.write(tmp_path / "any", arrays, {"model_type": "mystery"})
    told(convert, folder, tmp_path / "half", "--dtype", "float16")
    found = dict(deserialize((tmp_path / "half" / "model.safetensors").read_bytes()))
    assert found.keys() == arrays.keys()
    codes = {"codes": "I8", "narrow": "F8_E5M2"}
    for name, array in arrays.items():
        assert found[name]["dtype"] == codes.get(name, "F16")
        assert found[name]["shape"] == list(array.shape)
        assert bytes(found[name]["data"]) == (array if name in codes else array.astype(np.float16)).tobytes()


def test_what_cannot_be_converted(folder, tmp_path, capsys):
    large = made.write(tmp_path / "large", {"w": np.full(3, 1e6, np.float32)}, {})
    codes = made.write(tmp_path / "codes", {"w": np.ones(3, np.float32)}, {"quantization_config": {"bits": 4}})
    out = tmp_path / "out"
    for words, kind, says in (
        ((large, out, "--dtype", "float16"), UserError, "w holds numbers too large for float16"),
        ((codes, out, "--dtype", "float16"), UserError, "the weights are codes"),
        ((folder, out, "--dtype", "int8"), UsageError, "'int8' is no dtype of weights"),
        ((folder, out, "--dtype", "halfling"), UsageError, "'halfling' is no dtype of weights"),
        ((folder, out, "--max-shard-size", "0"), UsageError, "'0' is no size"),
        ((tmp_path / "nowhere", out), UsageError, "nowhere: no such folder"),
        ((folder, large), UserError, "is there already"),
        ((folder,), UsageError, "required: target"),
    ):
        with pytest.raises(kind, match=says):
            told(convert, *words)
        assert not out.exists()
    (folder.parent / "torn").mkdir()
    assert main(["convert", str(folder.parent / "torn"), str(out)]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main(["convert", "--help"]) == 0
    assert "--max-shard-size" in capsys.readouterr().out
    save_file({"w": np.ones(3, np.float32)}, folder.parent / "torn" / "model.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["codes", "large"]
