"""Decoders against transformers, weights carried across by the family's table alone: ten random configs a family.

transformers computes its RMSNorm, its rotary angles and its softmax in float32 even in a float64 model. `torch64` lets
it compute them in float64: while it holds, torch's names for float32 mean float64. So the logits agree to 1e-9, and one
test a family shows with an untouched float32 model that this hides nothing.
"""

import json
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.carry import carry, leaves_of
from models.gemma_configs import PLAIN, gemma_fields

from jaxbig.catalogue import model
from jaxbig.errors import UserError
from jaxbig.models.cache import empty_cache
from jaxbig.models.families import FAMILIES, family_of
from jaxbig.models.rope import Rope, angles, frequencies

KINDS = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"]
PREFIX = {"gpt2": "GPT2", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
PREFIX |= {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3Text"}
HEADS = {
    "causal_lm": ("ForCausalLM", "LMHeadModel"),
    "sequence_classification": ("ForSequenceClassification",),
    "token_classification": ("ForTokenClassification",),
    "features": ("Model",),
}
V, T, PAD = 37, 11, 3
NO_HEAD = [("gemma3_text", "token_classification")]  # of which transformers has none


def ropes(rng):
    """A rotary embedding of each kind, some with a context that is shorter than the text."""
    factor = rng.choice([2.0, 3.5])
    return rng.choice(
        [
            {"rope_type": "default", "rope_theta": 500.0},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": factor},
            {"rope_type": "dynamic", "rope_theta": 1e3, "factor": factor},
            {"rope_type": "llama3", "rope_theta": 1e2, "factor": factor, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
            {"rope_type": "yarn", "rope_theta": 1e2, "factor": factor, "original_max_position_embeddings": 32},
            {"rope_type": "yarn", "rope_theta": 1e2, "factor": factor, "original_max_position_embeddings": 16,
             "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 1.3},
        ]
    )  # fmt: skip


def config(kind, number):
    """The fields of random config `number` of a family."""
    rng = random.Random(f"{kind} {number}")
    heads, groups = rng.choice([(4, 2), (4, 1), (2, 2), (6, 3), (3, 1), (1, 1)])
    layers = rng.choice([1, 2, 3])
    shared = {"vocab_size": V, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 3}
    if kind == "gpt2":
        return shared | {
            "n_embd": heads * rng.choice([3, 4, 5]), "n_layer": layers, "n_head": heads, "n_positions": 16,
            "n_inner": rng.choice([None, 7, 20]), "layer_norm_epsilon": rng.choice([1e-5, 1e-3]),
            "activation_function": rng.choice(["gelu_new", "gelu", "relu", "quick_gelu", "mish", "gelu_10", "silu"]),
            "scale_attn_weights": rng.random() < 0.7, "scale_attn_by_inverse_layer_idx": rng.random() < 0.5,
            "tie_word_embeddings": rng.random() < 0.7,
        }  # fmt: skip
    if kind.startswith("gemma"):
        return shared | gemma_fields(kind, rng, ropes)
    found = shared | {
        "hidden_size": heads * rng.choice([3, 5, 6]), "intermediate_size": rng.choice([5, 12, 17]),
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "head_dim": rng.choice([4, 6, 8]), "rms_norm_eps": rng.choice([1e-6, 1e-3]),
        "tie_word_embeddings": rng.random() < 0.5, "max_position_embeddings": rng.choice([8, 64]),
        "hidden_act": rng.choice(["silu", "silu", "gelu", "gelu_pytorch_tanh"]), "rope_parameters": ropes(rng),
    }  # fmt: skip
    if kind in ("llama", "qwen3"):
        found["attention_bias"] = rng.random() < 0.5
    if kind == "llama":
        found["mlp_bias"] = rng.random() < 0.5
    if kind == "mistral":
        found["sliding_window"] = rng.choice([None, 1, 3, 5])
    if kind in ("qwen2", "qwen3"):
        found |= {"use_sliding_window": rng.random() < 0.6, "sliding_window": rng.choice([1, 4])}
        found["max_window_layers"] = rng.choice([0, 1, 2])
        if found["use_sliding_window"] and rng.random() < 0.5:
            found["layer_types"] = [rng.choice(["sliding_attention", "full_attention"]) for _ in range(layers)]
    return found


def theirs(torch, kind, fields, task="causal_lm", dtype="float64"):
    """transformers' model with parameters none of which is its initial value, and its config as a dictionary."""
    import transformers

    made = getattr(transformers, PREFIX[kind] + "Config")(**fields, attn_implementation="eager")
    prefixes = PREFIX[kind], PREFIX[kind].removesuffix("Text")
    names = [prefix + suffix for prefix in prefixes for suffix in HEADS[task]]
    cls = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cls(made).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model, made.to_dict() | {"architectures": [cls.__name__]}


def old_style(config):
    """The same file as transformers wrote it before version 5."""
    found = {name: value for name, value in config.items() if name != "rope_parameters"}
    rope = dict(config["rope_parameters"])
    if "full_attention" in rope:
        rope, local = dict(rope["full_attention"]), rope["sliding_attention"]
        found["rope_local_base_freq"] = local["rope_theta"]
    found["rope_theta"] = rope.pop("rope_theta")
    found["rope_scaling"] = None if rope["rope_type"] == "default" else rope | {"type": rope.pop("rope_type")}
    return found


def pair(torch, kind, number, task="causal_lm", dtype="float64", changes=None, **options):
    """(their model, our family, module and parameters)."""
    model, fields = theirs(torch, kind, config(kind, number) | (changes or {}), task, dtype)
    family = family_of(fields)
    assert family.architectures[fields["architectures"][0]] == task
    module = family.module(fields, task, **options)
    return model, family, module, carry(module, family, model.state_dict(), dtype=dtype)


def texts(number):
    """Token ids and what is padding: nothing, or up to 4 tokens on the left or the right of each row."""
    rng = np.random.default_rng(number)
    tokens, slots = rng.integers(4, V, (3, T)), np.arange(T)
    padded = [side[None] < np.array([0, 2, 4])[:, None] for side in (slots, slots[::-1])]
    return tokens, [np.zeros((3, T), bool), *padded]


def said(torch, model, tokens, there):
    with torch.no_grad():
        found = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(there.astype(int)))
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


def both(torch, the, number):
    """For each padding our output and theirs, where there is none."""
    model, _, module, params = the
    called = jax.jit(lambda tokens, segments: module.apply({"params": params}, tokens, segments=segments))
    tokens, paddings = texts(number)
    for padded in paddings:
        there = ~padded
        ours = called(np.where(padded, PAD, tokens), there.astype(int))
        expected = said(torch, model, np.where(padded, PAD, tokens), there)
        assert ours.shape == expected.shape
        yield (ours[there], expected[there]) if ours.ndim == 3 else (ours, expected)


@pytest.mark.parity
@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.slow] * (n > 1)) for n in range(10)])
@pytest.mark.parametrize("kind", KINDS)
def test_logits(torch64, kind, number):
    the = pair(torch64, kind, number, scan_layers=number % 2 == 1)
    for ours, expected in both(torch64, the, number):
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_an_untouched_float32_model(torch, kind):
    the = pair(torch, kind, 0, dtype="float32")
    for ours, expected in both(torch, the, 0):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parity
@pytest.mark.parametrize(
    "task",
    [
        "sequence_classification",
        *[pytest.param(t, marks=pytest.mark.slow) for t in ("token_classification", "features")],
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_other_heads(torch64, kind, task):
    if (kind, task) in NO_HEAD:
        assert task not in FAMILIES[kind].architectures.values()
        return
    the = pair(torch64, kind, 1, task)
    for ours, expected in both(torch64, the, 1):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)
    if task == "sequence_classification":  # without a mask the padding token says which token is the last
        model, _, module, params = the
        tokens, paddings = texts(1)
        padded = np.where(paddings[2], PAD, tokens)
        with torch64.no_grad():
            expected = model(input_ids=torch64.tensor(padded)).logits.numpy()
        np.testing.assert_allclose(module.apply({"params": params}, padded), expected, rtol=0, atol=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(torch64, kind, scan):
    """Of a cross-entropy with respect to every parameter."""
    model, family, module, params = pair(torch64, kind, 3, scan_layers=scan, remat=scan)
    tokens, paddings = texts(3)
    there = ~paddings[1]
    logits = model(input_ids=torch64.tensor(tokens), attention_mask=torch64.tensor(there.astype(int))).logits
    losses = torch64.nn.functional.cross_entropy(logits.transpose(1, 2), torch64.tensor(tokens), reduction="none")
    (losses * torch64.tensor(there)).sum().backward()

    def loss(params):
        logits = module.apply({"params": params}, tokens, segments=there.astype(int))
        each = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        return (each * there).sum()

    ours = jax.jit(jax.grad(loss))(params)
    expected, _ = leaves_of(module, family, {name: leaf.grad for name, leaf in model.named_parameters()})
    found = {"/".join(key.key for key in keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(ours)}
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert np.abs(expected[path]).max() > 0 or path.endswith("key/bias"), path
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-9, err_msg=path)


@pytest.mark.parity
@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_table_tells_every_tensor_once(torch, kind, task):
    """`carry` fails where a leaf or a tensor is left over."""
    for number in range(0 if (kind, task) in NO_HEAD else 4):
        model, fields = theirs(torch, kind, config(kind, number), task)
        for scan in (False, True):
            family = family_of(fields)
            module = family.module(fields, task, scan_layers=scan)
            carry(module, family, model.state_dict())
            tensors = family.tensors(module)
            assert len({each.name for each in tensors}) == len({each.path for each in tensors}) == len(tensors)


@pytest.mark.parity
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt2"])
def test_files_from_before_version_5_say_the_same(torch, kind):
    import transformers

    for number in range(10):
        drawn = config(kind, number)
        if kind == "gemma3_text":  # such files say of the layers with a window no more than a theta
            drawn["rope_parameters"]["sliding_attention"] = dict(PLAIN)
        fields = getattr(transformers, PREFIX[kind] + "Config")(**drawn).to_dict()
        before = old_style(fields)
        assert "rope_parameters" not in before
        assert FAMILIES[kind].module(before, "causal_lm") == FAMILIES[kind].module(fields, "causal_lm")


@pytest.mark.parity
@pytest.mark.parametrize("number", [0, *[pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)]])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_with_a_cache_are_their_whole(torch64, kind, number):
    """Prompts padded on the left and counted as their ``generate`` counts, then token by token.

    transformers takes equal positions for packed texts, so its mask is given whole; a single mask says no windows,
    which are tried without padding. "dynamic" rotates what is cached as the text was then: no text here is so long.
    """
    long = {} if kind == "gpt2" else {"max_position_embeddings": 64}
    model, _, module, params = pair(torch64, kind, number, changes=long, scan_layers=number == 1)
    tokens, paddings = texts(number)
    windowed = getattr(module, "windows", ()) and any(module.windows)
    there = ~paddings[0 if windowed else 1]
    positions = np.maximum(there.cumsum(1) - 1, 0)
    places = {}
    if not windowed:
        seen = torch64.tensor(there[:, None, None, :] & np.tril(np.ones((T, T), bool)))
        places["attention_mask"] = torch64.where(seen, 0.0, -1e9).double()
        places["position_ids"] = torch64.tensor(positions)
    with torch64.no_grad():
        expected = model(input_ids=torch64.tensor(tokens), **places).logits.numpy()
    step = jax.jit(lambda cache, *each: module.apply({"params": params}, *each, cache=cache))
    cache, found = empty_cache(module, 3, T, jnp.float64), []
    for part in [slice(0, 6), *(slice(t, t + 1) for t in range(6, T))]:
        logits, cache = step(cache, tokens[:, part], positions[:, part], there[:, part].astype(int))
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1)[there], expected[there], rtol=0, atol=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("number", range(12))
def test_frequencies(torch, number):
    """Theirs are computed in float32."""
    fields = config("llama", number)
    model, told = theirs(torch, "llama", fields, "features", "float32")
    ours = frequencies(FAMILIES["llama"].module(told, "features").rope, told["head_dim"])
    np.testing.assert_allclose(ours, model.rotary_emb.inv_freq.numpy(), rtol=2e-6)


SMALL = {
    "vocab_size": 9, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama", "num_hidden_layers": None, "rope_scaling": {"type": "su"}}, "rope_type is 'su'"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "needs 'factor'"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "llama", "pretraining_tp": 2}, "pretraining_tp is 2"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "use_sliding_window is not set"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 2}, "linear_attention"),
        ({"model_type": "gpt2"}, "has no 'n_embd'"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention is True"),
        ({"model_type": "gpt-x"}, "jaxbig knows"),
    ],
)
def test_configs_that_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        family_of(fields).module(SMALL | fields, "causal_lm")


def test_heads_that_cannot_turn():
    with pytest.raises(UserError, match="width 3"):
        frequencies(Rope(), 3)
    with pytest.raises(UserError, match="one plane"):
        angles(Rope(kind="dynamic", length=4, factor=2.0), 2, jnp.arange(3)[None])


def test_a_task_without_a_head():
    with pytest.raises(UserError, match="no head for the task 'masked_lm'"):
        FAMILIES["llama"].module(SMALL, "masked_lm")


def test_fields_that_files_leave_out():
    llama = FAMILIES["llama"].module(SMALL | {"rope_theta": 5e5}, "causal_lm", scan_layers=True)
    assert (llama.kv_heads, llama.head_width, llama.tied, llama.rope.base, llama.scan_layers) == (
        2,
        4,
        False,
        5e5,
        True,
    )
    assert FAMILIES["mistral"].module(SMALL, "causal_lm").windows == (4096, 4096)
    qwen = FAMILIES["qwen2"].module(SMALL | {"use_sliding_window": True, "max_window_layers": 1}, "causal_lm")
    assert qwen.windows == (None, 4096)
    assert qwen.biases == ("qkv",)


PUBLISHED = {
    "Llama 3 8B": (8_030_261_248, {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    }),
    "Qwen2.5 0.5B": (494_032_768, {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "hidden_size": 896,
        "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "tie_word_embeddings": True, "use_sliding_window": False, "max_window_layers": 21,
    }),
    "Qwen3 0.6B": (596_049_920, {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "tie_word_embeddings": True,
    }),
    "GPT-2": (124_439_808, {
        "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
        "n_head": 12,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_as_many_parameters_as_they_should(name, tmp_path):
    """Their config.json is a name in the catalogue."""
    count, fields = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = model(str(tmp_path / "config.json"), batch=2)
    assert sum(leaf.size for leaf in jax.tree.leaves(found.params)) == count
    assert found.inputs[0].shape == (2, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("[]", "is a list where an object is expected"), ('{"model_type": "x"}', "jaxbig knows")],
)
def test_config_files_that_are_damaged(text, message, tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(UserError, match="no such file"):
        model(str(path))
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        model(str(path))
