"""A model of 2.2 GB is held once while it is loaded, whatever its layout. `benchmarks/loading.py` has times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "loading.py"
MOST = 1.15  # of the parameters' bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("llama")
    code = "import sys, pathlib, loading; print(loading.write(pathlib.Path(sys.argv[1])))"
    words = [sys.executable, "-c", code, str(place)]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARK.parent)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert int(done.stdout) > 2e9, done.stderr
    yield place
    (place / "model.safetensors").unlink()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("way", ["jaxbig.load", "jaxbig.load, scan_layers", "jaxbig.load, float32"])
def test_the_host_holds_the_model_once(folder, way):
    words = [sys.executable, str(BENCHMARK), "--one", way, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["held"] > 2e9 * (2 if "float32" in way else 1)
    assert found["held"] <= found["peak"] <= MOST * found["held"]
