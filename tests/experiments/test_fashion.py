"""The fashion experiment, end to end on images that the test writes in the set's format, and on the set itself."""

import json
from pathlib import Path

import pytest

from jaxbig.cli import main
from jaxbig.data.idx import FASHION_FOLDER
from jaxbig.experiment import load, parse

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "vision" / "fashion.py"


def run(workdir: Path, *words: str) -> list[dict]:
    experiment = load(EXPERIMENT)
    experiment.main(parse(experiment, ("--workdir", str(workdir), *words)))
    return json.loads((workdir / "results.json").read_text())["table"]


@pytest.mark.slow
def test_seeds_differ_and_stand_beside_their_mean(blots, tmp_path):
    small = ("--data.dir", str(blots), "--batch-size", "32", "--dropout", "0", "--epochs", "4")
    first, second, mean, _ = run(tmp_path, *small, "--seeds", "2")
    assert mean["accuracy"] == pytest.approx((first["accuracy"] + second["accuracy"]) / 2)
    assert min(first["accuracy"], second["accuracy"]) > 0.5
    lines = [(tmp_path / f"seed_{seed}" / "metrics.jsonl").read_text().splitlines() for seed in (0, 1)]
    assert json.loads(lines[0][0])["loss"] != json.loads(lines[1][0])["loss"]
    assert "T-shirt" in (tmp_path / "report.html").read_text()


def test_without_data_it_says_what_to_install(tmp_path, capsys):
    assert main(["run", str(EXPERIMENT), "--data.dir", str(tmp_path / "none")]) == 1
    assert "dataset-fashion-mnist" in capsys.readouterr().err


@pytest.mark.slow
def test_real_images_after_two_epochs(tmp_path):
    if not Path(FASHION_FOLDER).exists():
        pytest.skip("Fashion-MNIST is not installed: apt install dataset-fashion-mnist")
    (row,) = run(tmp_path, "--epochs", "2", "--seeds", "1")
    assert row["accuracy"] > 0.85
