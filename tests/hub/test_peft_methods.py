"""Every method in PEFT's files and back: to the bit, in every dtype, scanned as unrolled; what is wrong is named."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft_stack as stack
import pytest

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.peft_files import Adapter, read_files, write_files
from jaxbig.hub.peft_read import read_peft
from jaxbig.hub.peft_write import write_peft
from jaxbig.lift import lift
from jaxbig.transform import Split, chain
from jaxbig.tune.adalora import adalora
from jaxbig.tune.boft import boft
from jaxbig.tune.dora import dora
from jaxbig.tune.fourierft import fourierft
from jaxbig.tune.full import full
from jaxbig.tune.hra import hra
from jaxbig.tune.ia3 import ia3
from jaxbig.tune.ln_tuning import ln_tuning
from jaxbig.tune.loha import loha
from jaxbig.tune.lokr import lokr
from jaxbig.tune.lora import lora
from jaxbig.tune.oft import oft
from jaxbig.tune.prefix import prefix
from jaxbig.tune.prompt import prompt
from jaxbig.tune.shira import shira
from jaxbig.tune.trainable_tokens import trainable_tokens
from jaxbig.tune.vera import vera
from jaxbig.usage import usage

pytest.importorskip("safetensors")

PRODUCTS, CONV = "layer[^/]*/(up|down)", "(layer[^/]*/(up|down)|conv)"
METHODS = {
    "lora": lora(2, 3.0, CONV, 0.1),
    "dora": dora(2, 3.0, CONV),
    "adalora": adalora(9, 3, 2, 4.0, CONV),
    "vera": vera(3, where=PRODUCTS, seed=5),
    "loha": loha(2, 3.0, CONV),
    "lokr": lokr(1, 3.0, where=PRODUCTS),
    "lokr whole": lokr(4, 3.0, 2, PRODUCTS),
    "fourierft": fourierft(7, 2.0, PRODUCTS, seed=3),
    "shira": shira(1, PRODUCTS),
    "oft": oft(4, PRODUCTS, 0),  # sides of 3 and of 4
    "boft": boft(2, 1, PRODUCTS),
    "boft of two factors": boft(2, 2, "layers/down"),
    "hra": hra(4, CONV),
    "ia3": ia3(CONV),
    "ln_tuning": ln_tuning("layer.*/norm/.*"),
    "trainable_tokens": trainable_tokens([7, 2], "emb"),
    "prompt": prompt(3, "emb"),
    "chain": chain(lora({"layer.*/up": 2, ".*": 1}, where=PRODUCTS), full("head/.*")),
}
SCALARS = {"bfloat16": jnp.bfloat16, "float32": np.float32}


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """What a method draws at first is overwritten here, and each shape would be compiled."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal", "uniform"):
            patch.setattr(jax.random, name, lambda key, shape, dtype=np.float32, *_: jnp.asarray(np.ones(shape, dtype)))
        yield


@pytest.fixture(scope="module")
def scanned():
    """A tree, its uses, and a function from a method's name to its split, which is made once."""
    params = stack.drawn()
    uses, made = stack.uses_of(params), {}

    def split_of(name):
        if name not in made:
            made[name] = METHODS[name].init(jax.random.key(0), params, uses)
        return made[name]

    return params, uses, split_of


def filled(tree, dtype):
    """The tree with other numbers, from NumPy: nothing is compiled for it."""
    random = np.random.default_rng(7)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape).astype(dtype)), tree)


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, its in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.dtype == its.dtype
        assert np.asarray(mine).tobytes() == np.asarray(its).tobytes()


@pytest.mark.parametrize("name", METHODS)
def test_written_and_read_it_is_the_same_to_the_bit_in_every_dtype(name, scanned, tmp_path):
    params, uses, split_of = scanned
    split = split_of(name)
    for dtype, scalar in SCALARS.items():
        now = split._replace(train=filled(split.train, scalar))
        write_peft(tmp_path / dtype, Adapter(METHODS[name], now, {}), uses, stack.names)
        again = read_peft(tmp_path / dtype, params, uses, stack.names)
        same(now.train, again.split.train)
        same(again.split.state, _of_state(now.state, again.split.state))
    if name == "chain":
        assert again.transform.config["links"][0]["rank"] == {"layers/down": 1, "layers/up": 2}


@pytest.mark.parametrize("name", ["lora", "shira", "ln_tuning"])
def test_scanned_and_unrolled_the_files_are_the_same(name, scanned, tmp_path):
    _, uses, split_of = scanned
    split = split_of(name)
    split = split._replace(train=filled(split.train, np.float16))
    write_peft(tmp_path / "scanned", Adapter(METHODS[name], split, {}), uses, stack.names)
    single = stack.unrolled(stack.drawn())
    uses = stack.uses_of(single)
    read = read_peft(tmp_path / "scanned", single, uses, stack.names)
    assert len(read.split.train) >= 2 * stack.L
    write_peft(tmp_path / "unrolled", read, uses, stack.names)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "scanned" / file).read_bytes() == (tmp_path / "unrolled" / file).read_bytes()


UPDATES = {
    "lora": lambda t: np.einsum("rihw,or->oihw", t["lora_A.weight"], t["lora_B.weight"][..., 0, 0]) * 3 / 2,
    "loha": lambda t: (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]) * 3 / 2,
    "lokr": lambda t: np.kron(t["lokr_w1"], t["lokr_w2_a"] @ t["lokr_w2_b"]) * 3,
    "shira": lambda t: np.bincount(
        np.ravel_multi_index(t["shira_indices"], (stack.F, stack.D)), t["shira_weight"], stack.F * stack.D
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UPDATES)
def test_the_tensors_are_the_update_in_torch_s_order_of_axes(name, scanned, tmp_path):
    """The update of a torch weight [out, in], or [out, in, height, width], from the file by each method's equation."""
    params, uses, split_of = scanned
    transform, split = METHODS[name], split_of(name)
    split = split._replace(train=filled(split.train, np.float32))
    write_peft(tmp_path, Adapter(transform, split, {}), uses, stack.names)
    path, module = ("conv", "conv") if "conv" in split.train else ("layers/up", "layers.1.up")
    prefix = f"base_model.model.{module}."
    tensors = {key.removeprefix(prefix): tensor for key, tensor in read_files(tmp_path)[1].items()}
    base, weight = params, transform.apply(split)
    for key in path.split("/"):
        base, weight = base[key], weight[key]
    update = np.asarray(weight.materialise() - base)
    of_torch = update.transpose(3, 2, 0, 1) if path == "conv" else update[1].reshape(stack.D, stack.F).T
    np.testing.assert_allclose(UPDATES[name](tensors).reshape(of_torch.shape), of_torch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_an_adapter_in_half_precision_computes_as_if_it_were_not(name):
    """A scale of 2/3 and a length of a column are not rounded to the adapter's dtype."""
    params, x = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}, jnp.ones((2, 4))
    fn = lambda p, x: x @ p["w"]  # noqa: E731
    technique = {"lora": lora, "dora": dora}[name](3, 2.0, "w")
    split = technique.init(jax.random.key(0), params, usage(fn, params, x))
    half = split._replace(train=filled(split.train, jnp.bfloat16))
    single = half._replace(train=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half.train))
    outputs = [lift(fn)(technique.apply(each), x) for each in (half, single)]
    np.testing.assert_allclose(*outputs, rtol=1e-6)


def _of_state(ours, theirs):
    """AdaLoRA's averages start again; all else is as it was."""
    fresh = {name: theirs[name] for name in ("sensitivity", "uncertainty") if name in theirs}
    return {**ours, **fresh} if fresh else ours


def test_prefixes_are_the_same_to_the_bit(tmp_path):
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    params = {
        "table": draw(9, 4),
        "position": draw(6, 4),
        "layers": {"k_proj": draw(2, 4, 2, 2), "v_proj": draw(2, 4, 4)},
    }

    def fn(params, ids):
        x = params["table"][ids] + params["position"][: ids.shape[1]]

        def layer(x, p):
            keys = jnp.einsum("btd,dhk->bthk", x, p["k_proj"]).reshape(x.shape)
            return x + jax.nn.softmax(x @ keys.mT) @ (x @ p["v_proj"]), None

        return jax.lax.scan(layer, x, params["layers"])[0]

    def names(path):
        stem = path.rpartition("/")[2]
        return [f"h.{i}.attn.{stem}.weight" for i in range(2)] if "layers" in path else f"{stem}.weight"

    uses = usage(fn, params, jnp.zeros((1, 3), jnp.int32))
    technique = prefix(3, "layers/.*")
    split = technique.init(jax.random.key(0), params, uses)
    split = split._replace(train=filled(split.train, jnp.bfloat16))
    write_peft(tmp_path, Adapter(technique, split, {}), uses, names)
    same(read_peft(tmp_path, params, uses, names).split.train, split.train)
    only = prefix(3, "layers/v_proj")
    half = Adapter(only, only.init(jax.random.key(0), params, uses), {})
    with pytest.raises(UserError, match=r"prefix: PEFT's file holds a key and a value of one width for each layer"):
        write_peft(tmp_path, half, uses, names)


def test_triplets_that_adalora_took_away_stay_away(scanned, tmp_path):
    params, uses, split_of = scanned
    technique, split = METHODS["adalora"], split_of("adalora")
    train = filled(split.train, np.float32)
    kept = {path: np.ones(mask.shape, bool) for path, mask in split.state["kept"].items()}
    kept["layers/up"][1, 2] = kept["conv"][0] = kept["layers/down"][0, 1] = False
    for path, place in {"layers/up": (1, 2), "conv": 0}.items():
        train[path]["e"] = train[path]["e"].at[place].set(0)  # that of layers/down came to life again since
    split = split._replace(train=train, state={**split.state, "kept": jax.tree.map(jnp.asarray, kept)})
    write_peft(tmp_path, Adapter(technique, split, {}), uses, stack.names)
    config, tensors = read_files(tmp_path)
    assert len(config["rank_pattern"]) == 2 * stack.L + 1
    assert {name: mask for name, mask in config["rank_pattern"].items() if not all(mask)} == {
        "layers.1.up.lora_E": [True, True, False], "conv.lora_E": [False, True, True]
    }  # fmt: skip
    assert tensors["base_model.model.conv.lora_A"].shape == (2, 12)
    assert tensors["base_model.model.layers.1.up.lora_B"].shape == (stack.F, 2)
    again = read_peft(tmp_path, params, uses, stack.names)
    assert again.split.state["kept"]["layers/up"].tolist()[1] == [True, True, False]
    assert bool(again.split.state["kept"]["layers/down"].all())
    for path, parts in again.split.train.items():
        gone = ~np.asarray(again.split.state["kept"][path])
        assert not np.asarray(parts["e"])[gone].any()
        np.testing.assert_array_equal(parts["e"], train[path]["e"])
        there = np.broadcast_to(~gone[..., None, :], (*gone.shape[:-1], parts["a"].size // gone.size, gone.shape[-1]))
        a, b = (np.where(there, np.asarray(leaf).reshape(there.shape), 0) for leaf in (train[path]["a"], parts["a"]))
        np.testing.assert_array_equal(a, np.asarray(parts["a"]).reshape(there.shape))
        np.testing.assert_array_equal(a, b)
    # After more training the config that was read says the new choice.
    more = again.split._replace(train={**again.split.train, "conv": filled(split.train["conv"], np.float32)})
    write_peft(tmp_path / "more", Adapter(again.transform, more, again.config), uses, stack.names)
    assert read_files(tmp_path / "more")[0]["rank_pattern"]["conv.lora_E"] == [True, True, True]


def damaged(folder, name, scanned, change, config):
    """What reading says of a file in which something is changed."""
    params, uses, split_of = scanned
    write_peft(folder, Adapter(METHODS[name], split_of(name), {}), uses, stack.names)
    its_config, tensors = read_files(folder)
    tensors = {key: tensor.copy() for key, tensor in tensors.items()}
    change(tensors)
    write_files(folder, its_config | config, tensors)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        read_peft(folder, params, uses, stack.names)
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


def drop(key):
    return lambda tensors: tensors.pop(f"base_model.model.{key}")


def put(key, *shape):
    return lambda tensors: tensors.update({f"base_model.model.{key}": np.zeros(shape, np.float32)})


def nothing(tensors):
    pass


DAMAGES = {
    "a part is missing": ("loha", drop("layers.1.up.hada_w2_b"), {}, "model.layers.1.up.hada_w2_b is missing"),
    "a layer is missing": (
        "hra", drop("layers.1.up.hra_u"), {}, "model.layers.1.up.hra_u is missing: of layers/up only some layers"
    ),
    "the shared part is missing": ("vera", lambda tensors: tensors.pop("base_model.vera_A"), {}, "vera_A is missing"),
    "a key too many": ("loha", put("conv.hada_t1", 2, 2), {}, "base_model.model.conv.hada_t1 belong to no leaf"),
    "a part of another kind": (
        "lokr", put("layers.0.up.lokr_w2", 2, 2), {}, "model.layers.0.up.lokr_w2 is no tensor of lokr"
    ),
    "another shape": (
        "boft", put("layers.2.down.boft_s", 5, 1), {},
        "model.layers.2.down.boft_s has the shape (5, 1), the model wants (6, 1)",
    ),
    "another number of axes": (
        "lora", put("layers.0.up.lora_B.weight", 8), {}, "up.lora_B.weight has the shape (8,), the model wants (8, r)"
    ),
    "layers of two ranks": (
        "hra", put("layers.0.up.hra_u", 6, 2), {}, "layers/up: the layers of one stack have"
    ),
    "a rank that the method does not make": ("hra", put("conv.hra_u", 12, 2), {}, "conv: u has the shape (12, 2)"),
    "shared matrices too small": (
        "vera", lambda tensors: tensors.update({"base_model.vera_A": np.zeros((3, 7), np.float32)}), {},
        "is smaller than (8, 3)",
    ),
    "places outside": (
        "shira", lambda tensors: tensors["base_model.model.layers.0.up.shira_indices"].__setitem__((0, 0), 9), {},
        "layers.0.up.shira_indices are no distinct entries of a matrix [8, 6]",
    ),
    "a mask that does not fit": (
        "adalora", nothing, {"rank_pattern": {"conv.lora_E": [True, False, True]}},
        "conv.lora_E holds 3 triplets, and the config's rank_pattern 2",
    ),
    "vera without matrices": ("vera", nothing, {"save_projection": False}, "{'save_projection': False}"),
    "hra by gram-schmidt": ("hra", nothing, {"apply_GS": True}, "{'apply_GS': True}, which hra has not"),
    "blocks that are shared": ("oft", nothing, {"block_share": True}, "{'block_share': True}"),
    "biases": ("boft", nothing, {"bias": "boft_only"}, "{'bias': 'boft_only'}"),
    "two submodules": ("prompt", nothing, {"num_transformer_submodules": 2}, "{'num_transformer_submodules': 2}"),
    "prompts of another width": (
        "prompt", lambda tensors: tensors.update(prompt_embeddings=np.zeros((3, 5), np.float32)), {},
        "prompt_embeddings has the shape (3, 5), the model wants (tokens, 6)",
    ),
    "another type": ("ia3", nothing, {"peft_type": "C3A"}, "holds a C3A adapter"),
    "another base": (
        "lora", put("conv.base_layer.weight", 4, 2, 3, 2), {},
        "conv.base_layer.weight is another than conv of the model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_wrong_with_a_file_is_one_line_that_names_the_key(what, scanned, tmp_path):
    name, change, config, says = DAMAGES[what]
    assert says in damaged(tmp_path, name, scanned, change, config)


REFUSED = {
    "another scale": (shira(1, PRODUCTS, scale=0.5), "shira: scale=0.5; PEFT's file holds none"),
    "three terms": (oft(2, PRODUCTS, 3), "oft: terms=3"),
    "a bias": (ia3("head/kernel"), "ia3: head has a bias, which PEFT scales along"),
    "a convolution": (lokr(1, where="conv"), "lokr: conv is a conv, and of those PEFT's tensors differ"),
    "inputs of a convolution": (ia3("conv", "in"), "ia3: conv is a conv"),
    "two sides of blocks": (boft(4, 1, PRODUCTS), "PEFT's config says one boft_block_size of all modules"),
    "two methods": (
        chain(ln_tuning("layers/norm/.*"), ia3(PRODUCTS)), "PEFT's files hold one method, and these are ia3, ln_tuning"
    ),
    "two series": (
        chain(oft(2, "layers/up"), oft(2, "layers/down", 0)), "oft: PEFT's config says one use_cayley_neumann of all"
    ),
    "two shared pairs": (
        chain(vera(3, where="layers/up", seed=1), vera(3, where="layers/down")), "other base_model.vera_A, and PEFT"
    ),
    "rows and a module": (
        chain(trainable_tokens([1], "emb"), full("head/.*")), "beside trainable_tokens PEFT saves no module whole"
    ),
    "nothing that adapts": (full("head/.*"), "PEFT has no a transform that adapts nothing"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_peft_cannot_express_is_not_written(what, scanned, tmp_path):
    params, uses, _ = scanned
    transform, says = REFUSED[what]
    split = transform.init(jax.random.key(0), params, uses)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        write_peft(tmp_path, Adapter(transform, split, {}), uses, stack.names)
    assert re.search(says.replace("(", r"\(").replace(")", r"\)"), str(caught.value)), str(caught.value)
    assert not list(tmp_path.iterdir())


def test_places_that_peft_would_not_draw_are_refused(scanned, tmp_path):
    params, uses, split_of = scanned
    technique, split = METHODS["fourierft"], split_of("fourierft")
    state = {path: weight.replace(places=jnp.arange(7, dtype=jnp.int32)) for path, weight in split.state.items()}
    with pytest.raises(UserError, match=r"the places of layers/.* are not those that PEFT draws from the seed 3"):
        write_peft(tmp_path, Adapter(technique, Split(params, split.train, state), {}), uses, stack.names)


def test_the_base_s_own_weight_beside_an_adapter_says_nothing_new(scanned, tmp_path):
    """PEFT saves tables that it adapts."""
    params, uses, split_of = scanned
    write_peft(tmp_path, Adapter(METHODS["lora"], split_of("lora"), {}), uses, stack.names)
    config, tensors = read_files(tmp_path)
    tensors["base_model.model.conv.base_layer.weight"] = np.asarray(params["conv"]).transpose(3, 2, 0, 1)
    write_files(tmp_path, config, tensors)
    same(read_peft(tmp_path, params, uses, stack.names).split.train, split_of("lora").train)


def test_the_config_of_another_method_is_a_mistake(scanned, tmp_path):
    params, uses, split_of = scanned
    adapter = Adapter(METHODS["hra"], split_of("hra"), {"peft_type": "LORA"})
    with pytest.raises(UsageError, match="the config is of LORA, and this is hra"):
        write_peft(tmp_path, adapter, uses, stack.names)
    (tmp_path / "adapter_config.json").write_text(json.dumps([1]))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no PEFT adapter"):
        read_peft(tmp_path, params, uses, stack.names)
