"""Every method in PEFT's files and back: to the bit, in every dtype, scanned as unrolled; what is wrong is named."""

import jax
import jax.numpy as jnp
import numpy as np
import peft_stack as stack
import pytest
from peft_cases import METHODS, scanned, split_of, undraw

from jaxbig.errors import UserError
from jaxbig.hub.peft_files import Adapter, read_files, write_files
from jaxbig.hub.peft_read import read_peft
from jaxbig.hub.peft_write import write_peft
from jaxbig.lift import lift
from jaxbig.tune.dora import dora
from jaxbig.tune.lora import lora
from jaxbig.tune.prefix import prefix
from jaxbig.usage import usage

pytest.importorskip("safetensors")

SCALARS = {"bfloat16": jnp.bfloat16, "float32": np.float32}


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    with pytest.MonkeyPatch.context() as patch:
        undraw(patch)
        yield


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
def test_written_and_read_it_is_the_same_to_the_bit_in_every_dtype(name, tmp_path):
    params, uses = scanned()
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
def test_scanned_and_unrolled_the_files_are_the_same(name, tmp_path):
    _, uses = scanned()
    split = split_of(name)
    split = split._replace(train=filled(split.train, np.float16))
    write_peft(tmp_path / "scanned", Adapter(METHODS[name], split, {}), uses, stack.names)
    single = stack.unrolled(stack.drawn())
    uses = stack.uses_of(single)
    read = read_peft(tmp_path / "scanned", single, uses, stack.names)
    assert len(read.split.train) >= stack.L
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
def test_the_tensors_are_the_update_in_torch_s_order_of_axes(name, tmp_path):
    """The update of a torch weight [out, in], or [out, in, height, width], from the file by each method's equation."""
    params, uses = scanned()
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
    outputs = [jax.jit(lambda split: lift(fn)(technique.apply(split), x))(each) for each in (half, single)]
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


def test_triplets_that_adalora_took_away_stay_away(tmp_path):
    params, uses = scanned()
    technique, split = METHODS["adalora"], split_of("adalora")
    train = filled(split.train, np.float32)
    kept = {path: np.ones(mask.shape, bool) for path, mask in split.state["kept"].items()}
    kept["layers/up"][1, 2] = kept["conv"][0] = kept["layers/up"][0, 1] = False
    for path, place in {"layers/up": (1, 2), "conv": 0}.items():
        train[path]["e"] = train[path]["e"].at[place].set(0)  # that of the first layer came to life again since
    split = split._replace(train=train, state={**split.state, "kept": jax.tree.map(jnp.asarray, kept)})
    write_peft(tmp_path, Adapter(technique, split, {}), uses, stack.names)
    config, tensors = read_files(tmp_path)
    assert len(config["rank_pattern"]) == stack.L + 1
    assert {name: mask for name, mask in config["rank_pattern"].items() if not all(mask)} == {
        "layers.1.up.lora_E": [True, True, False], "conv.lora_E": [False, True, True]
    }  # fmt: skip
    assert tensors["base_model.model.conv.lora_A"].shape == (2, 12)
    assert tensors["base_model.model.layers.1.up.lora_B"].shape == (stack.F, 2)
    again = read_peft(tmp_path, params, uses, stack.names)
    assert again.split.state["kept"]["layers/up"].tolist()[1] == [True, True, False]
    assert bool(again.split.state["kept"]["layers/up"][0].all())
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


def test_the_base_s_own_weight_beside_an_adapter_says_nothing_new(tmp_path):
    """PEFT saves tables that it adapts."""
    params, uses = scanned()
    write_peft(tmp_path, Adapter(METHODS["lora"], split_of("lora"), {}), uses, stack.names)
    config, tensors = read_files(tmp_path)
    tensors["base_model.model.conv.base_layer.weight"] = np.asarray(params["conv"]).transpose(3, 2, 0, 1)
    write_files(tmp_path, config, tensors)
    same(read_peft(tmp_path, params, uses, stack.names).split.train, split_of("lora").train)
