"""PEFT's methods on whole models of transformers: logits, gradients and five steps of SGD, in float64.

BERT, GPT-2 with its tied head, a Llama with grouped queries, and a ViT; scanned or unrolled; the base's and the
adapter's weights carried across by the family's table and the table of methods alone.
"""

import re
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.carry import carry
from peft_methods import METHODS, frozen, tensors, train_of

from jaxbig.lift import lift
from jaxbig.models.families import family_of
from jaxbig.models.family import names_of
from jaxbig.usage import usage

B, T, V, STEPS, RATE = 2, 7, 31, 5, 0.1
TINY = {"vocab_size": V, "num_labels": 3, "pad_token_id": 0, "num_hidden_layers": 2, "num_attention_heads": 4,
        "hidden_size": 12, "intermediate_size": 20}  # fmt: skip
# model -> transformers' class and config, and the layers that are adapted
MODELS = {
    "bert": ("BertForSequenceClassification", TINY, ["query", "value", "intermediate.dense"]),
    "gpt2": (
        "GPT2LMHeadModel", {"vocab_size": V, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 16},
        ["c_attn", "c_fc"],
    ),
    "llama": (
        "LlamaForCausalLM", TINY | {"num_key_value_heads": 2, "head_dim": 4}, ["q_proj", "v_proj", "down_proj"],
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        TINY | {"num_key_value_heads": 2, "head_dim": 4, "sliding_window": 3, "sliding_window_pattern": 2},
        ["q_proj", "v_proj", "down_proj"],
    ),
    "vit": ("ViTForImageClassification", TINY | {"image_size": 8, "patch_size": 4}, ["q_proj", "v_proj", "fc1"]),
}  # fmt: skip
# PEFT has these for torch's Linear alone, and GPT-2's products are transformers' Conv1D.
LINEAR_ALONE = ("loha", "lokr", "lokr whole", "shira", "oft", "hra")
CASES = [(model, method) for model in MODELS for method in METHODS if not (model == "gpt2" and method in LINEAR_ALONE)]
FIRST = ("lora", "dora")  # which CI tries on every model
# transformers' modules within -> the names of published files
WITHIN = [
    (r"\.encoder\.layer\.", ".layers."), (r"attention\.attention\.(q|k|v)\w+", r"attention.\1_proj"),
    (r"\.intermediate\.dense", ".mlp.fc1"), (r"attention\.output\.dense", "attention.o_proj"),
]  # fmt: skip


def base_of(torch, model):
    """Their model with random parameters, and ours with the same."""
    import transformers
    from safetensors.numpy import load_file

    name, fields, _ = MODELS[model]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    config = cls.config_class(**fields, attn_implementation="eager")
    theirs = cls(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=parameter.dtype))
    told = config.to_dict() | {"architectures": [name]}
    family = family_of(told)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        state = load_file(Path(folder) / "model.safetensors")
    return theirs, family, told, state


def module_of(model, name):
    """The torch module within, of a published file's tensor."""
    for pattern, new in WITHIN if model == "vit" else ():
        name = re.sub(pattern, new, name)
    return name.removesuffix(".weight")


def adapted(model, family, module, params):
    """Path of each adapted leaf -> PEFT's module, or modules of a stack."""
    names, targets = names_of(family.tensors(module), module.layers), MODELS[model][2]
    found = {}
    for keys, _ in jax.tree_util.tree_leaves_with_path(params):
        path = "/".join(key.key for key in keys)
        name = names(path)
        each = [module_of(model, one) for one in ([name] if isinstance(name, str) else name or [])]
        if path.endswith("kernel") and each and each[0].endswith(tuple(f".{target}" for target in targets)):
            found[path] = each[0] if isinstance(name, str) else each
    return found


def batch(model):
    random = np.random.default_rng(1)
    if model == "vit":
        return random.normal(size=(B, 8, 8, 3)), random.integers(0, 3, B)
    return random.integers(1, V, (B, T)), random.integers(
        0, 3 if model == "bert" else V, B if model == "bert" else (B, T)
    )


def their_run(torch, model, peft_model, x, labels):
    """Logits, gradients, and what is trained after some steps of SGD."""
    x = torch.tensor(np.moveaxis(x, -1, 1) if x.ndim == 4 else x)
    call = lambda: peft_model(**{"pixel_values" if x.ndim == 4 else "input_ids": x}).logits  # noqa: E731
    optimiser = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=RATE)
    first = None
    for _ in range(STEPS):
        optimiser.zero_grad()
        logits = call()
        torch.nn.functional.cross_entropy(logits.flatten(0, -2), torch.tensor(labels).flatten()).backward()
        first = first or SimpleNamespace(logits=logits.detach().numpy(), grads=tensors(peft_model, grads=True))
        optimiser.step()
    return first.logits, first.grads, tensors(peft_model)


def our_run(call, transform, split, x, labels):
    """The same of ours; `call` is the model, ``(params, x) -> logits``."""

    def loss(train):
        logits = lift(call, strict=True)(transform.apply(split._replace(train=train)), x)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
        return -picked.mean(), logits

    step = jax.jit(jax.grad(loss, has_aux=True))
    train = split.train
    first_grads, first_logits = step(train)
    for _ in range(STEPS):
        grads, _ = step(train)
        train = jax.tree.map(lambda leaf, grad: leaf - RATE * grad, train, grads)
    return first_logits, first_grads, train


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "name"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[1] not in FIRST), id="-".join(case)) for case in CASES],
)
def test_logits_gradients_and_steps_are_peft_s(torch64, model, name):
    import peft

    method, scan = METHODS[name], len(name) % 2 == 1
    theirs, family, told, state = base_of(torch64, model)
    task = family.architectures[told["architectures"][0]]
    module = family.module(told, task, scan_layers=scan)
    params = jax.tree.map(jnp.asarray, carry(module, family, state))
    mine = adapted(model, family, module, params)
    options = {**method.options, "target_modules": MODELS[model][2]}
    options |= {"feedforward_modules": MODELS[model][2]} if name == "ia3 in" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = peft.get_peft_model(theirs, getattr(peft, method.config)(**options)).double().eval()
        with torch64.no_grad():
            for parameter in peft_model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch64.randn(parameter.shape, dtype=torch64.float64))
        given = tensors(peft_model)
        x, labels = batch(model)
        logits, grads, after = their_run(torch64, model, peft_model, x, labels)
    call = lambda params, x: module.apply({"params": params}, x)  # noqa: E731
    transform = method.ours([re.escape(path) for path in mine])
    split = transform.init(jax.random.key(0), params, usage(call, params, x))
    assert split.train.keys() == mine.keys()
    assert len(given) == len(method.parts) * 2 * len(MODELS[model][2])
    layers = dict(peft_model.base_model.model.named_modules())
    of = {
        path: [layers[its] for its in names] if isinstance(names, list) else layers[names]
        for path, names in mine.items()
    }
    split = split._replace(train=train_of(method, given, mine), state=frozen(split.state, of))
    found = our_run(call, transform, split, x, labels)
    loose = 3e-5 if name == "fourierft" else 1e-9  # whose transform PEFT computes in float32
    np.testing.assert_allclose(found[0], logits, rtol=0, atol=loose * np.abs(logits).max())
    for ours, expected in ((found[1], grads), (found[2], after)):
        for path, parts in train_of(method, expected, mine).items():
            for part, array in parts.items():
                atol = loose * np.abs(array).max()
                np.testing.assert_allclose(ours[path][part], array, rtol=0, atol=atol, err_msg=f"{path} {part}")
