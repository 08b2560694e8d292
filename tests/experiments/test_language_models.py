"""Decoders that learn whole texts: bytes from scratch, and a published model that goes on."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.experiment import load, parse

FOLDER = Path(__file__).parents[2] / "experiments" / "language"


def run(name, workdir, *words):
    experiment = load(FOLDER / f"{name}.py")
    experiment.main(parse(experiment, [*map(str, words), "--workdir", str(workdir)]))
    results = json.loads((workdir / "results.json").read_text())
    assert "<table" in (workdir / "report.html").read_text()
    return results


@pytest.mark.slow
def test_bytes_from_scratch(tmp_path):
    """Of a text whose every second byte follows from the one before, half a model's bits can go, and do."""
    rng = np.random.default_rng(0)
    first = rng.integers(97, 105, 4000)
    text = np.stack([first, first - 32], axis=1).reshape(-1).astype(np.uint8).tobytes()
    (tmp_path / "text").write_bytes(text)
    words = ["--data", tmp_path / "text", "--width", 16, "--layers", 1, "--heads", 2, "--length", 32, "--steps", 160]
    words += ["--batch-size", 8, "--lr", 0.02, "--held-out", 700, "--samples", 1, "--max-tokens", 8]
    results = run("byte_lm", tmp_path / "run", *words)
    bits = {row["model"]: row["bits a byte"] for row in results["table"]}
    assert bits["untrained"] > 7
    assert 3.9 < bits["how often bytes come"] < 4.1
    assert math.isclose(bits["decoder"], 1.5, abs_tol=0.15)
    (sample,) = results["samples"]
    assert len(sample["goes on"]) == 8
    assert results["bytes"] == {"learn": 7200, "held out": 700}


@pytest.mark.slow
def test_the_standard_library_needs_no_data(tmp_path):
    words = ["--width", 32, "--layers", 2, "--length", 64, "--steps", 100, "--held-out", 5000, "--samples", 0]
    results = run("byte_lm", tmp_path / "run", *words)
    bits = {row["model"]: row["bits a byte"] for row in results["table"]}
    assert results["bytes"]["learn"] > 5e6
    assert bits["decoder"] < bits["how often bytes come"] < bits["untrained"]


@pytest.mark.slow
def test_stories_go_on(real_data, tmp_path):
    shakespeare = (real_data("lm_tinyshakespeare") / "input.txt").read_text()
    (tmp_path / "text").write_text("".join(shakespeare.splitlines(keepends=True)[:200]))
    words = ["--model", real_data("model_stories260K"), "--data", tmp_path / "text", "--length", 64]
    results = run("stories_continued", tmp_path / "run", *words, "--batch-size", 4, "--epochs", 2, "--stories", 4)
    before, full, lora = results["table"]
    assert full["new text"] < before["new text"] - 1
    assert lora["new text"] < before["new text"] - 1
    assert before["its own stories"] < lora["its own stories"] < full["its own stories"]
    assert 0 < lora["trained"] < full["trained"] / 4
    assert results["samples"][0]["text"].startswith("Once upon a time, there was a little girl named Lily.")


def test_what_does_not_fit_is_one_line(tmp_path, real_data):
    with pytest.raises(UserError, match="nothing: cannot be read"):
        run("byte_lm", tmp_path / "run", "--data", tmp_path / "nothing")
    model = real_data("model_stories260K")
    with pytest.raises(UserError, match="--length 600: the model is made for 512 tokens"):
        run("stories_continued", tmp_path / "other", "--model", model, "--data", "x", "--length", 600)
