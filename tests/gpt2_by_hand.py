"""A tiny GPT-2 of transformers, and the same function in plain jax over a tree of the same names.

Legend: B batch, T time, D width, H heads, K width of a head, V vocabulary.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, HEADS, D, V, T = 2, 2, 12, 17, 6


def theirs():
    """transformers' model in float64, every parameter off its initial value."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_embd=D, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, attn_implementation="eager", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=torch.float64))
    return model


def tree(model):
    """The model's parameters, nested by name, without the head: it is the table."""
    found = {}
    for name, value in model.named_parameters():
        *parents, last = name.removeprefix("transformer.").split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = jnp.asarray(value.detach().numpy())
    return found


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["weight"] + p["bias"]


def dense(p, x):
    return x @ p["weight"] + p["bias"]


def attention(p, x_BTD):
    q, k, v = (
        part.reshape(*part.shape[:2], HEADS, -1) for part in jnp.split(dense(p["c_attn"], x_BTD), 3, axis=-1)
    )  # [B, T, H, K]
    scores_BHTT = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1])
    causal = np.tril(np.ones(scores_BHTT.shape[-2:], bool))
    shares_BHTT = jax.nn.softmax(jnp.where(causal, scores_BHTT, -jnp.inf))
    return dense(p["c_proj"], jnp.einsum("bhts,bshk->bthk", shares_BHTT, v).reshape(x_BTD.shape))


def ours(params, ids_BT):
    """Logits [B, T, V]."""
    x_BTD = params["wte"]["weight"][ids_BT] + params["wpe"]["weight"][: ids_BT.shape[1]]
    for i in range(LAYERS):
        p = params["h"][str(i)]
        x_BTD = x_BTD + attention(p["attn"], norm(p["ln_1"], x_BTD))
        inner = jax.nn.gelu(dense(p["mlp"]["c_fc"], norm(p["ln_2"], x_BTD)), approximate=True)
        x_BTD = x_BTD + dense(p["mlp"]["c_proj"], inner)
    return norm(params["ln_f"], x_BTD) @ params["wte"]["weight"].T
