"""A process of its own for what needs several devices: they are simulated, and their number is fixed at the start."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def on_devices(count: int, *words: str, timeout: float = 600) -> subprocess.CompletedProcess:
    """Runs ``python *words`` on simulated CPU devices; it compiles as this process does, and finds the tests' modules.

    Args:
        count: of devices.
        words: those after the interpreter's name.
        timeout: in seconds.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip(),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, timeout=timeout, check=False
    )
