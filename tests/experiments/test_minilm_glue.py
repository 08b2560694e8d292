"""A small encoder drawn at random, on made-up reviews: methods are compared and resumed; and the real one."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.experiment import load, parse
from jaxbig.hub.load import create
from jaxbig.hub.save import save

FILE = Path(__file__).parents[2] / "experiments" / "language" / "minilm_glue.py"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "w0", "w1", "w2", "w3")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(WORDS), "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40,
    }  # fmt: skip
    drawn = create(config)
    folder = save(drawn, drawn.params, tmp_path_factory.mktemp("model") / "bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def reviews(folder: Path, header: str, line) -> None:
    """`line` makes one of words and whether they are good."""
    rng = np.random.default_rng(0)
    for name, rows in {"train": 160, "dev": 40, "test": 40}.items():
        lines = [header] if header else []
        for _ in range(rows):
            good = int(rng.integers(0, 2))
            words = [f"w{j}" for j in rng.integers(0, 4, rng.integers(1, 9))]
            words.insert(int(rng.integers(0, len(words) + 1)), ("bad", "good")[good])
            lines.append(line(" ".join(words), good))
        (folder / f"{name}.tsv.gz").write_bytes(gzipped("\n".join(lines) + "\n"))


def gzipped(text: str) -> bytes:
    import gzip

    return gzip.compress(text.encode())


def run(folder: Path, model: Path, *more: str):
    experiment = load(FILE)
    words = ["--model", str(model), "--data", str(folder), "--workdir", str(folder / "run"), "--bounds", "8", "16"]
    experiment.main(parse(experiment, [*words, "--batch-size", "16", *more]))
    return json.loads((folder / "run" / "results.json").read_text())


@pytest.mark.slow
def test_methods_are_compared_on_the_same_texts(tmp_path, model, capsys):
    reviews(tmp_path, "sentence\tlabel", lambda text, good: f"{text}\t{good}")
    words = ["--methods", "full", "lora", "prompt, 16 tokens", "--seeds", "2", "--epochs", "3", "--shots", "8"]
    results = run(tmp_path, model, *words)
    rows = {row["method"]: row for row in results["table"]}
    assert set(rows) == {"full", "lora", "prompt, 16 tokens"}
    assert rows["prompt, 16 tokens"]["trained"] == 16 * 16 + 16 * 2 + 2
    assert rows["lora"]["trained"] < rows["full"]["trained"] / 2
    assert len(rows["full"]["dev runs"]) == 2
    differences = {(row["method"], row["set"]): row["difference"] for row in results["against full"]}
    assert differences["lora", "dev"] == pytest.approx(rows["lora"]["dev"] - rows["full"]["dev"])
    assert {row["labels a class"] for row in results["shots"]} == {8}
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    assert "160 texts" in capsys.readouterr().out
    again = run(tmp_path, model, *words, "--resume")
    no_time = lambda table: [{k: v for k, v in row.items() if k != "seconds"} for row in table]  # noqa: E731
    assert no_time(again["table"]) == no_time(results["table"])


@pytest.mark.slow
def test_a_number_is_predicted_from_two_texts(tmp_path, model):
    reviews(tmp_path, "", lambda text, good: "\t".join([*"abcdefg", text, text[::-1], str(5.0 * good)]))
    results = run(tmp_path, model, "--task", "stsb", "--methods", "full", "--seeds", "1")
    assert -1 <= results["table"][0]["dev"] <= 1
    assert results["against full"] == []


@pytest.mark.slow
def test_what_does_not_fit_is_one_line(tmp_path, model):
    reviews(tmp_path, "sentence\tlabel", lambda text, good: f"{text}\t{'?' if good else 0}")
    with pytest.raises(UserError, match=r"train\.tsv\.gz: the label '\?' is none of 0, 1"):
        run(tmp_path, model)
    reviews(tmp_path, "text\tlabel", lambda text, good: f"{text}\t{good}")
    with pytest.raises(UserError, match="no column 'sentence'; there are text, label"):
        run(tmp_path, model)
    with pytest.raises(UserError, match="methods: 'lorra' is none of 'full', 'lora'"):
        run(tmp_path, model, "--methods", "lorra")


@pytest.mark.slow
def test_the_real_one_learns_from_real_reviews(real_data, minilm, tmp_path):
    words = ["--model", str(minilm), "--data", str(real_data("text_sst2")), "--workdir", str(tmp_path / "run")]
    experiment = load(FILE)
    experiment.main(parse(experiment, [*words, "--methods", "lora", "--examples", "1600", "--seeds", "1"]))
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())["table"]
    assert row["held-out"] > 0.75
    assert row["dev"] > 0.72
    assert row["share"] < 0.01
