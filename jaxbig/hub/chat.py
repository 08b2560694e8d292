"""Conversations as the text that a model was trained on: its chat template, run in a sandbox.

A template is a program in a file that somebody else wrote. It runs in jinja's immutable sandbox, which has no way to
files, to the interpreter, or to change what it is given, and it writes no more than `MOST_CHARACTERS`. Its loops are
bounded by jinja alone, which lets a range have 100,000 steps: nested ones can still take very long.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jaxbig.errors import UserError
from jaxbig.hub.tokenizer import Tokenizer

MOST_CHARACTERS = 1 << 24


def render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, generate: bool = True, **more: Any) -> str:
    """The text of a conversation.

    Args:
        tokenizer: with a template.
        messages: ``{"role": "system" | "user" | "assistant", "content": text}``, and whatever else the template reads.
        generate: whether the text ends where the assistant's answer begins.
        **more: other variables of the template, such as ``tools`` or ``enable_thinking``.

    Returns:
        the text, in which the template has written the special tokens: encode it with ``special=False``. A message's
        text that spells a special token becomes that token, as with transformers.

    Raises:
        UserError: the tokenizer has no template; the template is damaged, refuses the messages, or does not end.

    Example:
        >>> source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}"
        >>> render(Tokenizer(None, {"eos": "</s>"}, source), [{"role": "user", "content": " Hello "}])
        '<user>Hello</s>'
    """
    if tokenizer.template is None:
        raise UserError(f"{tokenizer.where}: the tokenizer has no chat template; use its model with plain prompts")
    import jinja2

    tokens = {f"{name}_token": text for name, text in tokenizer.named.items()}
    given = {"messages": [dict(message) for message in messages], "add_generation_prompt": generate}
    pieces, size = [], 0
    try:
        for piece in _compiled(tokenizer.template).generate(**tokens, **given, **more):
            size += len(piece)
            if size > MOST_CHARACTERS:
                raise UserError(f"{tokenizer.where}: the chat template writes more than {MOST_CHARACTERS:,} characters")
            pieces.append(piece)
    except jinja2.TemplateError as error:
        raise UserError(f"{tokenizer.where}: the chat template: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise UserError(f"{tokenizer.where}: the chat template fails on these messages: {error!r}") from error
    return "".join(pieces)


@lru_cache(8)
def _compiled(source: str) -> Any:
    import jinja2.nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant says; it is written as it stands."""

        tags = {"generation"}  # noqa: RUF012  jinja's own attribute

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    place = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    place.filters["tojson"] = tojson
    place.globals["raise_exception"] = refuse
    place.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return place.from_string(source)
