"""Credit risk: end to end on a made-up german.data, and that each fold's networks keep to their rows."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxbig.experiment import load, parse

FILE = Path(__file__).parents[2] / "experiments" / "tabular" / "credit_risk.py"


def made_up(path: Path, rows: int = 120) -> None:
    """20 columns in german.data's order; the first number and the first category tell of the class."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(rows):
        bad = rng.random() < 0.4
        values = [f"A{c}{rng.integers(1, 4)}" for c in range(10, 31)]
        values[0] = f"A1{1 + int(rng.random() < (0.9 if bad else 0.2))}"
        for column in (4, 7, 10, 12, 15, 17):
            values[column] = str(rng.integers(1, 60))
        values[1] = str(int(rng.normal(40 if bad else 20, 8)))
        lines.append(" ".join(values[:20]) + f" {1 + bad}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_it_runs_from_a_file_to_a_report(tmp_path, capsys):
    made_up(tmp_path / "german.data")
    experiment = load(FILE)
    words = ["--data.dir", str(tmp_path), "--data.name", "german", "--workdir", str(tmp_path / "run"), "--folds", "3"]
    experiment.main(
        parse(experiment, [*words, "--networks", "2", "--epochs", "3", "--models", "mlp", "--class-weights"])
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())["german"]
    rows = {row["model"]: row for row in results["table"]}
    boosted = [f"{kind}GB, {way}" for kind in ("Hist", "") for way in ("default", "tuned")]
    assert list(rows) == [*boosted, "MLP", "MLP, 2 averaged"]
    for row in rows.values():
        assert row["Gini"] == pytest.approx(2 * row["AUC"] - 1)
        assert row["AUC"] == pytest.approx(np.mean(row["per fold"]))
        assert len(row["per fold"]) == 3
    best = results["best boosting"]
    assert rows[best]["AUC"] == max(row["AUC"] for name, row in rows.items() if "GB" in name) > 0.85
    gaps = np.subtract(rows["MLP"]["per fold"], rows[best]["per fold"])
    assert rows["MLP"]["gap"] == pytest.approx(gaps.mean())
    assert rows["MLP, 2 averaged"]["AUC"] > 0.6
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "german: 120 clients" in capsys.readouterr().out


@pytest.mark.slow
def test_no_network_sees_what_it_is_judged_by(tmp_path):
    """The labels of a fold's test rows change nothing about what is said of them."""
    made_up(tmp_path / "german.data", rows=90)
    experiment = load(FILE)
    module = sys.modules[experiment.main.__module__]
    config = module.Config(module.Data(str(tmp_path), "german"), folds=2, networks=1, epochs=2)
    arrays = module.german_credit(tmp_path / "german.data").arrays
    train, test = np.arange(60), np.arange(60, 90)
    inner = [(train[:45], train[45:]), (train[15:], train[:15])]
    folds = [module.Fold(train, test, [own]) for own in inner]
    sizes = tuple(int(n) + 1 for n in arrays["category"].max(axis=0))
    network = module.TabularMLP(2, sizes, features=(4,), embedding=2)

    def said(arrays):
        return module._networks(config, module.Console(quiet=True), "german", "MLP", network, arrays, folds)

    first = said(arrays)
    changed = {name: array.copy() for name, array in arrays.items()}
    changed["label"][test] = 1 - changed["label"][test]
    np.testing.assert_array_equal(first, said(changed))
    changed["label"][train] = 1 - changed["label"][train]
    assert not np.array_equal(first, said(changed))
    shifted = {name: array.copy() for name, array in arrays.items()}
    shifted["number"][test[1:]] += 1000
    # Bins are those of the training rows, so the first test row does not notice the others.
    np.testing.assert_allclose([per[0][0] for per in first], [per[0][0] for per in said(shifted)], rtol=1e-5)


def test_a_folder_without_the_file_is_one_line(tmp_path):
    experiment = load(FILE)
    with pytest.raises(Exception, match=r"german\.data: no such file"):
        experiment.main(parse(experiment, ["--data.dir", str(tmp_path), "--workdir", str(tmp_path)]))


@pytest.mark.slow
def test_on_the_real_set_networks_are_near_boosting(real_data, tmp_path):
    folder = real_data("finance_credit/german.data").parent
    experiment = load(FILE)
    words = ["--data.dir", str(folder), "--data.name", "german", "--workdir", str(tmp_path), "--networks", "2"]
    experiment.main(parse(experiment, [*words, "--epochs", "25"]))
    rows = json.loads((tmp_path / "results.json").read_text())["german"]["table"]
    auc = {row["model"]: row["AUC"] for row in rows}
    assert auc["GB, tuned"] > 0.77
    assert max(auc["MLP, 2 averaged"], auc["FT-Transformer, 2 averaged"]) > 0.76
