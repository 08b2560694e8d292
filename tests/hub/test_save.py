"""From transformers' folders into trees and back: the same outputs, the same tensors to the bit, nothing missing."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub import made
from hub.published import CASES, IDLE, inputs, read_back, said, theirs

import jaxbig
from jaxbig.errors import UsageError, UserError
from jaxbig.lift import lift
from jaxbig.tree import paths


def write(model, folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    return folder


def stored(folder):
    """Every tensor of a folder: name -> (dtype, shape, bytes)."""
    from safetensors import deserialize

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {
            name: (its["dtype"], its["shape"], bytes(its["data"])) for name, its in deserialize(file.read_bytes())
        }
    return found


def ours(model, x, **more):
    arrays = map(jnp.asarray, x if isinstance(x, tuple) else (x,))
    found = jax.jit(model.apply)(model.params, *arrays, **more)
    return found if isinstance(found, tuple) else (found,)


def agree(found, expected, atol=1e-9):
    for mine, their in zip(found, expected, strict=False):
        assert mine.shape == their.shape
        np.testing.assert_allclose(mine, their, rtol=0, atol=atol)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_there_and_back(torch64, name, tmp_path):
    """Read scanned or not, the outputs are transformers'; written again, transformers reads the very same model."""
    case, x = CASES[name], inputs(CASES[name])
    model = theirs(torch64, case)
    folder, expected = write(model, tmp_path / "theirs"), said(torch64, model, x)
    unrolled = jaxbig.load(folder, **case.options)
    scanned = jaxbig.load(folder, scan_layers=True, **case.options)
    assert unrolled.fresh == ()
    agree(ours(scanned if len(name) % 2 else unrolled, x), expected)
    again = jaxbig.save(unrolled, unrolled.params, tmp_path / "ours")
    agree(said(torch64, read_back(torch64, again, case.name), x), expected, 1e-12)
    before, after = stored(folder), stored(again)
    assert after == stored(jaxbig.save(scanned, scanned.params, tmp_path / "scanned"))
    assert before.keys() - after.keys() == set(unrolled.unused)
    assert set(unrolled.unused) <= IDLE
    assert after == {key: before[key] for key in after}
    config = json.loads((again / "config.json").read_text())
    assert config["architectures"] == [case.name]
    assert config["dtype"] == "float64"


def test_files_of_a_size_and_their_index(tmp_path):
    """Many small files are one model; a folder that is there gives way to fewer without a file of the old."""
    arrays = made.tensors()
    model = jaxbig.load(made.write(tmp_path / "given", arrays, parts=4))
    folder = jaxbig.save(model, model.params, tmp_path / "many", max_shard_size="1KB")
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 4
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(array.nbytes for array in arrays.values())}
    assert index["weight_map"].keys() == arrays.keys()
    for file in files:  # a tensor that is larger has one of its own
        sizes = [arrays[name].nbytes for name, where in index["weight_map"].items() if where == file]
        assert len(sizes) == 1 or sum(sizes) <= 1000
    assert stored(folder) == stored(tmp_path / "given")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("old")
    with pytest.raises(UserError, match="overwrite=True"):
        jaxbig.save(model, model.params, folder)
    jaxbig.save(model, model.params, folder, overwrite=True)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert stored(folder) == stored(tmp_path / "given")


@pytest.mark.parity
@pytest.mark.parametrize("name", ["bert classes", "llama lm tied", "vit classes"])
def test_half_precision_and_several_files(torch, name, tmp_path):
    """bfloat16 to the bit through several files of transformers' own and of ours; float32 in between changes none."""
    case, x = CASES[name], inputs(CASES[name])
    folder = write(theirs(torch, case, "bfloat16"), tmp_path / "theirs", max_shard_size="2KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    narrow, wide = jaxbig.load(folder, scan_layers=True), jaxbig.load(folder, dtype="float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {jnp.dtype("bfloat16")}
    x = x.astype(np.float32) if x.ndim == 4 else x
    expected = said(torch, read_back(torch, folder, case.name, "float32"), x)
    agree(ours(wide, x), expected, 1e-5 * np.abs(expected[0]).max())
    for model, dtype in ((narrow, None), (wide, "bfloat16")):
        again = jaxbig.save(model, model.params, tmp_path / str(dtype), dtype=dtype, max_shard_size="3KB")
        assert len(list(again.glob("*.safetensors"))) > 2
        assert stored(again) == stored(folder)
        agree(said(torch, read_back(torch, again, case.name, "float32"), x), expected, 1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["bert", "bert classes", "llama lm"])
def test_a_new_head(torch64, name, tmp_path):
    """From a model without a head or with another, as fine-tuning begins; transformers reads the head that we drew."""
    case, x, kind = CASES[name], inputs(CASES[name]), CASES[name].name.split("For")[0].removesuffix("Model")
    folder = write(theirs(torch64, case), tmp_path / "theirs")
    if name == "bert":
        with pytest.raises(UsageError, match="features"):
            jaxbig.load(folder, "causal_lm")
    model = jaxbig.load(folder, "sequence_classification", num_classes=5, rng=jax.random.key(1))
    head = [path for path in model.fresh if path.startswith("head/")]
    assert head
    assert all(path.startswith(("head/", "pooler/")) for path in model.fresh)
    assert np.ptp(np.asarray(model.params["head"]["kernel"])) > 0
    assert model.params["head"]["kernel"].dtype == jnp.float64
    assert jaxbig.load(folder, "sequence_classification", num_classes=5).fresh == model.fresh
    again = jaxbig.save(model, model.params, tmp_path / "ours")
    config = json.loads((again / "config.json").read_text())
    assert len(config["id2label"]) == 5
    whole = read_back(torch64, again, f"{kind}ForSequenceClassification")
    assert whole.config.num_labels == 5
    agree(ours(model, x), said(torch64, whole, x))
    assert jaxbig.load(again).fresh == ()


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "scan"),
    [("llama lm", False), ("llama lm", True), pytest.param("gemma2 lm", True, marks=pytest.mark.slow)],
)
def test_an_adapter_of_peft_and_its_merge(torch64, name, scan, tmp_path):
    """PEFT's LoRA on a model that we loaded says what PEFT says; merged and saved, transformers says it too."""
    import peft

    from jaxbig.hub.peft_read import read_peft

    case, x = CASES[name], inputs(CASES[name])
    folder = write(theirs(torch64, case), tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])
        adapted = peft.get_peft_model(read_back(torch64, folder, case.name), config).double().eval()
        with torch64.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch64.randn(parameter.shape, dtype=torch64.float64))
        expected = said(torch64, adapted, x)
        adapted.save_pretrained(tmp_path / "adapter")
    model = jaxbig.load(folder, scan_layers=scan)
    assert np.abs(np.asarray(ours(model, x)[0]) - expected[0]).max() > 1e-2
    adapter = read_peft(tmp_path / "adapter", model.params, model.uses, model.names)
    weights = adapter.transform.apply(adapter.split)
    agree([jax.jit(lift(model.apply, strict=True))(weights, jnp.asarray(x))], expected)
    merged = jaxbig.save(model, jaxbig.merge(weights), tmp_path / "merged")
    agree(said(torch64, read_back(torch64, merged, case.name), x), expected)
    unmerged = jaxbig.save(model, weights, tmp_path / "unmerged")  # Weights, layer by layer
    for key, (_, _, data) in stored(unmerged).items():
        mine, their = (np.frombuffer(data) for data in (data, stored(merged)[key][2]))
        np.testing.assert_allclose(mine, their, rtol=0, atol=1e-12)


def test_what_does_not_belong_to_the_model(tmp_path):
    model = jaxbig.load(made.write(tmp_path / "given"))
    lacking = {name: leaf for name, leaf in model.params.items() if name != "norm"}
    other = {**model.params, "norm": {"scale": jnp.ones(3)}}
    for params, message in (
        (lacking, "params lack norm/scale"),
        (model.params | {"extra": {"w": jnp.ones(2)}}, "params have extra/w"),
        (other, r"norm/scale has the shape \(3,\), the model's is \(8,\)"),
    ):
        with pytest.raises(UserError, match=message):
            jaxbig.save(model, params, tmp_path / "out")
    with pytest.raises(UsageError, match="no size"):
        jaxbig.save(model, model.params, tmp_path / "out", max_shard_size="many")
    assert [file.name for file in tmp_path.iterdir()] == ["given"]


def test_what_belongs_to_the_model_goes_with_it(tmp_path):
    folder = made.write(tmp_path / "given")
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "notes.py"):
        (folder / name).write_text(f"{name}'s")
    model = jaxbig.load(folder)
    again = jaxbig.save(model, model.params, tmp_path / "again")
    assert (again / "tokenizer.json").read_text() == "tokenizer.json's"
    assert (again / "chat_template.jinja").exists()
    assert (again / "generation_config.json").exists()
    assert not (again / "notes.py").exists()
    assert paths(jaxbig.load(again).params).keys() == paths(model.params).keys()
