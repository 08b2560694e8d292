"""Every method in PEFT's files against PEFT: what it saves we compute alike, what we save it loads, field by field."""

import warnings

import jax
import numpy as np
import peft_stack as stack
import pytest

from jaxbig import partition
from jaxbig.errors import UserError
from jaxbig.hub.peft_files import Adapter, read_files
from jaxbig.hub.peft_read import read_peft
from jaxbig.hub.peft_write import write_peft
from jaxbig.lift import lift
from jaxbig.tune.adalora import adalora
from jaxbig.tune.boft import boft
from jaxbig.tune.dora import dora
from jaxbig.tune.fourierft import drawn, fourierft
from jaxbig.tune.hra import hra
from jaxbig.tune.ia3 import ia3
from jaxbig.tune.ln_tuning import ln_tuning
from jaxbig.tune.loha import loha
from jaxbig.tune.lokr import lokr
from jaxbig.tune.lora import lora
from jaxbig.tune.oft import oft
from jaxbig.tune.shira import shira
from jaxbig.tune.trainable_tokens import trainable_tokens
from jaxbig.tune.vera import vera

pytestmark = pytest.mark.parity

PRODUCTS, WITH_CONV = ["layers/up", "layers/down"], ["layers/up", "layers/down", "conv"]
MODULES = [f"layers.{i}.{name}" for i in range(stack.L) for name in ("up", "down")]
NORMS = [f"layers.{i}.norm" for i in range(stack.L)]
ADALORA = {"init_r": 3, "target_r": 2, "lora_alpha": 4.0, "total_step": 9}

# name -> ours, PEFT's config class, its arguments
CASES = {
    "lora": (lora(2, 3.0, WITH_CONV, 0.1), "LoraConfig", {"r": 2, "lora_alpha": 3.0, "lora_dropout": 0.1}),
    "rslora": (lora(4, 3.0, PRODUCTS, stabilised=True), "LoraConfig", {"r": 4, "lora_alpha": 3.0, "use_rslora": True}),
    "dora": (dora(2, 3.0, WITH_CONV), "LoraConfig", {"r": 2, "lora_alpha": 3.0, "use_dora": True}),
    "dora of a table": (dora(2, 3.0, "emb"), "LoraConfig", {"r": 2, "lora_alpha": 3.0, "use_dora": True}),
    "adalora": (adalora(9, 3, 2, 4.0, WITH_CONV), "AdaLoraConfig", ADALORA),
    "vera": (vera(3, where=PRODUCTS, seed=5), "VeraConfig", {"r": 3, "projection_prng_key": 5}),
    "loha": (loha(2, 3.0, WITH_CONV), "LoHaConfig", {"r": 2, "alpha": 3.0}),
    "lokr": (lokr(1, 3.0, where=PRODUCTS), "LoKrConfig", {"r": 1, "alpha": 3.0}),
    "lokr whole": (lokr(4, 3.0, 2, PRODUCTS), "LoKrConfig", {"r": 4, "alpha": 3.0, "decompose_factor": 2}),
    "fourierft": (
        fourierft(7, 2.0, PRODUCTS, seed=3), "FourierFTConfig",
        {"n_frequency": 7, "scaling": 2.0, "random_loc_seed": 3},
    ),
    "shira": (shira(1, PRODUCTS), "ShiraConfig", {"r": 1}),
    "oft": (oft(2, PRODUCTS), "OFTConfig", {"oft_block_size": 2}),
    "oft of three terms": (oft(2, PRODUCTS, 2), "OFTConfig", {"oft_block_size": 2, "num_cayley_neumann_terms": 2}),
    "oft exact": (oft(2, PRODUCTS, 0), "OFTConfig", {"oft_block_size": 2, "use_cayley_neumann": False}),
    "boft": (boft(2, 1, PRODUCTS), "BOFTConfig", {"boft_block_size": 2}),
    "hra": (hra(4, PRODUCTS), "HRAConfig", {"r": 4}),
    "ia3": (ia3(["layers/up", "conv"]), "IA3Config", {"feedforward_modules": []}),
    "ia3 of both sides": (
        partition({"layers/up": ia3("layers/up"), "layers/down": ia3("layers/down", "in")}), "IA3Config",
        {"feedforward_modules": MODULES[1::2]},
    ),
    "ln_tuning": (ln_tuning("layers/norm/.*"), "LNTuningConfig", {}),
    "trainable_tokens": (trainable_tokens([7, 2], "emb"), "TrainableTokensConfig", {"token_indices": [7, 2]}),
}  # fmt: skip
TARGETS = {"ln_tuning": NORMS, "trainable_tokens": ["emb"], "dora of a table": ["emb"],
           "ia3": [*MODULES[::2], "conv"]}  # fmt: skip
SETS = {name: TARGETS.get(name, MODULES + ["conv"] * ("conv" in str(case[0].config))) for name, case in CASES.items()}
# Where PEFT computes in float32: FourierFT's transform, the shared matrices of VeRA and OFT's and BOFT's identities.
LOOSE = {"fourierft": 1e-5}


@pytest.fixture(scope="module")
def both():
    return stack.torch_and_peft()


def quiet(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def stirred(torch, model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model


def saved_by_peft(both, name, params, folder, **more):
    """The logits of PEFT's model with a random adapter, and its files."""
    torch, peft = both
    _, config, options = CASES[name]
    torch.manual_seed(0)
    options = {"target_modules": SETS[name], **options, **more}
    model = quiet(peft.get_peft_model, stack.theirs(torch, params), getattr(peft, config)(**options)).double().eval()
    expected = stack.logits(torch, stirred(torch, model))
    quiet(model.save_pretrained, folder)
    return expected


@pytest.mark.parametrize("name", CASES)
def test_what_peft_saves_is_read_computed_alike_and_written_to_the_bit(name, both, tmp_path):
    with jax.enable_x64(True):
        params = stack.drawn(np.float64)
        expected = saved_by_peft(both, name, params, tmp_path / "theirs")
        uses = stack.uses_of(params)
        adapter = read_peft(tmp_path / "theirs", params, uses, stack.names)
        found = lift(stack.ours, strict=True)(adapter.transform.apply(adapter.split), *stack.inputs())
        rtol = LOOSE.get(name, 1e-9)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol / 1000)
        plain = stack.ours(params, *stack.inputs())
        assert np.abs(plain - expected).max() > 1e-2
        write_peft(tmp_path / "ours", adapter, uses, stack.names)
        params = stack.unrolled(params)
        uses = stack.uses_of(params)
        adapter = read_peft(tmp_path / "theirs", params, uses, stack.names)
        write_peft(tmp_path / "unrolled", adapter, uses, stack.names)
    (config, tensors), (written, after), (_, single) = (
        read_files(tmp_path / which) for which in ("theirs", "ours", "unrolled")
    )
    assert written == config
    assert tensors.keys() == after.keys() == single.keys()
    for key, tensor in tensors.items():
        assert single[key].tobytes() == after[key].tobytes()
        if name == "boft" and key.endswith("boft_R"):  # what is symmetric in it means nothing
            tensor = (tensor - tensor.swapaxes(-1, -2)) / 2
        assert after[key].dtype == tensor.dtype, key
        assert after[key].tobytes() == tensor.tobytes(), key


@pytest.mark.parametrize("name", CASES)
def test_what_we_save_peft_loads_with_the_keys_and_the_config_that_it_writes(name, both, tmp_path):
    torch, peft = both
    transform = CASES[name][0]
    with jax.enable_x64(True):
        params = stack.drawn(np.float64)
        uses = stack.uses_of(params)
        split = transform.init(jax.random.key(0), params, uses)
        stirred_train = jax.tree.map(
            lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), split.train
        )
        split = split._replace(train=stirred_train)
        expected = lift(stack.ours)(transform.apply(split), *stack.inputs())
        write_peft(tmp_path / "ours", Adapter(transform, split, {}), uses, stack.names)
    base = stack.theirs(torch, params)
    model = quiet(peft.PeftModel.from_pretrained, base, tmp_path / "ours").double().eval()
    rtol = {"fourierft": 1e-5, "vera": 1e-5}.get(name, 1e-9)  # PEFT's matrices of VeRA are loaded into float32
    np.testing.assert_allclose(stack.logits(torch, model), expected, rtol=rtol, atol=rtol / 1000)
    saved_by_peft(both, name, params, tmp_path / "theirs")
    (their_config, theirs), (our_config, mine) = (read_files(tmp_path / which) for which in ("theirs", "ours"))
    assert {key: tensor.shape for key, tensor in mine.items()} == {key: tensor.shape for key, tensor in theirs.items()}
    their_config |= {"auto_mapping": None, "target_modules": sorted(their_config["target_modules"])}
    if their_config.get("feedforward_modules"):
        their_config["feedforward_modules"].sort()
    assert our_config == their_config


VARIANTS = {
    "ranks and alphas by module": (
        "loha", {"rank_pattern": {"up": 3, "conv": 1}, "alpha_pattern": {r"layers\.\d\.down": 7}},
    ),
    "rank-stabilised dora by module": ("dora", {"use_rslora": True, "rank_pattern": {"down": 1}, "lora_dropout": 0.1}),
    "frequencies by module": ("fourierft", {"n_frequency_pattern": {"up": 3}}),
    "four terms": ("oft", {"num_cayley_neumann_terms": 4}),
    "three terms, which are four": ("oft", {"num_cayley_neumann_terms": 3}),
    "sides that peft adjusts": ("oft", {"oft_block_size": 5}),
    "a number of blocks": ("oft", {"r": 2, "oft_block_size": 0}),
    "a number of blocks of a butterfly": ("boft", {"boft_block_size": 0, "boft_block_num": 2}),
    "inputs by pattern": ("ia3 of both sides", {"feedforward_modules": r".*\.down"}),
}  # fmt: skip


@pytest.mark.parametrize("what", VARIANTS)
def test_what_else_a_config_may_say_is_computed_alike(what, both, tmp_path):
    name, more = VARIANTS[what]
    with jax.enable_x64(True):
        params = stack.drawn(np.float64)
        expected = saved_by_peft(both, name, params, tmp_path, **more)
        uses = stack.uses_of(params)
        adapter = read_peft(tmp_path, params, uses, stack.names)
        found = lift(stack.ours)(adapter.transform.apply(adapter.split), *stack.inputs())
        rtol = LOOSE.get(name, 1e-9)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol / 1000)
        write_peft(tmp_path / "ours", adapter, uses, stack.names)
        assert read_files(tmp_path / "ours")[0] == read_files(tmp_path)[0]
        # Said anew, from our arguments alone, it is the same adapter.
        if what in ("sides that peft adjusts", "a number of blocks", "a number of blocks of a butterfly"):
            with pytest.raises(UserError, match=r"PEFT's config says one \w*block_size of all modules; here it is"):
                write_peft(tmp_path / "anew", adapter._replace(config={}), uses, stack.names)
            return
        write_peft(tmp_path / "anew", adapter._replace(config={}), uses, stack.names)
        again = read_peft(tmp_path / "anew", params, uses, stack.names)
        found = lift(stack.ours)(again.transform.apply(again.split), *stack.inputs())
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol / 1000)


@pytest.mark.parametrize("name", ["lora", "vera", "lokr", "shira", "ln_tuning"])
def test_an_adapter_in_half_precision_keeps_its_dtype(name, both, tmp_path):
    torch, peft = both
    params = stack.drawn()
    for dtype in (torch.bfloat16, torch.float16):
        base = stack.theirs(torch, params)
        options = {"target_modules": SETS[name], **CASES[name][2]}
        model = quiet(peft.get_peft_model, base, getattr(peft, CASES[name][1])(**options))
        quiet(stirred(torch, model).to(dtype).save_pretrained, tmp_path / "theirs")
        uses = stack.uses_of(params)
        adapter = read_peft(tmp_path / "theirs", params, uses, stack.names)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(adapter.split.train)} == {str(dtype).partition(".")[2]}
        write_peft(tmp_path / "ours", adapter, uses, stack.names)
        theirs, ours = (load(tmp_path / which / "adapter_model.safetensors") for which in ("theirs", "ours"))
        assert theirs.keys() == ours.keys()
        assert all(theirs[key].dtype == ours[key].dtype and torch.equal(theirs[key], ours[key]) for key in theirs)


def load(file):
    from safetensors.torch import load_file

    return load_file(file)


def test_triplets_that_peft_took_away(both, tmp_path):
    """Trained until AdaLoRA chose: PEFT saves what it kept, and a mask."""
    torch, peft = both
    torch.manual_seed(0)
    with jax.enable_x64(True):
        params = stack.drawn(np.float64)
        base, options = stack.theirs(torch, params), {**ADALORA, "target_modules": SETS["adalora"], "tfinal": 2}
        model = stirred(torch, quiet(peft.get_peft_model, base, peft.AdaLoraConfig(**options)).double())
        for step in range(1, 10):
            ids, image = stack.inputs()
            pixels = torch.tensor(image.transpose(0, 3, 1, 2), dtype=torch.float64)
            (quiet(model, torch.tensor(ids), pixels) ** 2).mean().backward()
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if parameter.grad is not None and "ranknum" not in key:  # which PEFT saves nowhere
                        parameter.add_(-0.01 * parameter.grad)
            model.base_model.update_and_allocate(step)
            model.zero_grad()
        expected = stack.logits(torch, model.eval())
        quiet(model.save_pretrained, tmp_path / "theirs")
        uses = stack.uses_of(params)
        adapter = read_peft(tmp_path / "theirs", params, uses, stack.names)
        found = lift(stack.ours)(adapter.transform.apply(adapter.split), *stack.inputs())
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        write_peft(tmp_path / "ours", adapter, uses, stack.names)
        write_peft(tmp_path / "anew", adapter._replace(config={}), uses, stack.names)
    (config, tensors), (after, ours) = (read_files(tmp_path / which) for which in ("theirs", "ours"))
    assert config == after
    assert sum(map(sum, config["rank_pattern"].values())) < 3 * 7
    assert read_files(tmp_path / "anew")[0]["rank_pattern"] == config["rank_pattern"]
    assert tensors.keys() == ours.keys()
    assert all(tensors[key].tobytes() == ours[key].tobytes() for key in tensors)
    again = quiet(peft.PeftModel.from_pretrained, stack.theirs(torch, params), tmp_path / "anew").double().eval()
    np.testing.assert_allclose(stack.logits(torch, again), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("seed", "inputs", "outputs"), [(777, 12, 9), (0, 7, 1), (2**33 + 5, 1000, 300)])
def test_places_are_those_of_torch(seed, inputs, outputs, both):
    torch, _ = both
    order = torch.randperm(inputs * outputs, generator=torch.Generator().manual_seed(seed)).numpy()
    count = min(1500, inputs * outputs)
    found = drawn(seed, inputs, outputs, count)
    rows, columns = np.divmod(order[:count], inputs)
    np.testing.assert_array_equal(found, columns * outputs + rows)
