"""Decoders in GGUF files: leaves beside the numbers that the blocks mean, and beside the same model's folder."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub import gguf_models, made
from hub.gguf_made import container
from rich.console import Console

import jaxbig
from jaxbig import lift
from jaxbig.codes import Quantized
from jaxbig.errors import UsageError, UserError
from jaxbig.hub.plan import names_by
from jaxbig.hub.text_model import text_model
from jaxbig.info import info
from jaxbig.shifted import Shifted
from jaxbig.tree import paths
from jaxbig.weight import is_weight

CASES = {
    "llama Q4_1, tied": ("llama", 64, ("Q4_1",), "Q8_0", True),
    "llama K": ("llama", 256, ("Q4_K", "Q6_K"), "Q6_K", False),
    "qwen2 Q4_0": ("qwen2", 64, ("Q4_0",), "F16", False),
    "qwen3 mixed": ("qwen3", 64, ("Q8_0", "BF16"), "Q4_0", True),
}


def gguf(folder, kind="llama", width=64, forms=("Q4_1",), table="Q8_0", tied=True, **fields):
    """(the file, transformers' tensors)."""
    tensors, theirs = gguf_models.decoder(kind, width, forms, table, tied)
    return gguf_models.write(folder / "a.gguf", tensors, kind, width, **fields), theirs


def expected(model, theirs):
    """path -> the numbers of its tensors, as the leaf has them."""
    names, found = names_by(model.leaves), {}
    for path, its in model.leaves.items():
        layers = [theirs[name].T if its.turn == "matrix" else theirs[name] for name in its.names]
        found[path] = np.stack(layers) if isinstance(names(path), list) else layers[0]
    return found


def value(leaf):
    """The numbers of a leaf, by NumPy."""
    if isinstance(leaf, Shifted):
        return value(leaf.base) + repeated(leaf.shift, leaf.shape)
    if not isinstance(leaf, Quantized):
        return np.asarray(leaf, np.float32)
    codes = np.asarray(leaf.codes)
    if leaf.packed is not None:
        codes = np.stack([codes & 15, codes >> 4], leaf.packed if leaf.packed < -1 else codes.ndim)
        codes = codes.reshape(leaf.shape).astype(np.int8)
        codes = np.where(codes > 7, codes - 16, codes) if leaf.zero is None else codes - np.asarray(leaf.zero)
    return codes.astype(np.float32) * repeated(leaf.scale, leaf.shape)


def repeated(array, shape):
    for axis, length in enumerate(shape):
        array = np.repeat(np.asarray(array), length // array.shape[axis], axis)
    return array


def same(model, params, theirs):
    want = expected(model, theirs)
    assert paths(params).keys() == want.keys()
    for path, leaf in paths(params).items():
        np.testing.assert_array_equal(value(leaf), want[path], path)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_leaves_are_the_numbers_that_the_file_means(tmp_path, case):
    file, theirs = gguf(tmp_path, *case)
    model = jaxbig.load(file)
    same(model, model.params, theirs)
    kinds = {path: leaf.kind() for path, leaf in paths(model.params).items() if is_weight(leaf)}
    forms, table, tied = case[2:]
    coded = 7 * sum(form.startswith("Q") for form in forms * (2 // len(forms)))
    assert len(kinds) == coded + table.startswith("Q") * (2 - tied)
    assert model.unused == ()


@pytest.mark.slow
def test_the_model_computes_what_its_folder_computes(tmp_path):
    file, theirs = gguf(tmp_path)
    folder = made.write(tmp_path / "hf", theirs, gguf_models.config("llama", 64, True))
    model, plain = jaxbig.load(file), jaxbig.load(folder)
    assert {**model.config, "bos_token_id": None, "eos_token_id": None} == {
        **model.config, "bos_token_id": None, "eos_token_id": None, **plain.config
    }  # fmt: skip
    assert model.module == plain.module
    ids = jnp.array([[1, 5, 39, 7, 7]])
    found = jax.jit(lift(model.apply))(model.params, ids)  # a table that became an array would warn, an error here
    np.testing.assert_allclose(found, jax.jit(plain.apply)(plain.params, ids), rtol=1e-5, atol=1e-6)


def test_what_load_is_asked_for(tmp_path):
    file, theirs = gguf(tmp_path)
    stacked = jaxbig.load(file, scan_layers=True)
    same(stacked, stacked.params, theirs)
    assert stacked.params["layers"]["mlp"]["up"]["kernel"].kind() == "Shifted(Quantized int4 g32)"
    half = jaxbig.load(file, dtype="float16")
    assert all(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(half.params))
    same(half, half.params, {name: array.astype(np.float16).astype(np.float32) for name, array in theirs.items()})
    bare = jaxbig.load(file, "features")
    assert bare.task == bare.module.task == "features"
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    laid = jaxbig.load(file, mesh=mesh, rules=[(".*/up/kernel", jax.sharding.PartitionSpec(None, "x"))])
    assert laid.params["layer_0"]["mlp"]["up"]["kernel"].base.codes.sharding.spec == jax.sharding.PartitionSpec(
        None, "x"
    )
    same(laid, laid.params, theirs)
    for more, message in [
        ({"task": "sequence_classification"}, "read as causal_lm or features"),
        ({"num_classes": 2}, "has no classes"),
        ({"colour": 1}, "has no option 'colour'"),
    ]:
        with pytest.raises(UsageError, match=message):
            jaxbig.load(file, **more)


@pytest.mark.parametrize(("forms", "width"), [(("Q4_1", "Q8_0"), 64), (("Q8_0", "Q6_K"), 256), (("F16", "BF16"), 64)])
def test_a_stack_of_several_formats(tmp_path, forms, width):
    file, theirs = gguf(tmp_path, width=width, forms=forms)
    with pytest.raises(UserError, match=rf"several formats \({', '.join(forms)}\).*leave scan_layers out"):
        jaxbig.load(file, scan_layers=True)
    model = jaxbig.load(file, scan_layers=True, dtype="float32")
    same(model, model.params, theirs)


@pytest.mark.slow
def test_training_on_top_of_codes(tmp_path):
    file, theirs = gguf(tmp_path)
    model = jaxbig.load(file)
    assert model.uses == jaxbig.load(made.write(tmp_path / "hf", theirs, gguf_models.config("llama", 64, True))).uses
    split = jaxbig.lora(rank=2).init(jax.random.key(0), model.params, model.uses)
    assert len(split.train) > 10
    ids = jnp.array([[1, 5, 39]])

    def loss(train):
        params = jaxbig.lora(rank=2).apply(split._replace(train=train))
        return lift(model.apply)(params, ids).std()

    gradient = jax.jit(jax.grad(loss))(split.train)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 0


def test_saved_as_transformers_has_it(tmp_path):
    file, theirs = gguf(tmp_path, "qwen2", forms=("Q4_0",), table="F16", tied=False)
    model = jaxbig.load(file)
    again = jaxbig.load(jaxbig.save(model, model.params, tmp_path / "hf"))
    same(again, again.params, theirs)
    assert again.tokenizer.encode("hello <t>") == model.tokenizer.encode("hello <t>")
    assert (again.tokenizer.named, again.tokenizer.template) == (model.tokenizer.named, model.tokenizer.template)


def test_texts_and_chats(tmp_path):
    file, _ = gguf(tmp_path)
    found = text_model(file)
    assert (found.kind, found.positions) == ("GGUF", 64)
    tokens = found.encode("hello") + found.encode("<t>")
    assert found.decode(tokens) == "hello"
    ids = {name: found.encode(f"<{name}>")[0] for name in "set"}
    assert found.ends == (ids["e"], ids["t"])
    assert found.talk is not None
    assert found.talk([{"role": "user", "content": "hello"}]) == [ids["s"], *tokens]


def test_llama_3s_frequencies(tmp_path):
    """As the published formula has them, wave by wave: the file holds what each is divided by."""
    waves = 2 * np.pi * 500_000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = (8192 / waves - 1) / (4 - 1)
    slower = np.where(waves < 8192 / 4, 1, np.where(waves > 8192, 8, 1 / ((1 - smooth) / 8 + smooth)))
    tensors, _ = gguf_models.decoder()
    for factors, good in [(slower, True), (slower[::-1], False), (slower[:4], False), (slower * np.nan, False)]:
        raw = np.asarray(factors, np.float32)
        turns = {"rope_freqs.weight": ("F32", raw.shape, raw.tobytes())}
        data = gguf_models.metadata("llama", 64, 64, **{"rope.freq_base": np.float32(500_000)})
        (tmp_path / "a.gguf").write_bytes(container(data, tensors | turns))
        if not good:
            with pytest.raises(UserError, match=r"not what Llama 3\.1"):
                jaxbig.load(tmp_path / "a.gguf")
            continue
        rope = jaxbig.load(tmp_path / "a.gguf").module.rope
        assert (rope.kind, rope.factor, rope.length, rope.low, rope.high) == ("llama3", 8.0, 8192, 1.0, 4.0)


U = np.uint32
REFUSED = {
    "architecture": ({"general.architecture": "bert"}, r"general\.architecture is 'bert'; jaxbig reads llama, qwen2"),
    "no layers": ({"llama.block_count": U(0)}, "have to be at least 1"),
    "a layer more": ({"llama.block_count": U(3)}, r"has no blk\.2\."),
    "a layer less": ({"llama.block_count": U(1)}, r"holds blk\.1\..* and 6 more, which jaxbig's llama has no place"),
    "layers": ({"llama.block_count": U(2**30)}, "another model's"),
    "no heads": ({"llama.attention.head_count": U(0)}, "have to be at least 1"),
    "heads": ({"llama.attention.head_count": U(3)}, "the width has to be even"),
    "a kind": ({"llama.block_count": "2"}, "has to be one whole number"),
    "keys by layers": ({"llama.attention.head_count_kv": np.array([2, 2], U)}, "has to be one whole number"),
    "a missing field": ({"llama.embedding_length": None}, r"has no llama\.embedding_length"),
    "another width": ({"llama.embedding_length": U(128)}, "has the shape"),
    "experts": ({"llama.expert_count": U(8)}, "without experts"),
    "parts of heads": ({"llama.rope.dimension_count": U(8)}, "a head's width"),
    "scaling": ({"llama.rope.scaling.type": "yarn"}, "reads none and linear"),
    "not finite": ({"llama.rope.freq_base": np.float32(np.nan)}, "has to be a number"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_models_that_are_refused(tmp_path, fields, message):
    tensors, _ = gguf_models.decoder()
    file = gguf_models.write(tmp_path / "a.gguf", tensors, more=fields)
    with pytest.raises(UserError, match=message) as caught:
        jaxbig.load(file)
    assert "\n" not in str(caught.value)
    assert "a.gguf" in str(caught.value)


def test_numbers_that_are_not_finite(tmp_path):
    tensors, _ = gguf_models.decoder()
    form, shape, raw = tensors["blk.1.ffn_up.weight"]
    tensors["blk.1.ffn_up.weight"] = (form, shape, np.array([np.inf], np.float16).tobytes() + raw[2:])
    file = gguf_models.write(tmp_path / "a.gguf", tensors)
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight holds NaN or infinity"):
        jaxbig.load(file)
    leaf = jaxbig.load(file, allow_nonfinite=True).params["layer_1"]["mlp"]["up"]["kernel"]
    assert not np.isfinite(leaf.base.scale).all()
    jaxbig.load(file, allow_nonfinite=True, dtype="float32")


def test_a_tensor_that_is_missing_and_one_too_many(tmp_path):
    tensors, _ = gguf_models.decoder()
    file = tmp_path / "a.gguf"
    gguf_models.write(file, {name: it for name, it in tensors.items() if name != "token_embd.weight"})
    with pytest.raises(UserError, match=r"has no token_embd\.weight"):
        jaxbig.load(file)
    gguf_models.write(file, tensors | {"blk.0.attn_q_norm.weight": ("F32", (16,), bytes(64))})
    with pytest.raises(UserError, match=r"holds blk\.0\.attn_q_norm\.weight, which jaxbig's llama has no place for"):
        jaxbig.load(file)


def test_info_tells_formats_and_what_load_makes_of_them(tmp_path):
    file, _ = gguf(tmp_path, "llama", 256, ("Q4_K", "Q6_K"), "Q8_0", False)
    console = Console(file=io.StringIO(), width=160)
    assert info([str(file), "--leaves"], console) == 0
    text = console.file.getvalue()
    rows = {row.split()[1]: row.split()[3::2] for row in text.splitlines() if row.startswith("│ Q")}
    assert [rows[name][3] for name in ("Q4_K", "Q6_K", "Q8_0")] == ["4.50", "6.56", "8.50"]
    matrices = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 256  # those of one layer: its attention and its feed-forward
    assert rows["Q4_K"][:3] == ["7", f"{matrices:,}", f"{matrices // 256 * 144:,}"]
    assert "blk.1.ffn_down.weight" in text
    assert "chat template: yes" in text
    total = sum(np.size(value(leaf)) for leaf in jax.tree.leaves(jaxbig.load(file).params, is_leaf=is_weight))
    assert f"jaxbig.load reads Llama for causal_lm, 2 layers, {total:,} parameters" in text


def test_info_of_a_damaged_file_is_one_line(tmp_path):
    file, _ = gguf(tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"a\.gguf"):
        info([str(file)])
