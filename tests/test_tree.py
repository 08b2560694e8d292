"""Paths and `where`: the one language that selects leaves."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from jaxbig.errors import UsageError
from jaxbig.tree import first_match, map_paths, match, nbytes, paths, replace
from jaxbig.weight import Scaled


class Pair(NamedTuple):
    left: object
    right: object


NAMES = ["body/layer_0/kernel", "body/layer_0/bias", "body/layer_1/kernel", "head/kernel"]
TREE = {"b": [1, {"c": 2}], "a": Pair(3, None), "w": Scaled(jnp.ones(2), jnp.float32(2))}


def test_paths_name_keys_indices_and_attributes_with_weights_as_leaves_and_none_as_none():
    found = paths(TREE)
    assert list(found) == ["a/left", "b/0", "b/1/c", "w"]
    assert (found["a/left"], found["b/1/c"], found["w"]) == (3, 2, TREE["w"])


def test_paths_refuse_two_leaves_of_one_name():
    with pytest.raises(UsageError, match="two leaves have the same path; rename"):
        paths({"a": {"b": 1}, "a/b": 2})


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (".*/kernel", [0, 2, 3]),
        ("head/kernel", [3]),
        (["head/.*", ".*layer_0.*"], [0, 1, 3]),
        (r"body/layer_\d+/(kernel|bias)", [0, 1, 2]),
    ],
)
def test_match_takes_whole_paths_in_the_trees_order(where, expected):
    assert match(where, NAMES) == [NAMES[i] for i in expected]


@pytest.mark.parametrize("where", ["kernel", "head", "body/layer_0", ["head/.*", "tail/.*"]])
def test_match_of_nothing_lists_the_nearest_paths(where):
    with pytest.raises(UsageError) as caught:
        match(where, NAMES)
    assert "matches no parameter; nearest paths (of 4): " in str(caught.value)
    assert sum(name in str(caught.value) for name in NAMES) == 3


@pytest.mark.parametrize("nothing", ["", [], ()])
def test_a_where_that_names_nothing_is_a_mistake(nothing):
    with pytest.raises(UsageError, match="names nothing; give a pattern, or None"):
        match(nothing, ["a"])


def test_the_nearest_path_comes_first():
    with pytest.raises(UsageError, match=r"nearest paths \(of 4\): head/kernel"):
        match("haed/kernel", NAMES)
    with pytest.raises(UsageError, match="no leaves left"):
        match(".*", [])
    with pytest.raises(UsageError, match=r"where='\(' is no regular expression"):
        match("(", NAMES)


def test_first_match_wins_in_the_order_of_the_rules():
    values = first_match([("head/.*", 1), (".*/kernel", 2)], NAMES, default=0)
    assert values == dict(zip(NAMES, [2, 0, 2, 1], strict=True))
    assert list(values) == NAMES


def test_a_rule_whose_leaves_are_all_taken_is_no_mistake_but_one_that_matches_nothing_is():
    assert first_match([(".*", 1), ("head/.*", 2)], NAMES)["head/kernel"] == 1
    with pytest.raises(UsageError, match="matches no parameter"):
        first_match([(".*", 1), ("tail/.*", 2)], NAMES)


def test_map_paths_keeps_the_structure():
    named = map_paths(lambda path, leaf: path, TREE)
    assert named == {"b": ["b/0", {"c": "b/1/c"}], "a": Pair("a/left", None), "w": "w"}


def test_replace_fills_and_empties_places_and_leaves_the_tree_alone():
    before = jax.tree.structure(TREE)
    new = replace(TREE, {"a/right": 5, "b/1/c": None, "w": 7})
    assert new == {"b": [1, {"c": None}], "a": Pair(3, 5), "w": 7}
    assert jax.tree.structure(TREE) == before
    with pytest.raises(UsageError, match="no parameter at 'b/2'; nearest paths"):
        replace(TREE, {"b/2": 0})


def test_nbytes_counts_parts_half_bytes_and_keys():
    assert nbytes({"a": jnp.ones((3, 5), jnp.bfloat16), "b": jax.ShapeDtypeStruct((3,), jnp.int4)}) == 30 + 2
    assert nbytes(TREE["w"]) == 8 + 4
    assert nbytes(jax.random.key(0)) == 8
    assert (
        nbytes({"four": jax.ShapeDtypeStruct((6,), jnp.float4_e2m1fn), "two": jax.ShapeDtypeStruct((6,), jnp.int2)})
        == 5
    )
    assert nbytes({"number": 0.5, "mask": jnp.ones(3, bool)}) == 4 + 3
