"""The report: whole, self-contained, escaped, the same bytes each time."""

import hashlib
import io
import itertools
import os
import re
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import rich.console
from matplotlib.figure import Figure

from jaxbig import pictures, plots
from jaxbig.errors import UserError
from jaxbig.report import Report, terminal_table
from jaxbig.theme import DARK, LIGHT

ROOT = Path(__file__).resolve().parents[1]
NASTY = "<script>alert('1')</script> & \"quoted\""
VOID = {"meta", "br", "use", "image", "path", "rect"}

SAMPLE = """
from jaxbig import pictures, plots
from jaxbig.report import Report

points = [{"method": m, "labels": n, "accuracy": n / 30, "low": n / 31} for m in "ab" for n in (5, 10, 25)]
history = {"cnn": [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.0}]}
report = Report("Digits").text("One.\\n\\nTwo.").table([{"a": 1, "b": "x"}], "c")
report.figure(plots.labels_curve(points), "labels").figure(plots.learning_curves(history), "curves")
report.figure(pictures.confusion([[3, 1], [0, 4]], ["0", "1"]), "confusion")
"""


class Page(HTMLParser):
    """Reads a page and notes what matters here: that tags close, which ids there are, what is referred to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.references, self.tags = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name.split(":")[-1] in ("href", "src"):
                self.references.append(value)
            self.references += re.findall(r"url\((.*?)\)", value or "")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page():
    names: dict = {}
    exec(SAMPLE, names)  # noqa: S102 - our own text, also run in another process below
    return names["report"].html()


def test_the_page_is_whole_and_loads_nothing_from_outside(page):
    read = Page(page)
    assert read.open == []
    assert read.tags.count("svg") == 3
    assert "script" not in read.tags
    assert "link" not in read.tags
    for reference in read.references:
        assert reference.startswith(("#", "data:image/png;base64,")), reference
    assert "@import" not in page


def test_every_id_is_there_once_and_every_reference_has_its_target(page):
    read = Page(page)
    assert len(read.ids) == len(set(read.ids))
    targets = {reference[1:] for reference in read.references if reference.startswith("#")}
    assert targets
    assert targets <= set(read.ids)


def test_another_process_writes_the_same_bytes(page, tmp_path):
    code = SAMPLE + f"report.save({str(tmp_path / 'report.html')!r})\n"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=120)
    written = (tmp_path / "report.html").read_bytes()
    assert hashlib.sha256(written).digest() == hashlib.sha256(page.encode()).digest()


def test_nothing_that_users_write_is_markup():
    figure = Figure(figsize=(2, 1))
    figure.subplots().set_title(NASTY)
    report = Report(NASTY).section(NASTY).text(NASTY).table([{NASTY: NASTY}], NASTY).figure(figure, NASTY)
    page = report.html()
    assert "script" not in Page(page).tags
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7


def test_no_colour_of_the_light_theme_is_left_in_a_figure(page):
    figures = page[page.index("<figure>") :]
    assert not [name for name, colour in LIGHT.items() if colour in figures.lower()]
    assert "var(--ink)" in figures
    assert "var(--c1)" in figures
    assert LIGHT.keys() == DARK.keys()
    for name in LIGHT:
        assert f"--{name}: {LIGHT[name]};" in page
        assert f"--{name}: {DARK[name]};" in page


def test_a_foreign_figure_keeps_its_colours():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], color="#123456")
    assert "#123456" in Report("Digits").figure(figure).html()


def _linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _luminance(colour):
    return float(_linear(colour) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_series_stand_out_from_the_paper(theme):
    def contrast(name):
        low, high = sorted([_luminance(theme[name]), _luminance(theme["paper"])])
        return (high + 0.05) / (low + 0.05)

    assert contrast("ink") > 12
    assert contrast("soft") > 4.5
    assert min(contrast(f"c{i}") for i in range(1, 7)) > 2.4


# Full dichromacy in linear light (Machado, Oliveira and Fernandes 2009, severity 1).
VISIONS = {
    "trichromat": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def _lab(linear):
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    xyz = xyz / [0.9505, 1.0, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISIONS.values(), ids=VISIONS)
def test_every_two_series_can_be_told_apart(theme, vision):
    seen = [_lab(np.clip(np.array(vision) @ _linear(theme[f"c{i}"]), 0, 1)) for i in range(1, 7)]
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(a - b) > 20


def test_tables_line_up_and_format_by_column():
    rows = [
        {"method": "full", "accuracy": 0.81, "trained": 26122, "ok": True},
        {"method": "LoRA", "accuracy": np.float32(0.9512), "trained": np.int64(99), "ok": False, "note": "[b]"},
        {"method": "none", "accuracy": float("nan"), "trained": None},
    ]
    page = Report("t").table(rows, "Results").html()
    assert "<td class=number>0.8100</td><td class=number>26,122</td><td>yes</td><td>–</td>" in page
    assert "<td class=number>0.9512</td><td class=number>99</td><td>no</td><td>[b]</td>" in page
    assert "<td class=number>nan</td><td class=number>–</td><td>–</td>" in page
    file = io.StringIO()
    console = rich.console.Console(width=80, color_system=None, file=file)
    console.print(terminal_table(rows, "Results"))
    lines = file.getvalue().splitlines()
    assert lines[1].split() == ["method", "accuracy", "trained", "ok", "note"]
    assert lines[4].split() == ["LoRA", "0.9512", "99", "no", "[b]"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5, 0.25], ["0.50", "0.25"]),
        ([13.7, 1000.0], ["14", "1,000"]),
        ([1e-6, 2.5e-5], ["1e-06", "2.5e-05"]),
        ([1.0, 2.0], ["1", "2"]),
        ([123456.789], ["123,457"]),
    ],
)
def test_decimals(values, shown):
    page = Report("t").table([{"v": value} for value in values]).html()
    assert re.findall("<td class=number>(.*?)</td>", page) == shown


def test_an_empty_table_is_no_error():
    assert "<table>" in Report("t").table([]).html()


def test_save_replaces_whole_and_leaves_no_rest(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert Report("Digits – Ziffern").save(path) == path
    assert "Digits – Ziffern" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_failed_save_keeps_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"report\.html: .*No space left on device"):
        Report("Digits").save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_save_where_there_can_be_no_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/report\.html: cannot be written"):
        Report("Digits").save(tmp_path / "file" / "report.html")


def test_figures_leave_matplotlibs_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    Report("Digits").figure(plots.labels_curve([{"method": "a", "labels": 5, "accuracy": 0.5}])).html()
    pictures.filters(np.ones((2, 2, 3, 2)))
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
