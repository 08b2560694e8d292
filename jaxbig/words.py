"""The words of a command line: argparse, with one clear line in place of its usage text when something is wrong."""

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from jaxbig.errors import UsageError


class Words(argparse.ArgumentParser):
    """A parser whose errors are `UsageError`s that name the nearest option.

    Example:
        >>> words = Words("jaxbig compare RUN...")
        >>> _ = words.add_argument("--out")
        >>> words.read(["--ot", "a.png"])
        Traceback (most recent call last):
            ...
        jaxbig.errors.UsageError: unknown option --ot; did you mean --out?
    """

    def __init__(self, usage: str):
        super().__init__(add_help=False, allow_abbrev=False)
        self.how = usage

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The values that the words give.

        Raises:
            UsageError: an unknown option, a missing or an ill-typed value.
        """
        found, unknown = self.parse_known_args(list(words))
        if unknown:
            option = unknown[0].split("=")[0]
            if not option.startswith("-"):
                raise UsageError(f"unexpected argument {option!r}; it is `{self.how}`")
            near = difflib.get_close_matches(option, self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else "`--help` lists them"
            raise UsageError(f"unknown option {option}; {hint}")
        return found

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; it is `{self.how}`")
