"""`jaxbig info` and `jaxbig compare` on runs that were really made."""

import io
import json

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxbig import bitfit, chain, lora, quantize, usage
from jaxbig.cli import main
from jaxbig.compare import compare, read_history
from jaxbig.data import Loader
from jaxbig.errors import UsageError, UserError
from jaxbig.info import info
from jaxbig.objective import classify
from jaxbig.train import Run, Task, Validation, fit

DATA = {"image": np.eye(8, dtype=np.float32), "label": np.arange(8) % 3}
MODEL = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    params = jax.jit(MODEL.init)(jax.random.key(0), DATA["image"])["params"]
    technique = chain(quantize("int8"), lora(rank=2), bitfit())
    uses = usage(lambda p, x: MODEL.apply({"params": p}, x), params, DATA["image"])
    held_out = Validation(classify(MODEL, train=False), Loader(DATA, 8, shuffle=False))
    for name, rate in (("slow", 0.01), ("fast", 1.0)):
        task = Task(classify(MODEL), technique, optax.adam(rate), Loader(DATA, 4), held_out)
        run = Run(3, folder / name, quiet=True, keep_best="min:val_loss", config={"lr": rate}, save_base=True)
        fit(task, technique.init(jax.random.key(1), params, uses), jax.random.key(2), run)
    return folder


def told(act, *words):
    console = Console(file=io.StringIO(), width=160)
    act([str(word) for word in words], console)
    return console.file.getvalue()


def test_info_shows_parts_technique_and_configuration(runs):
    text = told(info, runs / "slow")
    assert "step 6, written" in text
    assert "chain(quantize(format='int8'" in text
    assert "lora(rank=2" in text
    assert 'config: {"lr": 0.01}' in text
    assert "data position: epoch 4, batch 0 of it done" in text
    assert "every file has its size and checksum" in text
    rows = {row.split("│")[0].strip(" ┃│"): row for row in text.splitlines()}
    trained = 8 * 2 + 2 * 4 + 4 + 3  # the head's kernel is not adapted, its bias is
    assert any(f" {trained} " in row for row in text.splitlines() if "train" in row), rows


def test_an_adapter_s_checkpoint_does_not_repeat_its_base(runs):
    step = max((runs / "slow" / "checkpoints").iterdir())
    body = json.loads((step / "manifest.json").read_text().split("\n", 1)[1])
    heads = {record["path"].split("/")[0] for record in body["leaves"]}
    assert heads == {"train", "optimizer", "key", "step"}
    assert not any("codes" in record["path"] for record in body["leaves"])
    base = told(info, runs / "slow" / "base", "--leaves")
    assert "params/layers_0/kernel/codes" in base


def test_info_of_one_step_and_of_a_damaged_one(runs, tmp_path):
    step = max((runs / "fast" / "checkpoints").iterdir())
    assert f"step {int(step.name[5:]):,}" in told(info, step)
    file = max((path for path in (step / "train").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    try:
        with pytest.raises(UserError, match="1 parts are damaged"):
            told(info, step)
    finally:
        file.write_bytes(whole)


def test_compare_puts_runs_side_by_side(runs, tmp_path):
    page = tmp_path / "page.html"
    text = told(compare, runs / "slow", runs / "fast", "--out", page)
    assert "slow" in text
    assert "val_accuracy" in text
    assert b"<svg" in page.read_bytes()
    console = Console(file=io.StringIO(), width=160)
    best = compare([str(runs / "slow"), str(runs / "fast"), "--best", "min:val_loss"], console)
    for row in best:
        lines = read_history(runs / row["run"])
        assert row["val_loss"] == min(line["val_loss"] for line in lines)


MISTAKES = {
    "no folder": (info, ["nowhere"], UsageError, "nowhere: no such folder"),
    "unknown option": (info, [".", "--leafs"], UsageError, "did you mean --leaves"),
    "ill-typed": (info, [".", "--step", "x"], UsageError, "invalid int value"),
    "nothing there": (info, ["."], UserError, "no complete checkpoint"),
    "no runs": (compare, ["--best", "max:a"], UsageError, "no runs"),
    "no run": (compare, ["."], UsageError, "holds no metrics.jsonl"),
}


@pytest.mark.parametrize(("act", "words", "kind", "says"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(act, words, kind, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=says):
        act(words)


def test_a_damaged_history_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n{"loss"\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: is no JSON"):
        compare([str(tmp_path)])


def test_the_command_line_ends_with_its_codes(runs, capsys):
    assert main(["info", str(runs / "slow")]) == 0
    assert main(["compare", str(runs / "slow"), str(runs / "fast"), "--best", "max:nothing"]) == 2
    assert "no run has it; there are epoch, step, loss" in capsys.readouterr().err
    assert main(["info", "--help"]) == 0
    assert main(["compare", "--help"]) == 0
