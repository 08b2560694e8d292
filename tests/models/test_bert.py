"""Encoders against transformers, weights carried across by the family's table alone: ten random configs a family."""

import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.carry import carry, leaves_of, shapes_of

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


def theirs(torch, kind, fields, task, dtype="float64", pooler=False):
    """transformers' model with parameters none of which is its initial value, and its config as a dictionary."""
    import transformers

    fields = fields | ({"num_labels": 2} if task == "question_answering" else {})
    made = getattr(transformers, KINDS[kind] + "Config")(**fields, attn_implementation="eager")
    cls = getattr(transformers, KINDS[kind] + ENDS[task])
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"add_pooling_layer": pooler} if task == "features" and kind != "distilbert" else {}
        model = cls(made, **options).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model, made.to_dict() | {"architectures": [cls.__name__]}


def pair(torch, kind, number, task, dtype="float64", more=(), **options):
    """(their model, our family, module and parameters); `more` fields of the config."""
    model, fields = theirs(torch, kind, config(kind, number) | dict(more), task, dtype, options.get("pooler", False))
    family = family_of(fields)
    assert family.architectures[fields["architectures"][0]] == task
    module = family.module(fields, task, **options)
    buffers = r"(.*\.)?(position_ids|token_type_ids)"
    if not fields["tie_word_embeddings"]:
        buffers += r"|cls\.predictions\.bias|lm_head\.bias"  # no output depends on it: see the test of gradients
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
    if found.get("pooler_output") is not None:
        return found.last_hidden_state.numpy(), found.pooler_output.numpy()
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
@pytest.mark.parametrize("number", [pytest.param(n, marks=[pytest.mark.slow] * (n > 1)) for n in range(10)])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs(torch64, kind, number):
    task = TASKS[number % len(TASKS)]
    check(torch64, pair(torch64, kind, number, task, scan_layers=number % 3 == 1), number, 1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_outputs_of_the_pooler(torch64, kind):
    check(torch64, pair(torch64, kind, 2, "features", pooler=True), 2, 1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_packed_texts_are_what_they_are_apart(torch64, kind):
    model, _, module, params = pair(torch64, kind, 4, "features")
    tokens, _ = texts(4)
    packed, positions = np.repeat([[1] * 4 + [2] * 7], 3, 0), np.array([[*range(4), *range(7)]])
    ours = jax.jit(module.apply)({"params": params}, tokens, positions, packed)
    for part in (slice(0, 4), slice(4, T)):
        alone = said(torch64, model, tokens[:, part], np.ones_like(tokens[:, part]), None)
        np.testing.assert_allclose(ours[:, part], alone, rtol=0, atol=1e-9 * np.abs(alone).max())


@pytest.mark.parity
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_dropout_falls_where_theirs_falls(torch64, kind, task, scaled_dropout):
    """Each rate is another, and what a rate falls on is scaled by it, on both sides."""
    rates = {"hidden_dropout_prob": 0.11, "attention_probs_dropout_prob": 0.23, "classifier_dropout": 0.37}
    if kind == "distilbert":
        rates = {"dropout": 0.11, "attention_dropout": 0.23, "seq_classif_dropout": 0.37, "qa_dropout": 0.43}
    model, _, module, params = pair(torch64, kind, 6, task, more=rates, scan_layers=True)
    tokens, _ = texts(6)
    called = jax.jit(lambda train: module.apply({"params": params}, tokens, train=train), static_argnums=0)
    plain, ours = called(False), called(True)
    expected = said(torch64, model.train(), tokens, np.ones_like(tokens), None)
    for a, b, c in zip(*map(jax.tree.leaves, (ours, expected, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())
        assert np.abs(a - c).max() > 1e-3


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
        return (jnp.square(logits).mean(-1) * there).sum()

    ours = paths(jax.jit(jax.grad(loss))(params))
    grads = {name: leaf.grad for name, leaf in model.named_parameters() if leaf.grad is not None}
    expected, _ = leaves_of(module, family, grads)
    # torch gives the padding token's row of a table no gradient; a head that is tied to it gives one here
    for path in ("embed/embedding", "positions/embedding"):
        ours[path], expected[path] = (np.delete(leaf, PAD, axis=0) for leaf in (ours[path], expected[path]))
    unused = {name for name, _ in model.named_parameters()} - grads.keys()
    assert unused <= {"cls.predictions.bias", "lm_head.bias"}
    assert ours.keys() == expected.keys()
    for path, leaf in ours.items():
        assert np.abs(expected[path]).max() > 0 or path.endswith("key/bias"), path
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-9 * np.abs(expected[path]).max() + 1e-9)


SMALL = {"vocabulary": V, "width": 8, "layers": 2, "heads": 2, "hidden": 12, "length": 16}
NO_PAD = {"model_type": "roberta", "pad_token_id": None}
TOKENS = np.array([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(scope="module")
def params():
    """Of masked_lm, unrolled; "features" needs less."""
    rng, leaves = np.random.default_rng(1), jax.eval_shape(Bert(**SMALL).init, jax.random.key(0), TOKENS)["params"]
    return jax.tree.map(lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(np.float32), leaves)


def test_packed_texts_do_not_see_each_other(params):
    """Rows: two texts packed, the second one changed, both again as one text, and each one apart."""
    one, other = TOKENS[0], TOKENS[0] + np.array([0, 0, 0, 7, 7, 7])
    segments = np.array([[1, 1, 1, 2, 2, 2]] * 2 + [[1] * 6] * 2 + [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    rows, positions = np.stack([one, other, one, other, one, one]), np.array([[0, 1, 2, 0, 1, 2]])
    called = jax.jit(Bert(**SMALL, task="features").apply)
    packed, changed, together, changed_together, first, second = called({"params": params}, rows, positions, segments)
    np.testing.assert_array_equal(packed[:3], changed[:3])
    assert np.abs(together[:3] - changed_together[:3]).max() > 1e-2
    np.testing.assert_allclose(packed[:3], first[:3], atol=1e-5)
    np.testing.assert_allclose(packed[3:], second[3:], atol=1e-5)


def test_padding_is_not_counted_where_positions_begin_after_it(params):
    model = Bert(**SMALL, offset=PAD + 1, task="features")
    called = jax.jit(lambda tokens: model.apply({"params": params}, tokens, segments=(tokens != PAD).astype(int)))
    left = called(np.concatenate([np.full((1, 2), PAD), TOKENS], axis=1))
    right = called(np.concatenate([TOKENS, np.full((1, 2), PAD)], axis=1))
    np.testing.assert_allclose(left[:, 2:], right[:, :-2], atol=1e-5)


def stacked(params):
    """The tree of the scanned module."""
    found = {name: leaf for name, leaf in params.items() if not name.startswith("layer_")}
    return found | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), params["layer_0"], params["layer_1"])}


def test_scanned_with_remat_is_unrolled(params):
    unrolled = Bert(**SMALL, task="features")
    ours = jax.jit(unrolled.clone(scan_layers=True, remat=True).apply)({"params": stacked(params)}, TOKENS)
    np.testing.assert_allclose(ours, jax.jit(unrolled.apply)({"params": params}, TOKENS), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["dropout", "out_dropout", "attention_dropout", "head_dropout", "pool_dropout"])
@pytest.mark.parametrize("scan", [False, True])
def test_dropout_is_a_function_of_its_key(params, rate, scan):
    module = Bert(**SMALL, task="sequence_classification", scan_layers=scan, **{rate: 0.3})
    rng = np.random.default_rng(2)
    ends = {
        name: {"kernel": rng.normal(size=(8, size)), "bias": np.zeros(size)}
        for name, size in (("pooler", 8), ("head", 2))
    }
    tree = (stacked(params) if scan else params) | ends
    trained = jax.jit(lambda key: module.apply({"params": tree}, TOKENS, train=True, rngs={"dropout": key}))
    one, again, *others = (trained(jax.random.key(k)) for k in (1, 1, 2, 3, 4, 5))
    np.testing.assert_array_equal(one, again)
    assert max(np.abs(one - other).max() for other in others) > 1e-3


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        *(("bert", task) for task in TASKS),
        *((kind, task) for kind in ("roberta", "distilbert") for task in ("masked_lm", "sequence_classification")),
    ],
)
def test_the_table_tells_each_leaf_once(kind, task):
    sizes = {"vocab_size": V, "max_position_embeddings": 16, "tie_word_embeddings": kind == "bert", "pad_token_id": 1}
    bert = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    distilbert = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12}
    family = FAMILIES[kind]
    fields = {"model_type": kind} | sizes | (distilbert if kind == "distilbert" else bert)
    for pooler in {False, task == "features" and kind != "distilbert"}:
        module = family.module(fields, task, pooler=pooler)
        told = [path.format(0) for path, _, _ in family.tensors(module)]
        assert sorted(told) == sorted(shapes_of(module, family))


def shapes(module, *arguments, **more):
    """What asking for a module's parameters says, nothing computed."""
    return jax.eval_shape(module.init, jax.random.key(0), *arguments, **more)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: FAMILIES["bert"].module({"model_type": "bert", "vocab_size": 9}, "masked_lm"), "no 'hidden_size'"),
        (
            lambda: FAMILIES["bert"].module({"model_type": "bert", "is_decoder": True}, "masked_lm"),
            "is_decoder is True",
        ),
        (lambda: FAMILIES["bert"].module({"model_type": "bert"}, "causal_lm"), "no head for the task 'causal_lm'|no '"),
        (lambda: shapes(Bert(**SMALL | {"heads": 3}), TOKENS), "width 8 is not a multiple of heads=3"),
        (lambda: shapes(Bert(**SMALL | {"length": 4}), TOKENS), "6 tokens, and 4 positions"),
        (lambda: shapes(Bert(**SMALL, types=0), TOKENS, types=TOKENS), "this model has none"),
        (lambda: shapes(Bert(**SMALL, task="mlm"), TOKENS), "task='mlm'; use one of masked_lm"),
        (lambda: shapes(Bert(**SMALL, pooler=True), TOKENS), "for the task 'features'"),
        (lambda: FAMILIES["distilbert"].module({}, "features", pooler=True), "has no pooler"),
        (lambda: FAMILIES["roberta"].module(NO_PAD, "features"), "pad_token_id is null"),
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
