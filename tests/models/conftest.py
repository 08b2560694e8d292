"""torch for the tests that compare models with transformers'."""

import warnings

import jax
import pytest


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing it says is not ours to mend
        pytest.importorskip("transformers")
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
