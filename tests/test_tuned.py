"""`jaxbig generate` over what a run left: a PEFT adapter, and the run's own checkpoints."""

import io

import jax
import numpy as np
import optax
import pytest
from byte_tokenizer import write_tokenizer

from jaxbig import checkpoint, full, lora, prompt, quantize
from jaxbig.data import Loader
from jaxbig.errors import UsageError, UserError
from jaxbig.generate.loop import generate
from jaxbig.hub.load import create, load
from jaxbig.hub.peft_files import Adapter
from jaxbig.hub.peft_write import write_peft
from jaxbig.hub.save import save
from jaxbig.objective import next_token
from jaxbig.train import Run, Task, fit
from jaxbig.transform import chain
from jaxbig.tuned import open_text_model
from jaxbig.write import write

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 260, "hidden_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
    "initializer_range": 0.3,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(4, 260, (4, 12))
WORDS = ["ab", "--max-tokens", "8", "--temperature", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = create(CONFIG)
    place = save(made, made.params, tmp_path_factory.mktemp("tuned") / "base")
    write_tokenizer(place)
    return place


def trained(folder, workdir, technique, scan):
    """A few steps; (the model, the tuned split)."""
    model = load(folder, "causal_lm", scan_layers=scan)
    split = technique.init(jax.random.key(1), model.params, model.uses)
    task = Task(
        next_token(model.module, inputs="ids", answers=None, chunk=None), technique, optax.adam(3e-2),
        Loader({"ids": IDS}, 4, seed=0),
    )  # fmt: skip
    return model, fit(task, split, jax.random.key(2), Run(epochs=8, workdir=workdir, quiet=True)).split


def text(model, params):
    ids = model.tokenizer.encode("ab")
    (found,) = generate(model.module, params, [ids], max_tokens=8, ends=[2])
    return model.tokenizer.decode([*ids, *found])[2:]


def test_an_adapter_and_its_run_write_what_the_tuned_model_writes(folder, tmp_path):
    technique = lora(rank=4)
    model, split = trained(folder, tmp_path / "run", technique, scan=False)
    expected = text(model, technique.apply(split))
    assert expected != text(model, model.params)
    for name, told in (("named", {"base_model_name_or_path": str(folder)}), ("given", {})):
        write_peft(tmp_path / name, Adapter(technique, split, told), model.uses, model.names)
    assert write([str(tmp_path / "named"), *WORDS], io.StringIO()) == expected
    for path in (tmp_path / "given", tmp_path / "run", tmp_path / "run" / "checkpoints"):
        assert write([str(path), *WORDS, "--base", str(folder)], io.StringIO()) == expected
        with pytest.raises(UsageError, match="give it with --base PATH"):
            write([str(path), *WORDS])


@pytest.mark.slow
def test_a_scanned_run_over_codes(folder, tmp_path):
    technique = chain(quantize("int8"), lora(rank=4))
    _, split = trained(folder, tmp_path / "run", technique, scan=True)
    opened = open_text_model(tmp_path / "run", folder)
    jax.tree.map(np.testing.assert_array_equal, opened.params, technique.apply(split))
    assert opened.kind == "run"
    other = create(CONFIG | {"initializer_range": 0.2})
    write_tokenizer(save(other, other.params, tmp_path / "other"))
    with pytest.raises(UserError, match="is another model than the one that was tuned"):
        open_text_model(tmp_path / "run", tmp_path / "other")


@pytest.mark.slow
def test_what_does_not_go_is_told(folder, tmp_path):
    with pytest.raises(UsageError, match="no adapter and no complete checkpoint"):
        open_text_model(folder, folder)
    with pytest.raises(UsageError, match="nowhere: no such file"):
        open_text_model(tmp_path / "nowhere", folder)
    checkpoint.save(tmp_path / "other", 0, {"w": np.zeros(2)})
    with pytest.raises(UserError, match="none of `jaxbig"):
        open_text_model(tmp_path / "other", folder)
    headless = save(load(folder, "features"), load(folder, "features").params, tmp_path / "headless")
    with pytest.raises(UserError, match="has no head/kernel, so no head to write with"):
        open_text_model(headless)
    technique = full("embed/.*")
    model, split = trained(folder, tmp_path / "table", technique, scan=True)
    opened = open_text_model(tmp_path / "table", folder)
    jax.tree.map(np.testing.assert_array_equal, opened.params, technique.apply(split))
    technique = prompt(tokens=3)
    model, _ = trained(folder, tmp_path / "run", technique, scan=False)
    with pytest.raises(UsageError, match="prompt is around the model"):
        open_text_model(tmp_path / "run", folder)
    technique, told = lora(rank=2), {"base_model_name_or_path": "org/nowhere"}
    split = technique.init(jax.random.key(0), model.params, model.uses)
    write_peft(tmp_path / "adapter", Adapter(technique, split, told), model.uses, model.names)
    with pytest.raises(UsageError, match="is not at org/nowhere; give its folder or file"):
        open_text_model(tmp_path / "adapter")
