"""Small decoders as GGUF files, and the same as transformers' tensors."""

import numpy as np
from hub.gguf_made import container, meant, random_rows

NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
LAYERS, HEADS, KEYS, VOCABULARY = 2, 4, 2, 40


def mapped():
    """Byte -> the letter that stands for it in tokens, as GPT-2 has it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def words(pre="gpt-2", **more):
    """Metadata of a tokenizer: all bytes, some pairs, and three control tokens."""
    merges = ["h e", "l l", "he ll", "hell o", "1 2", "12 3", "123 4", "\u0120 h", "\u0120h e"]
    tokens = [*mapped().values(), *(pair.replace(" ", "") for pair in merges), "<s>", "<e>", "<t>", "<mine>"]
    kinds = np.ones(len(tokens), np.int32)
    kinds[-4:] = [3, 3, 3, 4]
    ids = {"bos": len(tokens) - 4, "eos": len(tokens) - 3, "eot": len(tokens) - 2}
    data = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges}
    data |= {f"{name}_token_id": np.uint32(number) for name, number in ids.items()}
    found = {f"tokenizer.ggml.{name}": it for name, it in (data | more).items() if it is not None}
    return found | {"tokenizer.chat_template": "{% for m in messages %}<s>{{ m.content }}<t>{% endfor %}"}


def metadata(kind, width, hidden, **more):
    data = {
        "block_count": np.uint32(LAYERS), "embedding_length": np.uint32(width), "context_length": np.uint32(64),
        "feed_forward_length": np.uint32(hidden), "attention.head_count": np.uint32(HEADS),
        "attention.head_count_kv": np.uint32(KEYS), "rope.freq_base": np.float32(5000),
        "attention.layer_norm_rms_epsilon": np.float32(1e-5),
    }  # fmt: skip
    data = {f"{kind}.{name}": it for name, it in (data | more).items() if it is not None}
    return {"general.architecture": kind, **data}


def sorted_rows(raw, heads):
    """What llama.cpp's converter does to the rows of queries and keys."""
    return raw.reshape(heads, 2, len(raw) // heads // 2, -1).swapaxes(1, 2).reshape(raw.shape)


def decoder(kind="llama", width=64, forms=("Q4_1",), table="Q8_0", tied=True, seed=0):
    """(tensors of a GGUF file, transformers' float32 tensors); layer i's matrices are in forms[i % len(forms)]."""
    hidden, head = width, width // HEADS
    shapes = {"attn_q": (width, width), "attn_k": (KEYS * head, width), "attn_v": (KEYS * head, width)}
    shapes |= {"attn_output": (width, width), "ffn_gate": (hidden, width), "ffn_up": (hidden, width)}
    shapes |= {"ffn_down": (width, hidden), "attn_norm": (1, width), "ffn_norm": (1, width)}
    shapes |= {"attn_q_norm": (1, head), "attn_k_norm": (1, head)} if kind == "qwen3" else {}
    made, theirs, number = {}, {}, seed

    def add(name, published, form, rows, length, heads=0):
        nonlocal number
        number += 1
        raw = random_rows(form, rows, length, number)
        flat = rows == 1
        published_array = meant(form, raw)
        theirs[published] = published_array[0] if flat else published_array
        if heads and kind == "llama":
            raw = sorted_rows(raw, heads)
        made[name] = (form, (length,) if flat else (rows, length), raw.tobytes())

    add("token_embd.weight", "model.embed_tokens.weight", table, VOCABULARY, width)
    add("output_norm.weight", "model.norm.weight", "F32", 1, width)
    if not tied:
        add("output.weight", "lm_head.weight", table, VOCABULARY, width)
    for layer in range(LAYERS):
        for name, (rows, length) in shapes.items():
            form = "F32" if rows == 1 else forms[layer % len(forms)]
            heads = {"attn_q": HEADS, "attn_k": KEYS}.get(name, 0)
            place = f"model.layers.{layer}.{NAMES[name]}"
            add(f"blk.{layer}.{name}.weight", f"{place}.weight", form, rows, length, heads)
            if kind == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                add(f"blk.{layer}.{name}.bias", f"{place}.bias", "F32", 1, rows)
    return made, theirs


def config(kind, width, tied):
    """The same model's config.json."""
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    return {
        "architectures": [f"{name}ForCausalLM"], "model_type": kind, "vocab_size": VOCABULARY, "hidden_size": width,
        "intermediate_size": width, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS, "head_dim": width // HEADS, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0, "tie_word_embeddings": tied,
    }  # fmt: skip


def write(path, made, kind="llama", width=64, more=None, **fields):
    """The file."""
    data = metadata(kind, width, width, **fields) | words() | (more or {})
    path.write_bytes(container({name: it for name, it in data.items() if it is not None}, made))
    return path
