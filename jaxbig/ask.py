"""Questions to a model that chats, many at a time: its answers as texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxbig.errors import UserError
from jaxbig.generate.loop import generate
from jaxbig.generate.sampling import GREEDY, Sampling
from jaxbig.hub.chat import render
from jaxbig.hub.model import Model
from jaxbig.hub.text_model import LENGTHS, ends_of


def ask(
    model: Model, params: Any, conversations: Sequence[Sequence[Mapping[str, Any]]], *, max_tokens: int = 128,
    batch_size: int = 8, how: Sampling = GREEDY, key: Any = None,
) -> list[str]:  # fmt: skip
    """What the model answers to each conversation, through its chat template.

    Args:
        model: a decoder with its tokenizer, as `jaxbig.load` gives it.
        params: parameters; leaves may be Weights. Those of `model` are not looked at.
        conversations: messages up to where the model is to speak, see `jaxbig.hub.chat.render`.
        max_tokens: of an answer at most.
        batch_size: conversations at a time, those of like lengths together.
        how, key: see `jaxbig.generate.loop.generate`; the likeliest token by default. Each conversation draws with
            ``fold_in(key, its batch's number)``.

    Returns:
        the answers, in the order of the conversations, without special tokens and blanks around them.

    Raises:
        UserError: the tokenizer has no chat template; a conversation and `max_tokens` are longer than the model's
            positions.
    """
    tokenizer = model.tokenizer
    ends = () if model.path is None else ends_of(model.path, model.config, tokenizer)
    prompts = [tokenizer.encode(render(tokenizer, messages), special=False) for messages in conversations]
    most = next((model.config[name] for name in LENGTHS if name in model.config), None)
    for number, prompt in enumerate(prompts):
        if most is not None and len(prompt) + max_tokens > most:
            raise UserError(
                f"ask: conversation {number} has {len(prompt)} tokens, and with max_tokens={max_tokens} more than the "
                f"model's {most} positions; shorten it"
            )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        own = order[start : start + batch_size]
        # The last batch is filled up, so that all have one shape.
        rows = [prompts[i] for i in own] + [prompts[own[0]]] * (min(batch_size, len(order)) - len(own))
        drawn = None if key is None else jax.random.fold_in(key, start // batch_size)
        texts = generate(model.module, params, rows, max_tokens=max_tokens, how=how, key=drawn, ends=ends)
        answers |= {i: tokenizer.decode(text).strip() for i, text in zip(own, texts, strict=False)}
    return [answers[i] for i in range(len(prompts))]
