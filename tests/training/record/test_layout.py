"""Mixtures, names and lists in lines of 100 cells, whatever the domains are called."""

import re

import numpy as np
import pytest

from training.record import keys, layout

MIXTURES = ("best", "default", "uniform", "best observed")


def test_few_domains_stand_beside_each_other() -> None:
    shares = {
        "best": {"web": 0.6, "code": 0.3, "百科": 0.1},
        "best observed": {"web": 0.5, "code": 0.25, "百科": 0.25},
    }
    beside = {"best": "3.8855 [3.8206, 3.9504]", "best observed": "3.9053 [3.8411, 3.9695]"}
    assert layout.mixtures(shares, beside, heads=("mixture", "predicted loss")) == [
        "mixture            web    code    百科   predicted loss",
        "best             0.600   0.300   0.100   3.8855 [3.8206, 3.9504]",
        "best observed    0.500   0.250   0.250   3.9053 [3.8411, 3.9695]",
    ]


def test_more_domains_are_rows_and_the_long_tail_is_summed_up() -> None:
    large = {"pile/github": 0.5, "books: fiction and long reports": 0.3, "wiki": 0.1}
    small = {f"a domain of the long tail, number {i}": 0.1 / 25 for i in range(25)}
    default = {**dict.fromkeys(large, 0.0), **small, "wiki": 0.9}
    uniform = dict.fromkeys(default, 1 / 28)
    shares = {"best": {**large, **small}, "default": default, "uniform": uniform}
    assert layout.mixtures(shares, {"best": "2.5"}, heads=("mixture", "loss"), exact="see x") == [
        "mixture          loss",
        "best             2.5",
        "default",
        "uniform",
        "",
        "domain                                    best  default  uniform",
        "pile/github                              0.500    0.000    0.036",
        "books: fiction and long reports          0.300    0.000    0.036",
        "wiki                                     0.100    0.900    0.036",
        "25 further domains, each at most 0.004   0.100    0.100    0.893",
        "see x",
    ]


@pytest.mark.parametrize("longest", [8, 30, 200])
@pytest.mark.parametrize("count", [2, 5, 8, 24, 64, 120])
def test_every_line_fits_and_every_share_is_accounted_for(count: int, longest: int) -> None:
    rng = np.random.default_rng(count + longest)
    domains = [f"{'x' * rng.integers(longest - 7)}: {i:03d}/é" for i in range(count)]
    domains[0] = "y" * longest
    assert all(keys.name_fault(d) is None for d in domains)
    names = [*MIXTURES, *(f"next-{i:08x}" for i in range(7))]
    rows = [*rng.dirichlet(np.full(count, 0.3), len(names) - 1), np.full(count, 1 / count)]
    shares = {
        n: dict(zip(domains, r.tolist(), strict=True)) for n, r in zip(names, rows, strict=True)
    }
    lines = layout.mixtures(shares, dict.fromkeys(names, "3.8855 [3.8206, 3.9504]"))
    assert max(map(layout.cells, lines)) <= layout.WIDTH
    if "" not in lines:
        tables = [[re.findall(r"[01]\.\d{3}(?=\s)", line) for line in lines[1:]]]
        totals = np.array(tables[0], float).sum(axis=1)
        assert count < 8
    else:
        blocks = "\n".join(lines[lines.index("") + 1 :]).split("\n\n")
        labels, sums = zip(*(read(block) for block in blocks), strict=True)
        assert len(blocks) > 1  # eleven mixtures do not fit beside each other
        assert set(labels) == {labels[0]}
        assert len(set(labels[0])) == len(labels[0])
        further = re.match(r"(\d+) further domains", labels[0][-1])
        assert len(labels[0]) - bool(further) + int(further[1] if further else 0) == count
        totals = np.concatenate(sums)
    assert totals == pytest.approx(np.ones(len(names)), abs=0.0005 * count)


def read(block: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The labels of a block's rows and the sums of its columns."""
    header, *rows = block.splitlines()
    columns = len(re.split(r"\s{2,}", header)) - 1
    cells = [row.rsplit(maxsplit=columns) for row in rows]
    return tuple(label for label, *_ in cells), np.array([c for _, *c in cells], float).sum(axis=0)


def test_a_long_name_is_cut_and_stays_unique() -> None:
    names = [f"{'a' * 30}{i:03d}{'b' * 30}" for i in range(12)] + ["web", "維基百科" * 12]
    cut = layout.short(names)
    assert len(set(cut.values())) == len(names)
    assert max(map(layout.cells, cut.values())) <= layout.NAME
    assert cut["web"] == "web"
    assert cut[names[0]] == "a" * 16 + "…" + "b" * 15


def test_a_list_names_the_first_and_counts_the_others() -> None:
    assert layout.some(["a", "b"], 1) == "a, b"
    assert layout.some(["a", "b", "c"], 1) == "a and 2 more"
    lines = layout.listing([f"domain-{i}: 0.1" for i in range(9)])
    assert max(map(len, lines)) <= layout.WIDTH
    assert " ".join(line.strip() for line in lines).count(": 0.1,") == 8
    ranges = {"web": "0.1–0.2", "code": "0.0–0.1"}
    assert layout.grid(ranges) == ["  web 0.1–0.2, code 0.0–0.1"]
    many = layout.grid({**ranges, **{f"a longer name {i}": "0.0–0.1" for i in range(4)}})
    assert (
        many[0] == "  web             0.1–0.2   code            0.0–0.1   a longer name 0 0.0–0.1"
    )
    assert len(many) == 2


def test_a_description_is_cut_between_lines_and_says_where_the_rest_is() -> None:
    assert layout.description(["one", "two"]) == "```\none\ntwo\n```"
    text = layout.description(["0123456789" * 9] * 100)
    assert len(text) <= keys.TAG_LIMIT
    assert text.endswith("0123456789\n… and more in the artifact report.txt\n```")
