"""Numbers as the report shows them."""

import math
from collections.abc import Mapping

from training.record import layout

NO_VALUE = "–"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PLAIN = (1e-4, 1e5)  # numbers from and to here are written without an exponent


def fixed(value: float, decimals: int = 4, *, sign: bool = False) -> str:
    """A number with so many decimals and a true minus."""
    return f"{value:{'+' if sign else ''},.{decimals}f}".replace("-", "−")


def scientific(value: float, digits: int = 3) -> str:
    """A number of so many digits: 0.0123, 1.33 × 10¹³."""
    if not math.isfinite(value):
        return NO_VALUE
    if value == 0 or PLAIN[0] <= abs(value) < PLAIN[1]:
        return f"{value:.{digits}g}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".replace("-", "−", value < 0).split("e")
    return f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(SUPERSCRIPTS)}"


def listed(values: Mapping[str, float], decimals: int = 4, *, sign: bool = False) -> str:
    """`web 0.3, code 0.7`."""
    return ", ".join(f"{name} {fixed(v, decimals, sign=sign)}" for name, v in values.items())


def joined(names: list[str], most: int = 8, word: str = "and") -> str:
    """`web, code and papers`; of many, the first few and the number of the others."""
    if len(names) > most:
        return layout.some(names, most)
    cut = layout.short(names)
    shown = [cut[name] for name in names]
    return f" {word} ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `11th`."""
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
