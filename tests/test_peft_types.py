"""The documentation's table of PEFT's types is whole, and what it says is here is here."""

import re
import warnings
from pathlib import Path

import pytest

import jaxbig
from jaxbig.registry import REGISTRY

PAGE = Path(__file__).parent.parent / "docs" / "tune-a-model.md"
ROWS = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \|", PAGE.read_text(), re.MULTILINE))


def test_what_is_said_to_be_here_is():
    here = {name for cell in ROWS.values() for name in re.findall(r"`(\w+)", cell)}
    assert len(here) > 15
    assert all(callable(getattr(jaxbig, name)) for name in here)
    trained = {name for name, entry in REGISTRY.items() if entry.trains}
    assert trained - here <= {"full", "bottleneck"}, "a technique that the table does not name"
    assert {cell for cell in ROWS.values() if "`" not in cell} <= {"planned", "no"}


@pytest.mark.parity
def test_every_type_of_peft_has_a_row():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
    assert {kind.value for kind in peft.PeftType} == set(ROWS)
