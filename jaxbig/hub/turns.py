"""Conversations as token ids, with the tokens that the assistant says marked: what fine-tuning on instructions learns.

No template says where an answer begins and ends, so it is found by rendering what comes before it: the text of the
messages up to an answer, with what makes the assistant speak, is how the text of all messages begins, and what is
behind it is the answer. Templates for which that does not hold (they rewrite earlier turns) are refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxbig.errors import UsageError, UserError
from jaxbig.hub.chat import render
from jaxbig.hub.tokenizer import Tokenizer


class Turns(NamedTuple):
    """Attributes: ids: int32 [length], of the whole conversation; answers: bool [length], what the assistant says."""

    ids: np.ndarray
    answers: np.ndarray


def turns(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], which: Literal["all", "last"] = "all", **more: Any
) -> Turns:
    """A conversation through the tokenizer's chat template, its answers marked.

    Args:
        tokenizer: with a template.
        messages: as of `jaxbig.hub.chat.render`; at least one is the assistant's.
        which: "all" answers, or the "last" alone: the conversation then has to end in one.
        **more: other variables of the template.

    Returns:
        ids, those of the whole text; and marks, on each answer's tokens up to the special token that ends it (that
        included, the template's line break behind it not), or up to the turn's end where no special token ends it.
        The tokens before an answer are those that the model is given when it is asked to answer, but where a token
        reaches over the border (an answer that begins with a line break): that one token is the answer's.

    Raises:
        UserError: the template is not prefix-stable: it writes earlier messages otherwise when others follow; or as
            `render`.
        UsageError: no answer, or with "last" none at the end; a `which` that is neither.

    Example:
        >>> from tokenizers import Tokenizer as Core, models, pre_tokenizers
        >>> core = Core(models.WordLevel({"<a>": 0, "<u>": 1, "</s>": 2, "Hi": 3, "Hello": 4, "you": 5}, "</s>"))
        >>> core.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> _ = core.add_special_tokens(["<a>", "<u>", "</s>"])
        >>> source = (
        ...     "{% for m in messages %}{{ '<' + m.role[0] + '>' + m.content + eos_token }}{% endfor %}"
        ...     "{% if add_generation_prompt %}<a>{% endif %}"
        ... )
        >>> said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}]
        >>> found = turns(Tokenizer(core, {"eos": "</s>"}, source), said)
        >>> found.ids.tolist(), found.answers.astype(int).tolist()
        ([1, 3, 2, 0, 4, 5, 2], [0, 0, 0, 0, 1, 1, 1])
    """
    if which not in ("all", "last"):
        raise UsageError(f"which={which!r}; it is 'all' or 'last'")
    said = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if not said or (which == "last" and said[-1] != len(messages) - 1):
        raise UsageError("the conversation has no answer" if not said else "the last message is not the assistant's")
    whole = render(tokenizer, messages, generate=False, **more)
    ids = tokenizer.encode(whole, special=False)
    special = {number for number, token in tokenizer.core.get_added_tokens_decoder().items() if token.special}
    answers = np.zeros(len(ids), bool)
    for i in said if which == "all" else said[-1:]:
        start = _shared(tokenizer, ids, whole, render(tokenizer, messages[:i], generate=True, **more), i)
        end = len(ids)
        if i + 1 < len(messages):
            end = _shared(tokenizer, ids, whole, render(tokenizer, messages[: i + 1], generate=False, **more), i)
        answers[start : _end_of_turn(tokenizer, ids, start, end, special)] = True
    return Turns(np.array(ids, np.int32), answers)


def all_turns(
    tokenizer: Tokenizer, conversations: Iterable[Sequence[Mapping[str, Any]]], which: Literal["all", "last"] = "all",
    **more: Any,
) -> list[Turns]:  # fmt: skip
    """`turns` of many conversations.

    Raises:
        UserError, UsageError: as `turns`, naming the conversation.
    """
    found = []
    for number, messages in enumerate(conversations):
        try:
            found.append(turns(tokenizer, messages, which, **more))
        except UserError as error:
            raise type(error)(f"conversation {number}: {error}") from error
    return found


def _end_of_turn(tokenizer: Tokenizer, ids: list[int], start: int, end: int, special: set[int]) -> int:
    """Behind the special token that ends a turn, where nothing but blanks follows it; else the turn's end."""
    last = max((place + 1 for place in range(start, end) if ids[place] in special), default=end)
    return end if tokenizer.decode(ids[last:end], special=True).strip() else last


def _shared(tokenizer: Tokenizer, ids: list[int], whole: str, begin: str, number: int) -> int:
    """How many of the ids are those of the text's beginning."""
    if not whole.startswith(begin):
        raise UserError(
            f"{tokenizer.where}: the chat template is not prefix-stable at message {number}: what it writes of the "
            "messages before is not how it begins when more follow, so that nothing says which tokens are the answer; "
            "learn the last answer alone (which='last'), or change the template"
        )
    before = tokenizer.encode(begin, special=False)
    same = (place for place, (one, other) in enumerate(zip(before, ids, strict=False)) if one != other)
    return next(same, min(len(before), len(ids)))
