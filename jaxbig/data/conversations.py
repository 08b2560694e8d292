"""Conversations and preferences in the forms that instruction sets have, as messages.

A message is ``{"role": "system" | "user" | "assistant", "content": text}``, which is what chat templates read.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxbig.data.text import read_records
from jaxbig.errors import UserError

Message = dict[str, Any]
Record = Mapping[str, Any]

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
# Fields of sets that ask once and are answered once.
PAIRS = (("question", "answer"), ("prompt", "completion"), ("prompt", "response"))
FORMS = "messages; conversations; instruction (and input) with output; " + "; ".join(" with ".join(p) for p in PAIRS)


class Preference(NamedTuple):
    """Two answers to one prompt.

    Attributes:
        prompt: the messages before them.
        chosen, rejected: the better answer and the worse one, messages of the assistant.
    """

    prompt: list[Message]
    chosen: Message
    rejected: Message


def read_conversations(path: str | os.PathLike, hint: str = "") -> list[list[Message]]:
    """The conversations in a file of jsonl or JSON, gzipped or not.

    Args:
        path: the file. Each record has, in this order of preference:

            - ``messages``: a list of ``{"role", "content"}``, kept as they are;
            - ``conversations`` (ShareGPT): a list of ``{"from": "human" | "gpt" | "system", "value"}``, with a
              ``system`` beside it or not;
            - ``instruction``, ``input`` (may be missing or empty) and ``output`` (Alpaca), with a ``system`` or not:
              the user says the instruction, a blank line, and the input;
            - ``question`` and ``answer``, ``prompt`` and ``completion``, or ``prompt`` and ``response``.
        hint: how to get the file where it is not there.

    Returns:
        for each record its messages. Each conversation has an answer of the assistant.

    Raises:
        UserError: as `read_records`; a record of another form, a role or text that is none, nobody answers.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.jsonl"
        >>> _ = path.write_text('{"instruction": "Add.", "input": "1 + 1", "output": "2"}')
        >>> read_conversations(path)
        [[{'role': 'user', 'content': 'Add.\\n\\n1 + 1'}, {'role': 'assistant', 'content': '2'}]]
    """
    return _read(path, hint, _conversation)


def read_preferences(path: str | os.PathLike, hint: str = "") -> list[Preference]:
    """The preferences in a file of jsonl or JSON, gzipped or not.

    Args:
        path: the file. Each record has ``chosen`` and ``rejected``, each a text, a message, or a list of messages that
            begins with the prompt or is one message long; and what comes before them in one of the forms of
            `read_conversations`, without the answer. TRL's ``prompt`` may be a text or a list of messages; it may be
            missing where both lists begin with it.
        hint: how to get the file where it is not there.

    Returns:
        for each record its preference.

    Raises:
        UserError: as `read_conversations`; the two answers belong to different prompts.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.jsonl"
        >>> _ = path.write_text('{"prompt": "1 + 1?", "chosen": "2", "rejected": {"from": "gpt", "value": "3"}}')
        >>> read_preferences(path)[0].rejected
        {'role': 'assistant', 'content': '3'}
    """
    return _read(path, hint, _preference)


def few_shot(shots: Sequence[Sequence[Message]], question: Sequence[Message]) -> list[Message]:
    """A question after examples of how to answer: what a model is to learn in its context alone.

    Args:
        shots: conversations with their answers.
        question: messages without the answer. Its system message, if it has one, comes first; those of the shots are
            left out.

    Example:
        >>> say = lambda role, content: {"role": role, "content": content}
        >>> asked = few_shot([[say("user", "1 + 1?"), say("assistant", "2")]], [say("user", "1 + 2?")])
        >>> [message["content"] for message in asked]
        ['1 + 1?', '2', '1 + 2?']

    Reference: Brown et al. (2020), "Language models are few-shot learners", arXiv:2005.14165. Deviation: each example
    is a turn of the chat, where the paper has one running text.
    """
    first = [dict(message) for message in question if message["role"] == "system"]
    rest = [dict(message) for message in question if message["role"] != "system"]
    before = [dict(message) for shot in shots for message in shot if message["role"] != "system"]
    return [*first, *before, *rest]


def _read(path: str | os.PathLike, hint: str, made: Callable[[Record], Any]) -> list[Any]:
    found = []
    for number, record in enumerate(read_records(path, hint), 1):
        try:
            found.append(made(record))
        except UserError as error:
            raise UserError(f"{path}: record {number}: {error}; mend or remove it") from None
    return found


def _conversation(record: Record) -> list[Message]:
    messages = _messages(record)
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError("nobody answers: no message is the assistant's")
    return messages


def _preference(record: Record) -> Preference:
    missing = [name for name in ("chosen", "rejected") if not record.get(name)]
    if missing:
        raise UserError(f"has no {' and no '.join(missing)}, only {', '.join(record) or 'nothing'}")
    before = _messages({name: it for name, it in record.items() if name not in ("chosen", "rejected", "output")}, True)
    chosen, rejected = (_answer(record[name], before) for name in ("chosen", "rejected"))
    if chosen[0] != rejected[0]:
        raise UserError("chosen and rejected answer different prompts")
    if not chosen[0]:
        raise UserError("there is no prompt")
    return Preference(*chosen, rejected[1])


def _answer(given: Any, before: list[Message]) -> tuple[list[Message], Message]:
    """(prompt, answer) out of a text, a message, or messages."""
    if isinstance(given, str):
        return before, {"role": "assistant", "content": given}
    listed = [_message(each) for each in (given if isinstance(given, list) else [given])]
    if listed[-1]["role"] != "assistant":
        raise UserError(f"its last message is the {listed[-1]['role']}'s, not the assistant's")
    prompt, answer = listed[:-1], listed[-1]
    if prompt and before and prompt != before:
        raise UserError("the messages before an answer are not the prompt's")
    return prompt or before, answer


def _messages(record: Record, unanswered: bool = False) -> list[Message]:
    """The messages of a record in any form; `unanswered`: without the fields that answer."""
    said = [{"role": "system", "content": _text(record["system"])}] if record.get("system") else []
    for name in ("messages", "conversations", "prompt")[: 3 if unanswered else 2]:
        if isinstance(record.get(name), list):
            return [*said, *map(_message, record[name])]
    if "instruction" in record:
        parts = [_text(record["instruction"]), _text(record.get("input") or "")]
        pair = "\n\n".join(part for part in parts if part), "output"
    else:
        known = [pair for pair in PAIRS if pair[0] in record and (unanswered or pair[1] in record)]
        if not known and unanswered:
            return said
        if not known:
            raise UserError(f"is of no known form; it has {', '.join(record) or 'nothing'}, the forms are {FORMS}")
        pair = _text(record[known[0][0]]), known[0][1]
    said.append({"role": "user", "content": pair[0]})
    if unanswered:
        return said
    if pair[1] not in record:
        raise UserError(f"has no {pair[1]}, only {', '.join(record)}")
    return [*said, {"role": "assistant", "content": _text(record[pair[1]])}]


def _message(given: Any) -> Message:
    if not isinstance(given, Mapping):
        raise UserError(f"a message is {given!r:.60}; it has to be an object with role and content")
    if "from" in given and "value" in given:
        role, content, more = given["from"], given["value"], {}
    elif "role" in given and "content" in given:
        role, content = given["role"], given["content"]
        more = {name: it for name, it in given.items() if name not in ("role", "content")}
    else:
        raise UserError(f"a message has {', '.join(given) or 'nothing'}; it has to have role and content")
    role = ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ("system", "user", "assistant", "tool"):
        raise UserError(f"a message's role is {role!r:.60}; it has to be system, user, assistant or tool")
    return {"role": role, "content": _text(content), **more}


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise UserError(f"{given!r:.60} is no text")
    return given
