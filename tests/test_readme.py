"""The README's and the tutorial's code runs as it stands, and what its comments promise is true."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/write-a-technique.md",
    "docs/load-data.md",
    "docs/train-a-model.md",
    "docs/evaluate-a-model.md",
    "docs/tune-a-model.md",
    "docs/use-a-published-model.md",
)


LONG = PAGES[3:]  # the first ones are those that the fast tier has


def blocks(page: str) -> str:
    """All Python blocks of a page, joined as one program whose line numbers are the page's."""
    lines, inside = [], False
    for line in (ROOT / page).read_text().splitlines():
        fence = line.startswith("```")
        inside = line.startswith("```python") if fence else inside
        lines.append(line if inside and not fence else "")
    return "\n".join(lines)


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in LONG)) for page in PAGES])
def test_code_runs(page):
    source = blocks(page)
    assert source.count("\n    ") + source.count("import") > 3, "the page has lost its code"
    exec(compile(source, str(ROOT / page), "exec"), {"__name__": "page"})  # noqa: S102  our own page


def test_commands_name_what_is_there():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"(?:experiments|benchmarks|docs|tests)/[\w./-]+\.(?:py|md|png|jsonl)", text):
        assert (ROOT / path).exists(), f"README names {path}, which is not there"
