"""Adapters combined as PEFT combines them, in float64; stacks layer by layer; what errors say."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_models import LAYERS, case

from jaxbig.combine import sparsify
from jaxbig.combine.adapters import add_lora, cat_lora, svd_lora
from jaxbig.combine.rule import Rule
from jaxbig.compress.merge import merge
from jaxbig.errors import UsageError
from jaxbig.lift import lift
from jaxbig.tree import paths
from jaxbig.tune.lora import lora
from jaxbig.usage import usage

V, E, H, O = 11, 5, 8, 6
TARGETS = {"one": ["emb", "conv", "lin1"], "two": ["conv", "lin1", "lin2"], "three": ["emb", "lin1"]}
ALPHA = {"one": 3.0, "two": 5.0, "three": 2.0}
WEIGHTS = {"one": 0.7, "two": -1.3, "three": 2.1}
RANKS = {"one": 2, "two": 3, "three": 2}
IDS = jnp.array([[0, 3, 10], [5, 5, 1]])


def ours(params, ids):
    x = params["emb"][ids][:, None]
    x = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(x @ params["lin1"]) @ params["lin2"]


@contextlib.contextmanager
def quiet(torch):
    """In float64 throughout, PEFT's weights of the adapters too, and without what it warns of."""
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("peft")
    return pytest.importorskip("torch")


def build(torch, ranks):
    import peft

    torch.manual_seed(0)
    base = torch.nn.Sequential()
    base.add_module("emb", torch.nn.Embedding(V, E))
    base.add_module("conv", torch.nn.Conv2d(E, H, (1, 3), padding="same", bias=False))
    base.add_module("lin1", torch.nn.Linear(H, O, bias=False))
    base.add_module("lin2", torch.nn.Linear(O, 4, bias=False))
    model = None
    for name, targets in TARGETS.items():
        config = peft.LoraConfig(r=ranks[name], lora_alpha=ALPHA[name], target_modules=targets)
        if model is None:
            model = peft.get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    assert model is not None
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.5 * torch.randn(parameter.shape))
    return model


def layout(array):
    """A tensor of PEFT's in our order of axes; a table's is known by its shape."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def factors(model, name):
    """PEFT's factors of an adapter in our layout."""
    found = {}
    for key, module in model.base_model.model.named_modules():
        for a_of, b_of in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if name in getattr(module, a_of, {}):
                a, b = (getattr(module, its)[name] for its in (a_of, b_of))
                a, b = (layout(getattr(x, "weight", x).detach().numpy()) for x in (a, b))
                found[key] = {"a": jnp.asarray(a), "b": jnp.asarray(b.reshape(b.shape[-2:]))}
    return found


def our_splits(model, ranks):
    weights = model.base_model.model.state_dict()
    of = lambda name: jnp.asarray(layout(weights[f"{name}.base_layer.weight"].numpy()))  # noqa: E731
    params = {"emb": of("emb").T, "conv": of("conv"), "lin1": of("lin1"), "lin2": of("lin2")}
    uses = usage(ours, params, IDS)
    for name, targets in TARGETS.items():
        split = lora(rank=ranks[name], where=targets).init(jax.random.key(0), params, uses)
        train = factors(model, name)
        assert jax.tree.map(jnp.shape, train) == jax.tree.map(jnp.shape, split.train)
        yield split._replace(train=train)


def product(factor):
    a, b = factor["a"], factor["b"]
    return np.asarray(a.reshape(-1, a.shape[-1]) @ b.reshape(b.shape[0], -1))


SAME, MIXED = dict.fromkeys(RANKS, 2), RANKS
# PEFT's name -> the ranks it takes, and ours
LARGEST = {
    None: Rule("largest", 0.4),
    "total": Rule("largest", 0.4, "total"),
    "frequency": Rule("largest", 0.4, "frequency"),
}
CASES = [
    ("linear", {}, SAME, add_lora),
    ("cat", {}, MIXED, cat_lora),
    ("svd", {}, MIXED, svd_lora),
    ("svd", {"svd_rank": 1}, MIXED, lambda *parts: svd_lora(*parts, rank=1)),
    ("magnitude_prune", {}, SAME, lambda *parts: add_lora(*parts, LARGEST[None])),
    ("magnitude_prune_svd", {}, MIXED, lambda *parts: svd_lora(*parts, LARGEST[None])),
    *[(f"ties{end}", {"majority_sign_method": by}, ranks, lambda *parts, of=of, by=by: of(*parts, LARGEST[by]))
      for by in ("total", "frequency") for end, ranks, of in (("", SAME, add_lora), ("_svd", MIXED, svd_lora))],
    *[(f"dare_{kind}{end}", {}, ranks,
       lambda *parts, of=of, by=by: of(*parts, Rule("random", 0.4, by), key=jax.random.key(0)))
      for kind, by in (("linear", None), ("ties", "total"))
      for end, ranks, of in (("", SAME, add_lora), ("_svd", MIXED, svd_lora))],
]  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize(("name", "options", "ranks", "combine"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_it_is_peft_s(name, options, ranks, combine, torch, monkeypatch):
    masks, draw = [], torch.bernoulli

    def recorded(*args, **kwargs):
        masks.append(draw(*args, **kwargs))
        return masks[-1]

    def played(key, shape, density):
        mask = masks.pop(0).numpy() != 0
        turned = mask if mask.shape == shape else layout(mask).reshape(shape)
        assert density == 0.4
        return jnp.asarray(turned)

    with quiet(torch), jax.enable_x64(True):
        model = build(torch, ranks)
        monkeypatch.setattr(torch, "bernoulli", recorded)
        names = list(TARGETS)
        numbers = [WEIGHTS[n] for n in names]
        model.add_weighted_adapter(names, numbers, "new", combination_type=name, density=0.4, **options)
        assert bool(masks) == name.startswith("dare")
        monkeypatch.setattr(sparsify, "mask", played)
        scales = [ALPHA[n] / ranks[n] for n in names]
        found = combine(list(our_splits(model, ranks)), numbers, scales)
        assert not masks
        expected = factors(model, "new")
        assert list(found.split.train) == list(expected)
        assert found.rank == model.peft_config["new"].r
        for path, theirs in expected.items():
            mine = found.split.train[path]
            assert mine["a"].shape[-1] == mine["b"].shape[0] == found.rank
            np.testing.assert_allclose(product(mine), product(theirs), rtol=1e-9, atol=1e-12, err_msg=path)
            for part in "ab":  # of singular vectors the sign is free
                size = np.abs if name.endswith("svd") else np.asarray
                rank = theirs[part].shape[-1 if part == "a" else 0]  # PEFT's svd keeps what there is, we fill up
                its = mine["a"][..., :rank] if part == "a" else mine["b"][:rank]
                np.testing.assert_allclose(size(its), size(theirs[part]), rtol=1e-7, atol=1e-10, err_msg=path)

        with torch.no_grad():
            model.set_adapter("new")
            model.base_model.model.emb.register_forward_hook(lambda m, i, y: y[:, None].movedim(-1, 1))
            model.base_model.model.conv.register_forward_hook(lambda m, i, y: y.movedim(1, -1))
            model.base_model.model.lin1.register_forward_hook(lambda m, i, y: torch.tanh(y))
            logits = model(torch.tensor(np.asarray(IDS))).numpy()
        tuned = lora(rank=found.rank).apply(found.split)
        np.testing.assert_allclose(lift(ours, strict=True)(tuned, IDS), logits, rtol=1e-9, atol=1e-12)


def scanned(rank, seed):
    model = case("scanned")
    method = lora(rank=rank)
    split = method.init(jax.random.key(seed), model.params, usage(model.apply, model.params, model.inputs))
    random = np.random.default_rng(seed)
    noise = lambda leaf: leaf + jnp.asarray(random.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    return split._replace(train=jax.tree.map(noise, split.train))


RULES = {
    "cat": lambda splits: cat_lora(splits, [0.5, -2.0], [3.0, 1.0]),
    "linear": lambda splits: add_lora(splits, [0.5, -2.0], [3.0, 1.0]),
    "ties": lambda splits: add_lora(splits, rule=Rule("largest", 0.3, "total")),
    "svd": lambda splits: svd_lora(splits, [0.5, -2.0], [3.0, 1.0], rank=3),
    "ties svd": lambda splits: svd_lora(splits, rule=Rule("largest", 0.3, "total"), rank=3),
}


@pytest.mark.parametrize(
    "name", [name if name == "cat" else pytest.param(name, marks=pytest.mark.slow) for name in RULES]
)
def test_each_layer_of_a_stack_is_combined_by_itself(name):
    """Weights of several input and output axes too: attention's."""
    splits = [scanned(2, 0), scanned(2, 1)]
    whole = RULES[name](splits)
    for path, factor in whole.split.train.items():
        assert path.startswith("blocks/")
        for layer in range(LAYERS):
            # the same layer as a plain matrix of its own, of an unstacked model
            alone = []
            for split in splits:
                a, b = split.train[path]["a"][layer], split.train[path]["b"][layer]
                flat = {"a": a.reshape(-1, 2), "b": b.reshape(2, -1)}
                params = {"w": jnp.zeros((flat["a"].shape[0], flat["b"].shape[1]))}
                uses = usage(lambda p, x: x @ p["w"], params, jnp.ones((1, params["w"].shape[0])))
                one = lora(rank=2, where="w").init(jax.random.key(0), params, uses)
                alone.append(one._replace(train={"w": flat}))
            expected = product(RULES[name](alone).split.train["w"])
            found = product({part: factor[part][layer] for part in "ab"})
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_cat_is_the_sum_and_svd_of_full_rank_too_and_a_low_rank_is_the_best():
    splits = [scanned(2, 0), scanned(3, 1)]
    methods = [lora(rank=2), lora(rank=3, alpha=6.0)]
    base = paths(case("scanned").params)
    merged = [paths(merge(method.apply(split))) for method, split in zip(methods, splits, strict=True)]
    for combined in (cat_lora(splits, [1, -0.5], [1, 2]), svd_lora(splits, [1, -0.5], [1, 2], rank=5)):
        assert combined.rank == 5
        found = paths(merge(lora(rank=5).apply(combined.split)))
        for path, leaf in found.items():
            expected = base[path] + (merged[0][path] - base[path]) - 0.5 * (merged[1][path] - base[path])
            np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=2e-4)
    small = svd_lora(splits, rank=2)
    for path in small.split.train:
        delta = np.asarray(paths(merge(lora(rank=5).apply(cat_lora(splits).split)))[path] - base[path])
        found = np.asarray(paths(merge(lora(rank=2).apply(small.split)))[path] - base[path])
        inputs = int(np.prod(small.split.train[path]["a"].shape[1:-1]))
        values = np.linalg.svd(delta.reshape(LAYERS, inputs, -1), compute_uv=False)[:, 2:]
        error = np.linalg.norm((delta - found).reshape(LAYERS, -1), axis=1)
        np.testing.assert_allclose(error, np.linalg.norm(values, axis=1), rtol=1e-3, atol=1e-3)


def test_dare_has_the_right_mean():
    """Over many draws the thinned adapters are the whole ones: a standard error of 0.02 of 1."""
    split = scanned(2, 0)
    path = next(iter(split.train))
    only = split._replace(train={path: split.train[path]})
    whole = np.asarray(add_lora([only, only]).split.train[path]["a"])
    draw = jax.jit(
        jax.vmap(lambda key: add_lora([only, only], rule=Rule("random", 0.5), key=key).split.train[path]["a"])
    )
    mean = np.asarray(draw(jax.random.split(jax.random.key(0), 4000))).mean(0)
    assert np.abs(mean - whole).max() < 0.1 * np.abs(whole).max()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s: add_lora([]), "no adapters to combine"),
        (lambda s: add_lora([s, scanned(3, 1)]), "adapters of ranks [2, 3]; those of several ranks need cat_lora"),
        (lambda s: cat_lora([s, s], [1.0]), "2 adapters but 1 weights"),
        (lambda s: cat_lora([s, s], scales=[1.0]), "2 adapters but 1 scales"),
        (lambda s: svd_lora([s], rank=0), "rank=0"),
        (lambda s: add_lora([s, s], rule=Rule("random", 0.5)), "give a key"),
        (lambda s: add_lora([s, s], rule=Rule("some", 0.5)), "keep='some'"),
        (
            lambda s: cat_lora([s._replace(train={"lora": s.train}, state={"lora": s.state})]),
            "split 0 is not one of lora",
        ),
    ],
)
def test_errors_are_one_clear_line(make, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
        make(scanned(2, 0))
    assert words in str(caught.value)


def test_dora_is_no_lora():
    split = scanned(2, 0)
    train = {path: {**part, "magnitude": jnp.ones(3)} for path, part in split.train.items()}
    with pytest.raises(UsageError, match="split 1 is not one of lora alone"):
        add_lora([split, split._replace(train=train)])


def test_adapters_of_other_widths_are_refused():
    split = scanned(2, 0)
    path = next(iter(split.train))
    longer = {**split.train[path], "a": jnp.ones((LAYERS, 99, 2))}
    with pytest.raises(UsageError, match=f"{path} has other shapes in split 1"):
        cat_lora([split, split._replace(train={path: longer})])
