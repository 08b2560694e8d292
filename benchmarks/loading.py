"""How long a published model takes to load, and how much of the host's memory, beside the safetensors package alone.

    python benchmarks/loading.py [--rounds 5] [--folder DIR] [--no-record]

A Llama of 1.1 billion parameters in bfloat16, random, in one file of 2.2 GB, which is made and removed again. The ways
run in turns, each time in a process of its own with the file in the page cache: `safetensors.numpy.load_file`, which
gives NumPy arrays as they lie in the file; the same and then, as a program of one's own would, every matrix turned and
put on the device; and `jaxbig.load`, which also checks that all numbers are finite. Shown are the medians of the time
and of the processors' time, and the most memory that a process held above what it held after its imports, as a multiple
of what it gives. Appends one line to benchmarks/results/loading.jsonl.

    python benchmarks/loading.py --one WAY --folder DIR

is one such process, which prints what it measured.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results" / "loading.jsonl"
# A real one's sizes: arXiv:2401.02385.
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 64, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}  # fmt: skip
WAYS = {
    "load_file": None,
    "load_file, turned": None,
    "jaxbig.load": {},
    "jaxbig.load, scan_layers": {"scan_layers": True},
    "jaxbig.load, float32": {"dtype": "float32"},
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, by its name in the file."""
    wide, hidden, keys = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["num_key_value_heads"] * 64
    layer = {
        "input_layernorm": (wide,), "post_attention_layernorm": (wide,),
        "self_attn.q_proj": (wide, wide), "self_attn.k_proj": (keys, wide), "self_attn.v_proj": (keys, wide),
        "self_attn.o_proj": (wide, wide), "mlp.gate_proj": (hidden, wide), "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden),
    }  # fmt: skip
    table = (CONFIG["vocab_size"], wide)
    found = {"model.embed_tokens.weight": table, "model.norm.weight": (wide,), "lm_head.weight": table}
    for i in range(CONFIG["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found


def write(folder: Path) -> int:
    """Writes the model, a tensor at a time, and returns the file's bytes."""
    import ml_dtypes
    import numpy as np

    (folder / "config.json").write_text(json.dumps(CONFIG))
    header, at = {}, 0
    for name, shape in shapes().items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = np.random.default_rng(0).normal(size=1 << 22).astype(ml_dtypes.bfloat16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for left in range(at, 0, -len(noise)):
            file.write(noise[: min(left, len(noise))])
    return (folder / "model.safetensors").stat().st_size


def peak() -> int:
    """The most bytes of memory that this process has held. What `getrusage` says begins with its parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def one(way: str, folder: Path) -> dict[str, float]:
    """Loads the model once."""
    import jax
    from safetensors.numpy import load_file

    import jaxbig

    load, options = jaxbig.load, WAYS[way]
    jax.block_until_ready(jax.device_put(1.0))
    before, start, processors = peak(), time.perf_counter(), time.process_time()
    if options is not None:
        found = load(folder, **options).params
    elif "turned" in way:
        arrays = load_file(folder / "model.safetensors")
        found = {
            name: jax.device_put(array.T if array.ndim == 2 and "embed" not in name else array)
            for name, array in arrays.items()
        }
    else:
        found = load_file(folder / "model.safetensors")
    jax.block_until_ready(found)
    spent, processors = time.perf_counter() - start, time.process_time() - processors
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(found))
    return {"seconds": spent, "processors": processors, "peak": peak() - before, "held": held}


def measured(way: str, folder: Path) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", way, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make the model; default: a temporary folder")
    parser.add_argument("--one", choices=list(WAYS))
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.folder)))
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        size = write(folder)
        rounds = [{way: measured(way, folder) for way in WAYS} for _ in range(options.rounds)]
    finally:
        shutil.rmtree(folder)
    table = {
        way: {
            "seconds": round(statistics.median(each[way]["seconds"] for each in rounds), 2),
            "processors": round(statistics.median(each[way]["processors"] for each in rounds), 2),
            "peak_of_held": round(max(each[way]["peak"] / each[way]["held"] for each in rounds), 3),
        }
        for way in WAYS
    }
    for way, its in table.items():
        ratio = its["seconds"] / table["load_file"]["seconds"]
        print(
            f"{way:26} {its['seconds']:6.2f} s ({ratio:.2f}x), {its['processors']:6.2f} s of processors, peak "
            f"{its['peak_of_held']:.3f} of what it gives"
        )
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python benchmarks/loading.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "bytes": size,
        "median": table,
    }
    if not options.no_record:
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
