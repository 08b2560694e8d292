"""Fixtures that tests of several parts share."""

import os
from pathlib import Path

import pytest


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
