"""Answers that end in a number, as GSM8K's: the number, and whether it is the right one."""

import re
from decimal import Decimal, InvalidOperation

_MARKED = re.compile(r"####\s*(.*)")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")


def final_number(text: str) -> Decimal | None:
    """The number that a text ends in: the first one behind "####" where that stands, else the last of the text.

    Args:
        text: what was answered. Thousands' commas, dollars and zeros behind the point do not count.

    Returns:
        the number, or None where there is none.

    Example:
        >>> final_number("48 / 2 = 24, so 72 in all.\\n#### 72"), final_number("It costs $1,250.00."), final_number("?")
        (Decimal('72'), Decimal('1250'), None)

    Reference: Cobbe et al. (2021), "Training verifiers to solve math word problems", arXiv:2110.14168, whose answers
    end in "#### number". Deviation: a text without the mark is read too, as evaluations of chat models do.
    """
    marked = _MARKED.search(text)
    found = _NUMBER.findall(marked[1] if marked else text)
    if not found:
        return None
    try:
        number = Decimal((found[0] if marked else found[-1]).replace(",", "").replace("$", ""))
    except InvalidOperation:  # more digits than a Decimal holds
        return None
    return number.quantize(Decimal(1)) if number == number.to_integral_value() else number.normalize()


def same_number(answer: str, reference: str) -> bool:
    """Whether two texts end in the same number; an answer without a number is wrong.

    Example:
        >>> same_number("So she has 72.", "#### 72"), same_number("I do not know.", "#### 72")
        (True, False)
    """
    found = final_number(answer)
    return found is not None and found == final_number(reference)
