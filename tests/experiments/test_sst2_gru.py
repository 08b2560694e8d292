"""SST-2: end to end on made-up reviews in which the order of the words decides, and on the real ones."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from jaxbig.errors import UserError
from jaxbig.experiment import load, parse

FILE = Path(__file__).parents[2] / "experiments" / "sequence" / "sst2_gru.py"


def made_up(folder: Path, sizes: dict[str, int]) -> None:
    """ "not" turns the word that follows after some others into its opposite: no bag of words can tell."""
    rng = np.random.default_rng(0)
    for name, rows in sizes.items():
        lines = ["sentence\tlabel"]
        for i in range(rows):
            good, negated = rng.integers(0, 2, 2)
            words = [f"w{j}" for j in rng.integers(0, 5, rng.integers(0, 4 if i % 2 else 12))]
            words += [*(["not"] if negated else []), "good" if good else "bad", f"w{rng.integers(0, 5)}", ""]
            lines.append(" ".join(words) + f"\t{good ^ negated}")
        with gzip.open(folder / name, "wt") as file:
            file.write("\n".join(lines) + "\n")


@pytest.mark.slow
def test_it_learns_what_order_means_and_resumes(tmp_path, capsys):
    made_up(tmp_path, {"train.tsv.gz": 600, "dev.tsv.gz": 80, "test.tsv.gz": 100})
    experiment = load(FILE)
    words = ["--data.dir", str(tmp_path), "--workdir", str(tmp_path / "run"), "--bounds", "8", "16", "--hidden", "8"]
    words += ["--embedding", "8", "--batch-size", "32", "--lr", "0.02", "--word-dropout", "0", "--dropout", "0.1"]
    experiment.main(parse(experiment, [*words, "--epochs", "5"]))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = {(row["set"], row["model"]): row for row in results["table"]}
    assert set(rows) == {(s, m) for s in ("held-out", "dev") for m in ("GRU", "TF-IDF, logistic regression")}
    assert rows["dev", "GRU"]["accuracy"] > 0.9
    assert rows["dev", "GRU"]["examples"] == 100
    gain = rows["dev", "GRU"]["accuracy"] - rows["dev", "TF-IDF, logistic regression"]["accuracy"]
    assert results["gain on dev"]["value"] == pytest.approx(gain)
    assert "8 words known" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    experiment.main(parse(experiment, [*words, "--epochs", "5", "--resume"]))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["table"] == results["table"]


def test_a_missing_file_is_one_line(tmp_path):
    experiment = load(FILE)
    with pytest.raises(UserError, match="SST-2 is a public set of GLUE"):
        experiment.main(parse(experiment, ["--data.dir", str(tmp_path), "--workdir", str(tmp_path)]))


@pytest.mark.slow
def test_on_the_real_set_one_epoch_is_well_above_chance(real_data, tmp_path):
    folder = real_data("text_sst2/train.tsv.gz").parent
    experiment = load(FILE)
    words = ["--data.dir", str(folder), "--workdir", str(tmp_path), "--hidden", "32", "--embedding", "48"]
    experiment.main(parse(experiment, [*words, "--epochs", "1"]))
    rows = json.loads((tmp_path / "results.json").read_text())["table"]
    assert {(row["set"], row["examples"]) for row in rows} == {("held-out", 6735), ("dev", 872)}
    assert min(row["accuracy"] for row in rows if row["model"] == "GRU") > 0.7
