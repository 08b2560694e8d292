"""PEFT's files of a tiny GPT-2: kernels that lie as ours do, a tied table, norms, prompts and prefixes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft_stack
import pytest
from gpt2_by_hand import HEADS, LAYERS, D, T, V, ours, theirs, tree

from jaxbig import chain, usage
from jaxbig.errors import UserError
from jaxbig.hub.peft_files import Adapter, read_files
from jaxbig.hub.peft_read import read_peft
from jaxbig.hub.peft_write import write_peft
from jaxbig.lift import lift
from jaxbig.tune.adalora import adalora
from jaxbig.tune.dora import dora
from jaxbig.tune.fourierft import fourierft
from jaxbig.tune.full import full
from jaxbig.tune.ia3 import ia3
from jaxbig.tune.ln_tuning import ln_tuning
from jaxbig.tune.lora import lora
from jaxbig.tune.prefix import prefix
from jaxbig.tune.prompt import prompt
from jaxbig.tune.trainable_tokens import trainable_tokens
from jaxbig.tune.vera import vera

pytestmark = pytest.mark.parity

P, IDS = 3, np.array([[1, 5, 16], [3, 2, 0]])
QKV, OUT = "h/./attn/c_attn/weight", "h/./mlp/c_proj/weight"
ATTENTION, FORWARD = ([f"transformer.h.{i}.{name}" for i in range(LAYERS)] for name in ("attn.c_attn", "mlp.c_proj"))
NORMS = [*[f"transformer.h.{i}.ln_{j}" for i in range(LAYERS) for j in (1, 2)], "transformer.ln_f"]

# name -> ours, PEFT's config class, its arguments
CASES = {
    "lora": (lora(2, 3.0, QKV), "LoraConfig", {"r": 2, "lora_alpha": 3.0, "target_modules": ATTENTION}),
    "lora of the table": (
        lora(2, 3.0, "wte/weight", uses="lookup"), "LoraConfig",
        {"r": 2, "lora_alpha": 3.0, "target_modules": ["transformer.wte"]},
    ),
    "dora": (
        dora(2, 3.0, QKV), "LoraConfig", {"r": 2, "lora_alpha": 3.0, "use_dora": True, "target_modules": ATTENTION}
    ),
    "adalora": (
        adalora(9, 3, 2, 4.0, QKV), "AdaLoraConfig",
        {"init_r": 3, "target_r": 2, "lora_alpha": 4.0, "total_step": 9, "target_modules": ATTENTION},
    ),
    "vera": (vera(3, where=QKV), "VeraConfig", {"r": 3, "target_modules": ATTENTION}),
    "fourierft": (fourierft(7, 9.0, QKV), "FourierFTConfig",
                  {"n_frequency": 7, "scaling": 9.0, "target_modules": ATTENTION}),
    "ia3": (ia3(QKV, biases=True), "IA3Config", {"target_modules": ATTENTION, "feedforward_modules": []}),
    "ia3 of inputs": (ia3(OUT, "in"), "IA3Config", {"target_modules": FORWARD, "feedforward_modules": FORWARD}),
    "ln_tuning": (ln_tuning(), "LNTuningConfig", {"target_modules": NORMS}),
    "trainable_tokens": (
        trainable_tokens([2, 16], "wte/weight"), "TrainableTokensConfig",
        {"token_indices": [2, 16], "target_modules": ["transformer.wte"]},
    ),
    "prompt": (prompt(P), "PromptTuningConfig", {"num_virtual_tokens": P, "prompt_tuning_init": "SAMPLE_VOCAB"}),
    "p-tuning": (prompt(P, hidden=5), "PromptEncoderConfig", {"num_virtual_tokens": P, "encoder_hidden_size": 5}),
    "prefix": (prefix(P, QKV), "PrefixTuningConfig", {"num_virtual_tokens": P}),
    "prefix of a network": (
        prefix(P, QKV, hidden=5), "PrefixTuningConfig",
        {"num_virtual_tokens": P, "encoder_hidden_size": 5, "prefix_projection": True},
    ),
}  # fmt: skip
# PEFT saves rows of a tied table twice; it reads them from either place.
COPY = "base_model.model.lm_head.trainable_tokens_delta"
# float32 in PEFT: the shared matrices as it loads them, FourierFT's transform, and prompts as it loads them.
LOOSE = {"vera": 1e-5, "fourierft": 1e-5, "prompt": 1e-5, "p-tuning": 1e-5, "prefix": 1e-5, "prefix of a network": 1e-5}


def names(path):
    return f"transformer.{path.replace('/', '.')}"


@pytest.fixture(scope="module")
def both():
    pytest.importorskip("transformers")
    return peft_stack.torch_and_peft()


def quiet(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def logits(torch, model):
    """Of the text alone."""
    with torch.no_grad():
        return quiet(model, torch.tensor(IDS)).logits.numpy()[:, -IDS.shape[1] :]


def of_ours(adapter):
    fn = lift(adapter.transform.wrap(adapter.split, ours), strict=True)
    return fn(adapter.transform.apply(adapter.split), IDS)


def saved_by_peft(both, config, options, folder):
    """The base's tree, the logits of PEFT's model with a random adapter, and its files."""
    torch, peft = both
    base = theirs()
    params = tree(base)
    its = getattr(peft, config)(task_type="CAUSAL_LM", **options)
    model = quiet(peft.get_peft_model, base, its).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    expected = logits(torch, model)
    quiet(model.save_pretrained, folder)
    return params, expected


@pytest.mark.parametrize("name", CASES)
def test_what_peft_saves_is_read_computed_alike_and_written_again(name, both, tmp_path):
    with jax.enable_x64(True):
        params, expected = saved_by_peft(both, *CASES[name][1:], tmp_path / "theirs")
        uses = usage(ours, params, IDS)
        adapter = read_peft(tmp_path / "theirs", params, uses, names)
        rtol = 1e-5 if name == "fourierft" else 1e-9
        np.testing.assert_allclose(of_ours(adapter), expected, rtol=rtol, atol=rtol / 100)
        assert np.abs(ours(params, IDS) - expected).max() > 1e-2
        write_peft(tmp_path / "ours", adapter, uses, names)
    (config, tensors), (written, after) = (read_files(tmp_path / which) for which in ("theirs", "ours"))
    assert written == config
    tensors.pop(COPY, None)
    assert tensors.keys() == after.keys()
    for key, tensor in tensors.items():
        close = 1e-14 if name.startswith("prefix") else 0  # the bias of the keys was taken off and put on
        np.testing.assert_allclose(after[key], tensor, rtol=close, atol=close)


@pytest.mark.parametrize("name", CASES)
def test_what_we_save_peft_loads_with_the_keys_and_the_config_that_it_writes(name, both, tmp_path):
    torch, peft = both
    transform, config, options = CASES[name]
    with jax.enable_x64(True):
        base = theirs()
        params = tree(base)
        uses = usage(ours, params, IDS)
        split = transform.init(jax.random.key(0), params, uses)
        random = np.random.default_rng(2)
        split = split._replace(
            train=jax.tree.map(lambda leaf: leaf + 0.3 * random.normal(size=leaf.shape), split.train)
        )
        adapter = Adapter(transform, split, {"task_type": "CAUSAL_LM"})
        expected = of_ours(adapter)
        write_peft(tmp_path / "ours", adapter, uses, names)
    model = quiet(peft.PeftModel.from_pretrained, base, tmp_path / "ours").double().eval()
    rtol = LOOSE.get(name, 1e-9)
    np.testing.assert_allclose(logits(torch, model), expected, rtol=rtol, atol=rtol)
    saved_by_peft(both, config, options, tmp_path / "theirs")
    (their_config, of_peft), (our_config, mine) = (read_files(tmp_path / which) for which in ("theirs", "ours"))
    shapes = lambda tensors: {key: tensor.shape for key, tensor in tensors.items() if key != COPY}  # noqa: E731
    assert shapes(mine) == shapes(of_peft)
    for field in ("target_modules", "feedforward_modules"):
        if field in their_config:
            their_config[field] = sorted(their_config[field])
    # What the base says, PEFT asks it: the number of heads and of layers, and whether its kernels lie as ours do.
    assert our_config.keys() == their_config.keys()
    open_fields = {"num_attention_heads": HEADS, "num_layers": LAYERS, "fan_in_fan_out": True}
    for field, value in their_config.items():
        assert our_config[field] == value or open_fields[field] == value, field


def test_of_a_network_only_what_it_makes_is_in_the_file(both, tmp_path):
    """P-tuning by an LSTM, which is none of ours, is read: its vectors are all that PEFT saved."""
    with jax.enable_x64(True):
        options = {"num_virtual_tokens": P, "encoder_hidden_size": 5, "encoder_reparameterization_type": "LSTM"}
        params, expected = saved_by_peft(both, "PromptEncoderConfig", options, tmp_path)
        adapter = read_peft(tmp_path, params, usage(ours, params, IDS), names)
        assert adapter.split.train["wte/weight"]["prompt"].shape == (P, D)
        np.testing.assert_allclose(of_ours(adapter), expected, rtol=1e-9, atol=1e-11)


def test_what_peft_does_otherwise_is_refused(both, tmp_path):
    with jax.enable_x64(True):
        params = tree(theirs())
        uses = usage(ours, params, IDS)
        transform = chain(lora(2, where=QKV), full("h/0/attn/c_proj/weight"))
        adapter = Adapter(transform, transform.init(jax.random.key(0), params, uses), {})
        with pytest.raises(UserError, match=r"full: transformer.h.0.attn.c_proj.weight may be .* a Conv1D's"):
            write_peft(tmp_path / "full", adapter, uses, names)
        transform = lora(2, where="wte/weight")
        adapter = Adapter(transform, transform.init(jax.random.key(0), params, uses), {})
        with pytest.raises(
            UserError, match=r"lora: wte/weight is looked up and multiplied by; PEFT adapts the look-up"
        ):
            write_peft(tmp_path / "tied", adapter, uses, names)
        saved_by_peft(both, "PrefixTuningConfig", {"num_virtual_tokens": P}, tmp_path / "prefix")
        turned = lambda path: names(path).replace("wpe", "rotary")  # noqa: E731
        with pytest.raises(UserError, match="the model has no table of positions"):
            read_peft(tmp_path / "prefix", params, uses, turned)
    assert not (tmp_path / "full").exists()


def test_a_head_beside_a_prompt_is_saved_whole(both, tmp_path):
    import transformers

    _, peft = both
    config = transformers.GPT2Config(vocab_size=V, n_positions=T, n_embd=D, n_layer=LAYERS, n_head=HEADS, num_labels=5,
                                     bos_token_id=0, eos_token_id=0, pad_token_id=0)  # fmt: skip
    base = transformers.GPT2ForSequenceClassification(config)
    its = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P)
    model = quiet(peft.get_peft_model, base, its)
    quiet(model.save_pretrained, tmp_path / "theirs")
    params = jax.tree.map(jnp.float32, tree(theirs())) | {"score": jnp.zeros((D, 5))}
    fn = lambda p, ids: ours(p, ids) @ p["wte"]["weight"] @ p["score"]  # noqa: E731
    uses = usage(fn, params, IDS)
    of_torch = lambda path: "score.weight" if path == "score" else names(path)  # noqa: E731
    adapter = read_peft(tmp_path / "theirs", params, uses, of_torch)
    whole = next(value.detach().numpy() for name, value in model.named_parameters() if "score.modules_to_save" in name)
    np.testing.assert_array_equal(adapter.split.train["full"]["score"], whole.T)
    write_peft(tmp_path / "ours", adapter, uses, of_torch)
    (_, tensors), (_, mine) = (read_files(tmp_path / which) for which in ("theirs", "ours"))
    assert {key: tensor.tobytes() for key, tensor in tensors.items()} == {
        key: tensor.tobytes() for key, tensor in mine.items()
    }
