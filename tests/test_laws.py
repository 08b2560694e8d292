"""The laws of every registered technique, alone, on an unrolled transformer, a scanned one, and a small CNN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_models import LAYERS, case, restack
from law_trial import (
    ALONE,
    BASIC,
    NOT_ON_CNN,
    base_logits,
    called,
    check_base_is_safe,
    check_every_leaf_learns,
    check_factored_is_merged,
    entry_of,
    jit,
    rebuilt,
    shapes,
    stir,
    tiers,
    trial,
    uses_of,
)

from jaxbig import checkpoint
from jaxbig.compress.merge import merge
from jaxbig.inject import inject_hyperparams
from jaxbig.lift import lift
from jaxbig.registry import REGISTRY
from jaxbig.tree import map_paths, paths
from jaxbig.weight import is_weight

MODELS = ("unrolled", "scanned", "cnn")
SOME = ("bitfit", "lora", "int4", "2:4")
HALF = ("lora", "2:4")  # of the basic ones, what the fast tier tries where one of a kind will do
name_of = lambda alone: f"{alone[0]}-{alone[1]}"  # noqa: E731
over_all = pytest.mark.parametrize("alone", tiers(ALONE, lambda a: a[0] in SOME and a[1] == 0), ids=name_of)
over_some = pytest.mark.parametrize("alone", tiers(ALONE, lambda a: a[0] in HALF and a[1] == 0), ids=name_of)


def is_fast(tried) -> bool:
    """With its first arguments every basic technique but one is tried, on the scanned model or on the CNN: NF4 is held
    as int4 is."""
    (name, i), model = tried
    return {
        "cnn": i == 0 and name == "int8",
        "scanned": i == 0 and name in BASIC and name not in ("int8", "nf4"),
        "unrolled": False,
    }[model]


TRIED = [(alone, model) for model in MODELS for alone in ALONE if model != "cnn" or alone[0] not in NOT_ON_CNN]


def over_all_and_models(fast=is_fast):
    return pytest.mark.parametrize("tried", tiers(TRIED, fast), ids=lambda tried: f"{tried[1]}-{name_of(tried[0])}")


# Prompts have a first law of their own.
@over_all_and_models(lambda tried: is_fast(tried) or tried == (("prompt", 0), "scanned"))
def test_law_1_identity_at_init(tried):
    alone, model = tried
    entry, _ = entry_of(alone)
    tried = trial(alone, model)
    if entry.identity:
        np.testing.assert_array_equal(tried.at_init.factored, base_logits(model))
        jax.tree.map(np.testing.assert_array_equal, tried.at_init.tree, tried.model.params)
        return
    if entry.prompts:
        jax.tree.map(np.testing.assert_array_equal, tried.at_init.tree, tried.model.params)
        assert float(abs(tried.at_init.factored - base_logits(model)).max()) > 0.01
        return
    if entry.error is None:
        check_that_the_smallest_went(entry.arguments[alone[1]], tried, uses_of(model))
        return
    change = {
        path: float(
            jnp.abs(leaf - paths(tried.model.params)[path]).max() / jnp.abs(paths(tried.model.params)[path]).max()
        )
        for path, leaf in paths(tried.at_init.tree).items()
    }
    assert 0 < max(change.values()) <= entry.error, max(change, key=lambda path: change[path])


def check_that_the_smallest_went(arguments, tried, uses):
    """Of all weights that are ranked together the right number is gone, the smallest, and the rest is untouched."""
    before, after = paths(tried.model.params), paths(tried.at_init.tree)
    pruned = [path for path, leaf in paths(tried.split.params).items() if is_weight(leaf)]
    assert pruned
    ranked = []  # pairs of rows: weights before, and after
    for path in pruned:
        pair = [np.asarray(leaf, np.float64) for leaf in (before[path], after[path])]
        if "pattern" in arguments:
            axis = uses[path][0].in_axes[-1]
            ranked += zip(*[np.moveaxis(leaf, axis, -1).reshape(-1, 4) for leaf in pair], strict=True)
        elif path.startswith("blocks/"):
            ranked += zip(*[leaf.reshape(LAYERS, -1) for leaf in pair], strict=True)
        else:
            ranked.append([leaf.reshape(-1) for leaf in pair])
    if arguments.get("scope", "global") == "global" and "pattern" not in arguments:
        ranked = [[np.concatenate([np.ravel(pair[i]) for pair in ranked]) for i in (0, 1)]]
    for old, new in ranked:
        gone = new == 0
        assert gone.sum() == round(arguments.get("sparsity", 0.5) * old.size)
        np.testing.assert_array_equal(new[~gone], old[~gone])
        assert np.abs(old[gone]).max() <= np.abs(old[~gone]).min()


@over_all_and_models()
def test_law_2_factored_is_materialised_is_merged(tried):
    alone, model = tried
    check_factored_is_merged(trial(alone, model))


@over_all_and_models()
def test_law_3_the_base_is_safe_and_every_trained_leaf_learns(tried):
    alone, model = tried
    tried = trial(alone, model)
    assert bool(jax.tree.leaves(tried.split.train)) == entry_of(alone)[0].trains
    check_base_is_safe(tried)
    check_every_leaf_learns(tried)


@over_all_and_models()
def test_law_4_one_trace_and_an_init_that_shapes_describe(tried):
    alone, model = tried
    tried = trial(alone, model)
    assert tried.traces == 1
    template = jax.eval_shape(lambda: tried.transform.init(jax.random.key(5), tried.model.params, tried.uses))
    assert jax.tree.structure(template) == jax.tree.structure(tried.split)
    assert shapes(jax.tree.leaves(template)) == shapes(jax.tree.leaves(tried.split))


@over_all
def test_law_4_a_number_in_state_recompiles_nothing(alone):
    entry, plain = entry_of(alone)
    transform = inject_hyperparams(entry.factory)(**entry.arguments[alone[1]])
    model = case("scanned")
    split = transform.init(jax.random.key(5), model.params, uses_of("scanned"))
    split = split._replace(train=stir(split.train))
    count = []

    @jit
    def logits(split):
        count.append(1)
        return called(transform, split, model.apply)(model.inputs)

    first = logits(split)
    numbers = split.state["hyperparams"]
    other = jax.tree.map(lambda number: number * 2, numbers)
    second = logits(split._replace(state={**split.state, "hyperparams": other}))
    assert len(count) == 1
    expected = called(plain, split._replace(state=split.state["inner"]), model.apply)(model.inputs)
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=2e-5)
    moved = bool((first != second).any())
    assert moved == bool({"alpha", "scale"} & set(numbers))


@over_all
def test_law_5_adapters_vmap(alone):
    tried = trial(alone, "scanned")
    if not jax.tree.leaves(tried.split.train):
        assert not REGISTRY[alone[0]].trains
        return
    two = jax.tree.map(lambda *leaves: jnp.stack(leaves), tried.split.train, tried.stirred_train)

    def logits(train):
        return called(tried.transform, tried.split._replace(train=train), tried.model.apply)(tried.model.inputs)

    both = jit(jax.vmap(logits))(two)
    np.testing.assert_allclose(both[0], tried.at_init.factored, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both[1], tried.stirred.factored, rtol=1e-5, atol=1e-5)


@functools.cache
def _scanned():
    return jit(case("scanned").apply)


@over_all
def test_law_5_scanned_layers_are_unrolled_layers(alone):
    """The scanned model under remat (what `trial` reads), against the unrolled one on the same merged layers."""
    tried = trial(alone, "scanned")
    merged = tried.stirred.tree
    flat = {name: leaf for name, leaf in merged.items() if name != "blocks"}
    flat |= {f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], merged["blocks"]) for i in range(LAYERS)}
    apply = case("unrolled").apply
    if tried.transform.wrap(tried.split, apply) is not apply:  # what is around the model, layer by layer
        train = {}
        for path, parts in tried.stirred_train.items():
            of = lambda i, path=path: path.replace("blocks/", f"block_{i}/")  # noqa: E731
            layers = range(LAYERS) if path.startswith("blocks/") else ()
            train |= {of(i): jax.tree.map(lambda leaf, i=i: leaf[i], parts) for i in layers} or {path: parts}
        split = tried.transform.init(jax.random.key(5), case("unrolled").params, uses_of("unrolled"))
        assert split.train.keys() == train.keys()
        apply = lift(tried.transform.wrap(split._replace(train=train), apply))
    unrolled = jit(apply)(flat, tried.model.inputs)
    np.testing.assert_allclose(tried.stirred.factored, unrolled, rtol=1e-4, atol=2e-5)


@over_some
def test_law_5_what_is_stacked_is_what_each_layer_would_have_been(alone):
    """Layer by layer, compressing a stack is compressing its layers (rankings over the whole model excepted)."""
    entry, transform = entry_of(alone)
    if entry.trains or (entry.arguments[alone[1]].get("sparsity") and not entry.arguments[alone[1]].get("scope")):
        assert entry.trains or "sparsity" in entry.arguments[alone[1]]
        return
    params = case("unrolled").params
    apart = merge(transform.init(None, params, uses_of("unrolled")).params)
    stacked = merge(transform.init(None, restack(params), uses_of("scanned")).params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), restack(apart), stacked)


@pytest.mark.parametrize(
    "saved",
    tiers(
        [(*alone, dtype) for alone in ALONE for dtype in ("float32", "bfloat16")],
        lambda saved: (
            saved[1] == 0 and saved[0] in (("lora",) if saved[2] == "bfloat16" else ("bitfit", "int4", *HALF))
        ),
    ),
    ids=lambda saved: f"{name_of(saved)}-{saved[2]}",
)
def test_law_6_saved_and_restored_to_the_bit(saved, tmp_path):
    *alone, dtype = saved
    _, transform = entry_of(alone)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), case("unrolled").params)
    split = transform.init(jax.random.key(5), params, uses_of("unrolled"))
    checkpoint.save(tmp_path, 1, split, {"transform": transform.config})
    again = rebuilt(transform)
    assert again.config == transform.config
    template = jax.eval_shape(lambda: again.init(jax.random.key(5), params, uses_of("unrolled")))
    restored = checkpoint.restore(tmp_path, template)
    assert jax.tree.structure(restored) == jax.tree.structure(split)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(split), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert shapes(merge(again.apply(restored))) == shapes(params)


@over_all
def test_dropout_keys(alone):
    """No key: the same as ever. A key: repeats; another key: differs, where the technique drops anything."""
    entry, transform = entry_of(alone)
    tried = trial(alone, "scanned")
    split = tried.split._replace(train=tried.stirred_train)

    @jit
    def logits(key):
        return called(transform, split, tried.model.apply, key)(tried.model.inputs)

    plain, one, two = logits(None), logits(jax.random.key(1)), logits(jax.random.key(2))
    np.testing.assert_allclose(plain, tried.stirred.factored, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(one, logits(jax.random.key(1)))
    drops = entry.arguments[alone[1]].get("dropout", 0) > 0
    assert bool((one != two).any()) == drops
    assert bool((one != plain).any()) == drops


@over_some
def test_the_model_s_own_dropout_goes_through(alone):
    tried = trial(alone, "scanned")
    merged, key = merge(tried.transform.apply(tried.split)), jax.random.key(3)
    factored = jit(called(tried.transform, tried.split, tried.model.apply))
    plain = jit(lift(tried.transform.wrap(tried.split, tried.model.apply)))
    np.testing.assert_allclose(
        factored(tried.model.inputs, key), plain(merged, tried.model.inputs, key), rtol=1e-4, atol=2e-5
    )


def test_the_laws_meet_every_kind_of_weight():
    kinds = set()
    for alone in [(name, 0) for name in BASIC]:
        transform = entry_of(alone)[1]
        split = transform.init(jax.random.key(5), case("scanned").params, uses_of("scanned"))
        map_paths(lambda _, leaf: kinds.add(type(leaf).__name__), transform.apply(split))
        assert all(is_weight(leaf) or hasattr(leaf, "shape") for leaf in paths(split.params).values())
    assert {"LowRank", "Quantized", "Sparse"} <= kinds
