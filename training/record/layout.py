"""Layout of mixtures, names and long lists in text of a fixed width.

The width is the same on every terminal and in log files.
"""

import itertools
import math
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from training.record.keys import TAG_LIMIT

Mixtures = Mapping[str, Mapping[str, float]]  # name → domain → proportion

WIDTH = 100  # cells per line
COLUMN = 8  # minimum cells of a number
FIRST = 14  # minimum cells of the first column of a wide table
NAME = 32  # maximum cells of a name in a tall table or a list
ROWS = 40  # maximum number of domains that a tall table or a list names
SMALL = 0.005  # smaller proportions belong to the long tail
REPORT = "report.txt"  # the artifact that holds a whole report


def cells(text: str) -> int:
    """Number of terminal columns that a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def short(names: Sequence[str], width: int = NAME) -> dict[str, str]:
    """Each name as tables show it: long names are cut in the middle and stay unique."""
    shortened = {name: name for name in names if cells(name) <= width}
    taken = set(shortened)
    for name in names:
        if name not in shortened:
            shortened[name] = next(cut for cut in _cuts(name, width) if cut not in taken)
            taken.add(shortened[name])
    return shortened


def _cuts(name: str, width: int) -> Iterator[str]:
    for number in itertools.count(1):
        middle = "…" if number == 1 else f"…{number}…"
        room = width - cells(middle)
        head = _first(name, room - room // 2)
        yield head + middle + _first(name[::-1], room // 2)[::-1]


def _first(text: str, width: int) -> str:
    """The longest prefix of a text that fits."""
    ends = itertools.accumulate(cells(c) for c in text)
    return text[: sum(end <= width for end in ends)]


def padded(text: str, width: int) -> str:
    """A text padded on the right to a column's width."""
    return text + " " * (width - cells(text))


def _right(text: str, width: int) -> str:
    return " " * (width - cells(text)) + text


def count(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names and the number of the others."""
    cut = short(names)
    more = len(names) - most
    listed = [cut[name] for name in names]
    return ", ".join(listed) if more < 2 else f"{', '.join(listed[:most])} and {more} more"


def listing(parts: Sequence[str], indent: str = "  ") -> list[str]:
    """Parts separated by commas, wrapped to the width."""
    lines: list[str] = []
    for i, part in enumerate(parts):
        comma = i < len(parts) - 1
        if lines and cells(f"{lines[-1]} {part}") + comma <= WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(indent + part)
        lines[-1] += "," if comma else ""
    return lines


def grid(values: Mapping[str, str], indent: str = "  ") -> list[str]:
    """Values by name: on one line if they fit, else in aligned columns."""
    line = indent + ", ".join(f"{name} {value}" for name, value in values.items())
    if cells(line) <= WIDTH:
        return [line]
    first, second = (max(map(cells, texts)) for texts in (values, values.values()))
    parts = [f"{padded(name, first)} {padded(value, second)}" for name, value in values.items()]
    columns = max(1, (WIDTH - len(indent) + 3) // (first + second + 4))
    rows = (parts[i : i + columns] for i in range(0, len(parts), columns))
    return [(indent + "   ".join(row)).rstrip() for row in rows]


def mixtures(
    shares: Mixtures,
    beside: Mapping[str, str] | None = None,
    *,
    heads: tuple[str, str] = ("mixture", ""),
    decimals: int = 3,
    exact: str = "",
) -> list[str]:
    """A table of mixtures; `beside` has a text to show next to each.

    Mixtures are rows if all domains fit side by side, else columns. In columns, domains are sorted
    by the first mixture's proportions, and a long tail of small ones is summed up. `exact` is a
    line below such a table that says where the exact proportions are.
    """
    beside = beside or {}
    domains = list(next(iter(shares.values())))
    wide = _wide(shares, domains, beside, heads, decimals)
    if max(map(cells, wide)) <= WIDTH:
        return wide
    above = [*_wide(shares, [], beside, heads, decimals), ""] if beside else []
    return [*above, *_tall(shares, domains, decimals), *([exact] if exact else [])]


def _wide(
    shares: Mixtures,
    domains: Sequence[str],
    beside: Mapping[str, str],
    heads: tuple[str, str],
    decimals: int,
) -> list[str]:
    first = max(FIRST, *(cells(name) + 1 for name in (heads[0], *shares)))
    widths = {d: max(COLUMN, decimals + 4, cells(d) + 2) for d in domains}
    lines = [padded(heads[0], first) + "".join(_right(d, w) for d, w in widths.items())]
    for name, mixture in shares.items():
        numbers = (f"{mixture[d]:>{w}.{decimals}f}" for d, w in widths.items())
        lines.append(padded(name, first) + "".join(numbers))
    texts = [heads[1], *(beside.get(name, "") for name in shares)]
    return [f"{line}   {text}".rstrip() for line, text in zip(lines, texts, strict=True)]


def _tall(shares: Mixtures, domains: Sequence[str], decimals: int) -> list[str]:
    listed, tail = _split(shares, domains)
    names, titles = short(domains), short(list(shares), WIDTH // 4)
    rows = [(names[d], {m: mixture[d] for m, mixture in shares.items()}) for d in listed]
    if tail:
        most = max(mixture[d] for mixture in _uneven(shares) for d in tail)
        label = f"{len(tail)} further domains, each at most {_rounded_up(most, decimals)}"
        sums = {m: math.fsum(mixture[d] for d in tail) for m, mixture in shares.items()}
        rows.append((label, sums))
    first = max(cells(label) for label in ("domain", *(label for label, _ in rows)))
    widths = {m: max(COLUMN, decimals + 4, cells(title) + 2) for m, title in titles.items()}
    lines: list[str] = []
    for block in _blocks(widths, WIDTH - first):
        lines.append(padded("domain", first) + "".join(_right(titles[m], widths[m]) for m in block))
        for label, values in rows:
            numbers = (f"{values[m]:>{widths[m]}.{decimals}f}" for m in block)
            lines.append(padded(label, first) + "".join(numbers))
        lines.append("")
    return lines[:-1]


def _split(shares: Mixtures, domains: Sequence[str]) -> tuple[list[str], list[str]]:
    """The domains to list, by falling proportion in the first mixture, and those of the long tail.

    A domain is ranked by its proportion in the first mixture or its average, whichever is larger.
    """
    first, uneven = next(iter(shares.values())), _uneven(shares)
    counts = {d: max(first[d], sum(m[d] for m in uneven) / len(uneven)) for d in domains}
    ranked = sorted(domains, key=lambda d: -counts[d])
    tail = {d for i, d in enumerate(ranked) if i >= ROWS or counts[d] < SMALL}
    if len(tail) < 2:
        tail = set()
    ordered = sorted(domains, key=lambda d: -first[d])
    return [d for d in ordered if d not in tail], [d for d in ordered if d in tail]


def _uneven(shares: Mixtures) -> list[Mapping[str, float]]:
    """The mixtures without uniform ones, which do not show which domains matter."""
    every = list(shares.values())
    return [m for m in every if max(m.values()) - min(m.values()) > SMALL / 1000] or every


def _rounded_up(share: float, decimals: int) -> str:
    scale = 10**decimals
    return f"{math.ceil(share * scale - 1e-6) / scale:.{decimals}f}"


def _blocks(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """Blocks of as many columns as fit side by side."""
    blocks: list[list[str]] = [[]]
    for name, width in widths.items():
        if blocks[-1] and sum(widths[m] for m in blocks[-1]) + width > room:
            blocks.append([])
        blocks[-1].append(name)
    return blocks


def description(lines: Sequence[str]) -> str:
    """A report as the description of an MLflow run, cut if long; an artifact holds all of it."""
    start, end, more = "```\n", "\n```", f"\n… and more in the artifact {REPORT}"
    text = "\n".join(lines)
    if len(start + text + end) > TAG_LIMIT:
        room = TAG_LIMIT - len(start + more + end)
        text = text[: text.rfind("\n", 0, room)] + more
    return start + text + end


def short_count(number: float) -> str:
    """A number of parameters or tokens to three digits: 70M, 1.5B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def duration(hours: float) -> str:
    """A time in words."""
    seconds = 3600 * hours
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.3g} {name}s"
    return f"{seconds:.3g} seconds"


def wrapped(text: str, bullet: str = "") -> list[str]:
    """A text in lines of at most `WIDTH`, below each other after a bullet."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )
