"""The README's two commands as a new user runs them: a fresh clone, a fresh virtual environment, nothing else.

    python benchmarks/readme_commands.py PYTHON [--only 1] [--no-record]

PYTHON is the interpreter that stands for ``python3``. Each command's wall time (installation included), exit code and
last line are printed, and appended as one line to benchmarks/results/readme_commands.jsonl, with the job's results.
What a command that failed had printed is printed whole.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "readme_commands.jsonl"


def commands() -> list[str]:
    """The README's bash blocks."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(command: str, clone: Path) -> dict:
    """Wall seconds, exit code and last line of a command."""
    since = time.perf_counter()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX", "PYTHON"))}
    done = subprocess.run(
        ["bash", "-c", command], cwd=clone, env=environment, text=True, capture_output=True, check=False
    )
    seconds = round(time.perf_counter() - since, 1)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr, flush=True)
    lines = [line for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    return {"seconds": seconds, "exit code": done.returncode, "last line": lines[-1] if lines else ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="the interpreter that stands for python3")
    parser.add_argument("--only", type=int, help="run just this one of the commands")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    version = subprocess.run([options.python, "--version"], text=True, capture_output=True, check=True).stdout.strip()
    record: dict = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/readme_commands.py " + " ".join(sys.argv[2:]),
        "python": version,
        "cores": os.cpu_count(),
    }
    failed = False
    for number, command in enumerate(commands(), 1):
        if options.only not in (None, number):
            continue
        with tempfile.TemporaryDirectory() as folder:
            clone = Path(folder) / "jaxbig"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
            result = run(command.replace("python3", options.python, 1), clone)
            outcome = clone / "runs" / "quickstart" / "results.json"
            if outcome.exists():
                result["results"] = json.loads(outcome.read_text())
            failed |= result["exit code"] != 0
            record[f"command {number}"] = result
            print(version, f"command {number}:", {k: v for k, v in result.items() if k != "results"}, flush=True)
    if not options.no_record:
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
