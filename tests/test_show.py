"""`jaxbig data show`: what it prints and draws, its exit codes, and its help."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image
from rich.console import Console

from jaxbig.cli import main
from jaxbig.show import Options, parse, show


def printed(path, width=100, **options):
    out = io.StringIO()
    show(Options(path, **options), Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("age,job,label\n31,baker,0\n,clerk,1\n50,baker,1\n41,[bold]odd,1\n")
    return path


def test_prints_shapes_ranges_and_classes(table):
    lines = [line.split() for line in printed(table).splitlines()]
    assert ["table:", "people.csv,", "4", "examples"] in lines
    assert ["age", "-", "float32", "31", "40.67", "50", "7.76", "1", "missing"] in lines
    assert ["job", "-", "3", "classes"] in lines
    assert ["baker", "2", "50.0%"] in lines
    assert ["[bold]odd", "1", "25.0%"] in lines
    assert ["1", "3", "75.0%"] in lines


def test_counts_stand_side_by_side_for_parts(tmp_path):
    for name, rows in (("train.csv", "a,1\nb,2\nb,3\n"), ("test.csv", "b,4\nc,5\n")):
        (tmp_path / name).write_text("kind,x\n" + rows)
    lines = [line.split() for line in printed(tmp_path).splitlines()]
    assert ["kind", "train.csv", "test.csv"] in lines
    assert ["b", "2", "66.7%", "1", "50.0%"] in lines
    assert ["c", "0", "0.0%", "1", "50.0%"] in lines


def test_says_when_it_looked_at_a_part_only(tmp_path):
    offsets = np.arange(21) * 10
    np.savez(
        tmp_path / "a.npz", audio=np.zeros(200, np.int16), offsets=offsets, names=[f"1_ann_{i}" for i in range(20)]
    )
    out = printed(tmp_path / "a.npz", rows=10)
    assert "train  15 examples; 10 of them looked at" in out
    assert "test  5 examples" in [line.rstrip() for line in out.splitlines()]
    assert "s in all" in out.split("test  5")[1]
    assert "s in all" not in out.split("test  5")[0]


def test_draws_a_picture_of_what_was_asked_for(table, tmp_path, capsys):
    out = tmp_path / "new" / "a.png"
    assert main(["data", "show", str(table), "--n", "2", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out.rstrip().endswith("2 examples of people.csv")
    assert captured.err == ""
    first = imread(out)
    assert first.std() > 0.01
    main(["data", "show", str(table), "--n", "2", "--out", str(out)])
    assert np.array_equal(imread(out), first)
    main(["data", "show", str(table), "--n", "2", "--out", str(out), "--seed", "5"])
    assert not np.array_equal(imread(out), first)


BAD = {
    "no path": ("", 2, "no file or folder; try"),
    "path not there": ("people.csw", 2, "no such file; did you mean people.csv?"),
    "two paths": ("people.csv b.csv", 2, "unexpected argument 'b.csv'"),
    "unknown option": ("people.csv --ot a.png", 2, "unknown option --ot; did you mean --out?"),
    "ill-typed": ("people.csv --n many", 2, "--n: invalid int value: 'many'"),
    "missing value": ("people.csv --out", 2, "--out: expected one argument"),
    "too many": ("people.csv --n 1000", 2, "--n 1000: draw from 1 to 100"),
    "not a png": ("people.csv --out a.jpg", 2, "--out a.jpg: give a file whose name ends in .png"),
    "no such part": ("people.csv --part trian", 2, "--part trian: use people.csv"),
    "negative rows": ("people.csv --rows -1", 2, "--rows and --seed are not negative"),
    "cannot be written": ("people.csv --out people.csv/a.png", 1, "people.csv/a.png: cannot be written"),
    "empty": ("empty.csv", 1, "empty.csv: is empty"),
}


@pytest.mark.parametrize(("line", "code", "says"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_line(table, monkeypatch, capsys, line, code, says):
    monkeypatch.chdir(table.parent)
    (table.parent / "empty.csv").touch()
    assert main(["data", "show", *line.split()]) == code
    err = capsys.readouterr().err
    assert err.startswith("jaxbig: error: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize("words", [["data"], ["data", "--help"], ["data", "show", "-h"]])
def test_help(words, capsys):
    assert main(words) == 0
    assert "usage: jaxbig data show PATH" in capsys.readouterr().out


def test_an_error_stands_alone(tmp_path, capsys):
    for i in (1, 2):
        Image.new("RGB", (4, i)).save(tmp_path / f"{i}.png")
    assert main(["data", "show", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2.png: 2 x 4 pixels" in captured.err
    assert main(["data", "show", str(tmp_path), "--size", "8"]) == 0
    assert "8 x 8 x 3" in capsys.readouterr().out


def test_another_command_of_data(capsys):
    assert main(["data", "draw", "a"]) == 2
    assert "data has no command draw" in capsys.readouterr().err


def test_every_option_stands_in_the_help(capsys):
    main(["data", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in Options._fields[1:])
    assert parse([".", "--n", "3", "--part", "a", "--rows", "0", "--seed", "1", "--size", "8"]).size == 8


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom jaxbig.cli import main\nmain(['data', '--help'])\n"
        "heavy = {'numpy', 'jax', 'matplotlib', 'PIL', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


REAL = {
    "mnist": ["image  28 x 28 x 1  uint8", "1      6,742  11.2%  1,135  11.3%"],
    "cifar10_jpeg_subset/test.npz": ["image  32 x 32 x 3  uint8", "test.npz  5,000 examples; 500 of them looked at"],
    "speech_emodb": ["8,000 Hz; 2.00 s"],
    "lm_tinyshakespeare": ["202,651 words, 25,670 different"],
}


@pytest.mark.parametrize("folder", REAL)
def test_real_sets(real_data, tmp_path, folder):
    text = printed(real_data(folder), width=140, rows=500, n=4, out=tmp_path / "a.png")
    for part in REAL[folder]:
        assert part in text
    assert imread(tmp_path / "a.png").std() > 0.01
