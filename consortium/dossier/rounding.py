"""Rounding as the Model Documentation Form asks for it."""

from __future__ import annotations

import math


def significant(number: float, digits: int = 2) -> str:
    """A number rounded to significant figures, as the Model Documentation Form writes them: ``7.3*10^10``."""
    if not number:
        return "0"
    exponent = math.floor(math.log10(abs(number)))
    mantissa = round(number / 10**exponent, digits - 1)
    if abs(mantissa) >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    if -3 <= exponent < 4:
        return f"{mantissa * 10**exponent:.{max(digits - 1 - exponent, 0)}f}"
    return f"{mantissa:.{digits - 1}f}*10^{exponent}"
