"""The digits experiment, end to end: on images that the test writes in MNIST's format, and on MNIST itself."""

import json
from pathlib import Path

import pytest

from jaxbig.cli import main
from jaxbig.experiment import load, parse

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = ROOT / "experiments" / "vision" / "mnist_cnn.py"


def run(workdir: Path, folder: Path, *words: str) -> dict:
    experiment = load(EXPERIMENT)
    words = ("--data.dir", str(folder), "--workdir", str(workdir), "--batch-size", "32", "--seeds", "1", *words)
    experiment.main(parse(experiment, words))
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
def test_it_learns_and_tells(blots, tmp_path, capsys):
    (row,) = run(tmp_path, blots, "--epochs", "3", "--augment", "textbook")["table"]
    assert row["accuracy"] > 0.9
    assert row["errors"] == round((1 - row["accuracy"]) * 48)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert "warning" not in capsys.readouterr().out


@pytest.mark.slow
def test_resumed_it_ends_in_the_same_numbers(blots, tmp_path):
    whole = run(tmp_path / "whole", blots, "--epochs", "2")
    run(tmp_path / "parts", blots, "--epochs", "2")
    again = run(tmp_path / "parts", blots, "--epochs", "2", "--resume")
    for name in ("accuracy", "errors"):
        assert again["table"][0][name] == whole["table"][0][name]


def test_mirrored_digits_are_warned_of(blots, tmp_path, capsys):
    run(tmp_path, blots, "--epochs", "1", "--flip")
    assert "mirrored digits" in " ".join(capsys.readouterr().out.split())


def test_without_data_it_says_what_to_give(capsys):
    assert main(["run", str(EXPERIMENT)]) == 2
    assert "--data.dir" in capsys.readouterr().err


def test_a_set_that_is_not_prepared_is_named(tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets")
    assert main(["run", str(EXPERIMENT), "--data.name", "mnist", "--data.dir", str(tmp_path)]) == 1
    assert "mnist: is not prepared in" in capsys.readouterr().err


@pytest.mark.slow
def test_real_digits_after_one_epoch(real_data, tmp_path):
    (row,) = run(tmp_path, real_data("mnist"), "--epochs", "1", "--batch-size", "128")["table"]
    assert row["accuracy"] > 0.98
