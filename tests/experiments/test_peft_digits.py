"""The comparison of techniques, end to end with few steps, and that its table names every technique that trains."""

import json
from pathlib import Path

import pytest

from jaxbig.experiment import load, parse
from jaxbig.registry import REGISTRY

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "vision" / "peft_digits.py"


def names(config) -> set[str]:
    """The techniques in a transform's config."""
    links = config.get("links", [config])
    return {link["technique"] for link in links}


def test_every_technique_that_trains_is_compared():
    compared = set().union(
        *[names(method.config) for method in load(EXPERIMENT).main.__globals__["METHODS"].values() if method]
    )
    assert {name for name, entry in REGISTRY.items() if entry.trains} <= compared


@pytest.mark.slow
def test_rates_are_chosen_and_tuning_beats_the_head_alone(tmp_path):
    experiment = load(EXPERIMENT)
    words = [
        "--workdir",
        str(tmp_path),
        "--seeds",
        "2",
        "--rates",
        "0.001",
        "0.01",
        "--methods",
        "head only",
        "lora",
        "prefix, 8 tokens",
    ]
    experiment.main(parse(experiment, words))
    head, adapted, prefixed = json.loads((tmp_path / "results.json").read_text())["table"]
    assert head["trained"] == 0 < prefixed["trained"] < adapted["trained"]
    assert adapted["accuracy"] > head["accuracy"] > 0.5
    assert prefixed["accuracy"] > 0.4
    assert adapted["bytes"] == 4 * adapted["trained"]
    assert adapted["step FLOPs"] > head["step FLOPs"] > 0
    assert "lora" in (tmp_path / "report.html").read_text()
