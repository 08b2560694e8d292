"""LoRA in PEFT's files: read and written to the bit, with the logits that PEFT computes, and what is refused."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbig import bottleneck, chain, full, lora, usage
from jaxbig.errors import UsageError, UserError
from jaxbig.hub.peft_files import Adapter
from jaxbig.hub.peft_read import read_peft
from jaxbig.hub.peft_write import write_peft
from jaxbig.lift import lift

LAYERS = 3


def ours(params, ids, image):
    """A tied table, stacked layers with heads, a convolution and a head that is saved whole."""
    x = params["emb"][ids]

    def layer(x, its):
        return x + jnp.tanh(jnp.einsum("btd,dhk->bthk", x, its["up"])).reshape(*x.shape[:-1], -1) @ its["down"], None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    y = jax.lax.conv_general_dilated(image, params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    pooled = jnp.concatenate([x.mean(1), jnp.tanh(y).mean((1, 2))], axis=-1)
    return pooled @ params["head"]["kernel"] + params["head"]["bias"], x @ params["emb"].T


def names(path):
    """Our leaves as parameters of the torch model below."""
    known = {"emb": "emb.weight", "conv": "conv.weight", "head/kernel": "head.weight", "head/bias": "head.bias"}
    return known.get(path) or [f"layers.{i}.{path.split('/')[1]}.weight" for i in range(LAYERS)]


def theirs(torch):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = torch.nn.Linear(6, 8, bias=False), torch.nn.Linear(8, 6, bias=False)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = torch.nn.Embedding(11, 6)
            self.layers = torch.nn.ModuleList([Layer() for _ in range(LAYERS)])
            self.conv = torch.nn.Conv2d(2, 4, (3, 2), bias=False)
            self.head = torch.nn.Linear(10, 3)

        def forward(self, ids, image):
            x = self.emb(ids)
            for layer in self.layers:
                x = x + layer.down(torch.tanh(layer.up(x)))
            y = torch.tanh(self.conv(image)).mean((2, 3))
            table = getattr(self.emb, "base_layer", self.emb).weight
            return self.head(torch.cat([x.mean(1), y], -1)), x @ table.T

    torch.manual_seed(0)
    return Model().double()


def tree(state):
    of = {name: value.detach().numpy() for name, value in state.items()}
    stack = lambda name: np.stack([of[f"layers.{i}.{name}.weight"].T for i in range(LAYERS)])  # noqa: E731
    params = {
        "emb": of["emb.weight"],
        "layers": {"up": stack("up").reshape(LAYERS, 6, 2, 4), "down": stack("down")},
        "conv": of["conv.weight"].transpose(2, 3, 1, 0),
        "head": {"kernel": of["head.weight"].T, "bias": of["head.bias"]},
    }
    return jax.tree.map(jnp.asarray, params)


def inputs():
    random = np.random.default_rng(0)
    return random.integers(0, 11, (2, 5)), random.normal(size=(2, 5, 4, 2))


def saved_by_peft(torch, folder, **options):
    """A base's state, the logits of PEFT's model with a random adapter, and its files."""
    import peft

    base = theirs(torch)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(**options)).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
        ids, image = inputs()
        logits = model(torch.tensor(ids), torch.tensor(image.transpose(0, 3, 1, 2)))
        model.save_pretrained(folder)
    return state, [each.detach().numpy() for each in logits]


def files(folder):
    from safetensors.numpy import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    return load_file(folder / "adapter_model.safetensors"), config


CASES = {
    "regex, patterns, a module saved whole": {
        "r": 2, "lora_alpha": 5, "target_modules": r".*(emb|up|down|conv)", "rank_pattern": {"up": 3, "conv": 1},
        "alpha_pattern": {r"layers\.\d\.down": 7}, "modules_to_save": ["head"], "lora_dropout": 0.1,
    },
    "rank stabilised": {"r": 4, "lora_alpha": 3, "target_modules": ["down", "head"], "use_rslora": True},
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_peft_to_ours_to_peft_to_the_bit_with_its_logits(name, torch, tmp_path):
    import peft

    state, expected = saved_by_peft(torch, tmp_path / "theirs", **CASES[name])
    with jax.enable_x64(True):
        params, (ids, image) = tree(state), inputs()
        uses = usage(ours, params, ids, image)
        adapter = read_peft(tmp_path / "theirs", params, uses, names)
        found = lift(ours, strict=True)(adapter.transform.apply(adapter.split), ids, image)
        for mine, its in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-9, atol=1e-12)
        write_peft(tmp_path / "ours", adapter, uses, names)
    (before, config), (after, written) = files(tmp_path / "theirs"), files(tmp_path / "ours")
    assert written == config
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert after[key].dtype == array.dtype
        assert after[key].tobytes() == array.tobytes(), key
    base = theirs(torch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").double().eval()
        logits = again(torch.tensor(ids), torch.tensor(image.transpose(0, 3, 1, 2)))
    for mine, its in zip(logits, expected, strict=True):
        np.testing.assert_array_equal(mine.detach().numpy(), its)


@pytest.mark.parity
def test_an_adapter_of_ours_runs_in_peft(torch, tmp_path):
    import peft

    base = theirs(torch)
    with jax.enable_x64(True):
        params, (ids, image) = tree(base.state_dict()), inputs()
        uses = usage(ours, params, ids, image)
        transform = chain(
            lora({"layers/up": 3, ".*": 2}, {"conv": 5.0, ".*": 1.5}, where=["layers/.*", "conv"]),
            lora(2, where="emb", uses="lookup"),
            full(where="head/.*"),
        )
        split = transform.init(jax.random.key(0), params, uses)
        stirred = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), split.train)
        split = split._replace(train=stirred)
        expected = lift(ours)(transform.apply(split), ids, image)
        told = write_peft(tmp_path, Adapter(transform, split, {"task_type": None}), uses, names)
    assert sorted(files(tmp_path)[0]) == told
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base, tmp_path).double().eval()
        logits = model(torch.tensor(ids), torch.tensor(image.transpose(0, 3, 1, 2)))
    for mine, its in zip(expected, logits, strict=True):
        np.testing.assert_allclose(mine, its.detach().numpy(), rtol=1e-9, atol=1e-12)


def written(folder, **changed):
    params = {"up": {"kernel": jnp.ones((4, 3))}}
    uses = usage(lambda p, x: jnp.tanh(x @ p["up"]["kernel"]), params, jnp.ones((2, 4)))
    transform = lora(2, where="up/kernel")
    adapter = Adapter(transform, transform.init(jax.random.key(0), params, uses), {})
    write_peft(folder, adapter, uses, lambda path: "up.weight")
    config = json.loads((folder / "adapter_config.json").read_text()) | changed
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return lambda names=lambda path: "up.weight": read_peft(folder, params, uses, names)


def test_one_layer_may_be_a_stack_and_convolutions_may_have_one_axis(tmp_path):
    pytest.importorskip("safetensors")

    def fn(params, x):
        y = jax.lax.conv_general_dilated(x, params["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), y, params["layers"])[0] @ params["head"]

    params = {"conv": jnp.ones((3, 2, 4)), "layers": jnp.ones((1, 4, 4)), "head": jnp.ones((4, 3))}
    uses = usage(fn, params, jnp.ones((2, 5, 2)))
    transform = chain(lora(2, where=["conv", "layers"]), full(where="head"))
    split = transform.init(jax.random.key(0), params, uses)
    name = lambda path: ["layer.0.weight"] if path == "layers" else f"{path}.weight"  # noqa: E731
    write_peft(tmp_path, Adapter(transform, split, {}), uses, name)
    tensors, _ = files(tmp_path)
    shapes = {key.removeprefix("base_model.model."): array.shape for key, array in tensors.items()}
    assert shapes == {"conv.lora_A.weight": (2, 2, 3), "conv.lora_B.weight": (4, 2, 1), "head.weight": (3, 4),
                      "layer.0.lora_A.weight": (2, 4), "layer.0.lora_B.weight": (4, 2)}  # fmt: skip
    again = read_peft(tmp_path, params, uses, name)
    jax.tree.map(np.testing.assert_array_equal, again.split.train, split.train)


def test_what_cannot_be_read_is_named(tmp_path):
    pytest.importorskip("safetensors")
    assert written(tmp_path / "good")().transform.config["rank"] == 2
    with pytest.raises(UserError, match=r"holds a POLY adapter; read_peft reads ADALORA, BOFT, .*, LORA, "):
        written(tmp_path / "a", peft_type="POLY")()
    with pytest.raises(UserError, match=r"its config says \{'lora_bias': True\}, which lora has not"):
        written(tmp_path / "b", lora_bias=True)()
    with pytest.raises(UserError, match=r"'init_lora_weights': 'pissa_niter_4'"):  # its base is not the model's
        written(tmp_path / "f", init_lora_weights="pissa_niter_4")()
    with pytest.raises(UserError, match=r"model.up.lora_A.weight, \S*up.lora_B.weight belong to no leaf"):
        written(tmp_path / "c")(lambda path: "down.weight")
    with pytest.raises(UserError, match="cannot be read"):
        read_peft(tmp_path / "nowhere", {}, {}, names)
    read = written(tmp_path / "e")
    (tmp_path / "e" / "adapter_model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="is damaged or no PEFT adapter"):
        read()


def test_what_cannot_be_written_is_named(tmp_path):
    params = {"up": {"kernel": jnp.ones((4, 3))}}
    uses = usage(lambda p, x: jnp.tanh(x @ p["up"]["kernel"]), params, jnp.ones((2, 4)))
    transform = bottleneck(2, where="up/kernel")
    with pytest.raises(UsageError, match=r"PEFT has no bottleneck; its files hold adalora, .*, lora, "):
        write_peft(tmp_path, Adapter(transform, transform.init(jax.random.key(0), params, uses), {}), uses, names)
    transform = lora(2, where="up/kernel")
    adapter = Adapter(transform, transform.init(jax.random.key(0), params, uses), {})
    with pytest.raises(UsageError, match="names: there are 0 names for up/kernel, which holds 1 layers"):
        write_peft(tmp_path, adapter, uses, lambda path: None)
    assert not list(tmp_path.iterdir())
