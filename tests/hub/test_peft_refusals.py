"""What is wrong with a file, or with an adapter that is to be one, is one line that names it."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import peft_stack as stack
import pytest
from peft_cases import METHODS, PRODUCTS, scanned, split_of, undraw

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.peft_files import Adapter, read_files, write_files
from jaxbig.hub.peft_read import read_peft
from jaxbig.hub.peft_write import write_peft
from jaxbig.transform import Split, chain
from jaxbig.tune.boft import boft
from jaxbig.tune.full import full
from jaxbig.tune.ia3 import ia3
from jaxbig.tune.ln_tuning import ln_tuning
from jaxbig.tune.lokr import lokr
from jaxbig.tune.oft import oft
from jaxbig.tune.shira import shira
from jaxbig.tune.trainable_tokens import trainable_tokens
from jaxbig.tune.vera import vera

pytest.importorskip("safetensors")


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    with pytest.MonkeyPatch.context() as patch:
        undraw(patch)
        yield


def damaged(folder, name, change, config):
    """What reading says of a file in which something is changed."""
    params, uses = scanned()
    write_peft(folder, Adapter(METHODS[name], split_of(name), {}), uses, stack.names)
    its_config, tensors = read_files(folder)
    tensors = {key: tensor.copy() for key, tensor in tensors.items()}
    change(tensors)
    write_files(folder, its_config | config, tensors)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        read_peft(folder, params, uses, stack.names)
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


def drop(key):
    return lambda tensors: tensors.pop(f"base_model.model.{key}")


def put(key, *shape):
    return lambda tensors: tensors.update({f"base_model.model.{key}": np.zeros(shape, np.float32)})


def nothing(tensors):
    pass


DAMAGES = {
    "a part is missing": ("loha", drop("layers.1.up.hada_w2_b"), {}, "model.layers.1.up.hada_w2_b is missing"),
    "a layer is missing": (
        "hra", drop("layers.1.up.hra_u"), {}, "model.layers.1.up.hra_u is missing: of layers/up only some layers"
    ),
    "the shared part is missing": ("vera", lambda tensors: tensors.pop("base_model.vera_A"), {}, "vera_A is missing"),
    "a key too many": ("loha", put("conv.hada_t1", 2, 2), {}, "base_model.model.conv.hada_t1 belong to no leaf"),
    "a part of another kind": (
        "lokr", put("layers.0.up.lokr_w2", 2, 2), {}, "model.layers.0.up.lokr_w2 is no tensor of lokr"
    ),
    "another shape": (
        "boft", put("layers.2.down.boft_s", 5, 1), {},
        "model.layers.2.down.boft_s has the shape (5, 1), the model wants (6, 1)",
    ),
    "another number of axes": (
        "lora", put("layers.0.up.lora_B.weight", 8), {}, "up.lora_B.weight has the shape (8,), the model wants (8, r)"
    ),
    "layers of two ranks": (
        "hra", put("layers.0.up.hra_u", 6, 2), {}, "layers/up: the layers of one stack have"
    ),
    "a rank that the method does not make": ("hra", put("conv.hra_u", 12, 2), {}, "conv: u has the shape (12, 2)"),
    "shared matrices too small": (
        "vera", lambda tensors: tensors.update({"base_model.vera_A": np.zeros((3, 7), np.float32)}), {},
        "is smaller than (8, 3)",
    ),
    "places outside": (
        "shira", lambda tensors: tensors["base_model.model.layers.0.up.shira_indices"].__setitem__((0, 0), 9), {},
        "layers.0.up.shira_indices are no distinct entries of a matrix [8, 6]",
    ),
    "a mask that does not fit": (
        "adalora", nothing, {"rank_pattern": {"conv.lora_E": [True, False, True]}},
        "conv.lora_E holds 3 triplets, and the config's rank_pattern 2",
    ),
    "vera without matrices": ("vera", nothing, {"save_projection": False}, "{'save_projection': False}"),
    "hra by gram-schmidt": ("hra", nothing, {"apply_GS": True}, "{'apply_GS': True}, which hra has not"),
    "blocks that are shared": ("oft", nothing, {"block_share": True}, "{'block_share': True}"),
    "biases": ("boft", nothing, {"bias": "boft_only"}, "{'bias': 'boft_only'}"),
    "two submodules": ("prompt", nothing, {"num_transformer_submodules": 2}, "{'num_transformer_submodules': 2}"),
    "prompts of another width": (
        "prompt", lambda tensors: tensors.update(prompt_embeddings=np.zeros((3, 5), np.float32)), {},
        "prompt_embeddings has the shape (3, 5), the model wants (tokens, 6)",
    ),
    "no pattern": ("loha", nothing, {"rank_pattern": {"(up": 3}}, "which is no regular expression"),
    "another type": ("ia3", nothing, {"peft_type": "C3A"}, "holds a C3A adapter"),
    "another base": (
        "lora", put("conv.base_layer.weight", 4, 2, 3, 2), {},
        "conv.base_layer.weight is another than conv of the model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_wrong_with_a_file_is_one_line_that_names_the_key(what, tmp_path):
    name, change, config, says = DAMAGES[what]
    assert says in damaged(tmp_path, name, change, config)


REFUSED = {
    "another scale": (shira(1, PRODUCTS, scale=0.5), "shira: scale=0.5; PEFT's file holds none"),
    "three terms": (oft(2, PRODUCTS, 3), "oft: terms=3"),
    "a bias": (ia3("head/kernel"), "ia3: head has a bias, which PEFT scales along"),
    "a convolution": (lokr(1, where="conv"), "lokr: conv is a conv, and of those PEFT's tensors differ"),
    "inputs of a convolution": (ia3("conv", "in"), "ia3: conv is a conv"),
    "two sides of blocks": (boft(4, 1, PRODUCTS), "PEFT's config says one boft_block_size of all modules"),
    "two methods": (
        chain(ln_tuning("layers/norm/.*"), ia3(PRODUCTS)), "PEFT's files hold one method, and these are ia3, ln_tuning"
    ),
    "two series": (
        chain(oft(2, "layers/up"), oft(2, "layers/down", 0)), "oft: PEFT's config says one use_cayley_neumann of all"
    ),
    "two shared pairs": (
        chain(vera(3, where="layers/up", seed=1), vera(3, where="layers/down")), "other base_model.vera_A, and PEFT"
    ),
    "rows and a module": (
        chain(trainable_tokens([1], "emb"), full("head/.*")), "beside trainable_tokens PEFT saves no module whole"
    ),
    "nothing that adapts": (full("head/.*"), "write_peft: full alone is no adapter"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_peft_cannot_express_is_not_written(what, tmp_path):
    params, uses = scanned()
    transform, says = REFUSED[what]
    split = transform.init(jax.random.key(0), params, uses)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        write_peft(tmp_path, Adapter(transform, split, {}), uses, stack.names)
    assert re.search(says.replace("(", r"\(").replace(")", r"\)"), str(caught.value)), str(caught.value)
    assert not list(tmp_path.iterdir())


def test_places_that_peft_would_not_draw_are_refused(tmp_path):
    params, uses = scanned()
    technique, split = METHODS["fourierft"], split_of("fourierft")
    state = {path: weight.replace(places=jnp.arange(7, dtype=jnp.int32)) for path, weight in split.state.items()}
    with pytest.raises(UserError, match=r"the places of layers/.* are not those that PEFT draws from the seed 3"):
        write_peft(tmp_path, Adapter(technique, Split(params, split.train, state), {}), uses, stack.names)


def test_the_config_of_another_method_is_a_mistake(tmp_path):
    params, uses = scanned()
    adapter = Adapter(METHODS["hra"], split_of("hra"), {"peft_type": "LORA"})
    with pytest.raises(UsageError, match="the config is of LORA, and this is hra"):
        write_peft(tmp_path, adapter, uses, stack.names)
    (tmp_path / "adapter_config.json").write_text(json.dumps([1]))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no PEFT adapter"):
        read_peft(tmp_path, params, uses, stack.names)
