"""Domains made of text in the installed packages, which need no download.

A document is the text of one file, at most `FILE_CAP` characters of it; duplicates are dropped.
Python sources have their docstrings removed: these belong to the documentation domain, so no text
is in both.

A question asks how a document goes on after a prompt from its middle. Four documents make four
questions, whose choices are the words that follow in each of them. Questions are made from the last
document on, which a domain with a limit reads last.
"""

import ast
import hashlib
import itertools
import os
import re
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.record.garbage import collection_paused

FILE_CAP = 30_000  # characters per document
DOCSTRING_MIN = 300  # characters; shorter docstrings are signatures rather than prose
DOCUMENT_MIN = 200  # characters
PROMPT, ANSWER = 64, 32  # characters of a question, cut to whole words
CHOICES = 4
WORDS = 13  # of a question, without which it cannot be found within training text

SUFFIXES = {
    "python": (".py",),
    "cpp": (".h", ".hpp", ".cuh", ".cpp", ".cc"),
    "docs": (".py", ".md", ".rst", "METADATA"),
    "web": (".js", ".css", ".html"),
    "tables": (".csv", ".dat", ".afm", ".decTest"),
    "stubs": (".pyi",),
}


def files(kind: str) -> list[Path]:
    """The candidate files of a kind, in an order that depends only on their relative paths."""
    roots = {Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")}
    paths: dict[str, Path] = {}
    for root in sorted(roots):
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [s for s in subfolders if s not in ("site-packages", "__pycache__")]
            for name in names:
                if name.endswith(SUFFIXES[kind]):
                    path = Path(folder, name)
                    paths[path.relative_to(root).as_posix()] = path
    return [paths[key] for key in sorted(paths, key=_digest)]


def documents(kind: str, *, last_first: bool = False) -> Iterator[str]:
    """The distinct documents of a kind; files that are not UTF-8 text are skipped."""
    seen = set()
    paths = files(kind)
    for path in reversed(paths) if last_first else paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if path.suffix == ".py":
            text = prose(text) if kind == "docs" else code(text)
        text = text[:FILE_CAP]
        digest = _digest(text)
        if len(text) >= DOCUMENT_MIN and digest not in seen:
            seen.add(digest)
            yield text


def questions(kind: str) -> Iterator[dict[str, Any]]:
    """Rows with prompt, choices and label, made from the documents of a kind."""
    texts = documents(kind, last_first=True)
    pieces = (piece for text in texts if (piece := _continuation(text)))
    while len(group := list(itertools.islice(pieces, CHOICES))) == CHOICES:
        choices = tuple(answer for _, answer in group)
        if len(set(choices)) == CHOICES:
            for label, (prompt, _) in enumerate(group):
                yield {"prompt": prompt, "choices": choices, "label": label}


def _continuation(text: str) -> tuple[str, str] | None:
    """Words from the middle of a document and the words after them, each with the space before it;
    None where they are few or not ASCII."""
    middle = len(text) // 2
    piece = text[middle : middle + 2 * (PROMPT + ANSWER)]
    words = re.findall(r"\s*\S+", piece)[1:-1]
    lengths = list(itertools.accumulate(map(len, words)))
    count = sum(length <= PROMPT for length in lengths)
    end = lengths[count - 1] if count else 0
    prompt = "".join(words[:count]).lstrip()
    answer = "".join(words[count : sum(length <= end + ANSWER for length in lengths)])
    few = 2 * len(answer) < ANSWER or len(re.findall(r"[a-zA-Z0-9]+", prompt + answer)) < WORDS
    return None if few or not piece.isascii() else (prompt, answer)


def code(source: str) -> str:
    """Python source without its docstrings; unchanged if it does not parse."""
    lines = source.splitlines(keepends=True)
    for node in _docstrings(source):
        assert node.end_lineno is not None
        for i in range(node.lineno - 1, node.end_lineno):
            lines[i] = ""
    return "".join(lines)


def prose(source: str) -> str:
    """The long docstrings of a Python source."""
    texts = [ast.literal_eval(node) for node in _docstrings(source)]
    return "\n\n".join(text for text in texts if len(text) >= DOCSTRING_MIN)


def _docstrings(source: str) -> Iterator[ast.Constant]:
    """Docstrings in the order of `ast.walk`; for speed, only statements are visited."""
    try:
        tree = _parsed(source)
    except (SyntaxError, ValueError):
        return
    todo: deque[ast.AST] = deque([tree])
    while todo:
        node = todo.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first.value
        for key in ("cases", "body", "handlers", "orelse", "finalbody"):
            todo.extend(inner if isinstance(inner := getattr(node, key, ()), list) else ())


def _parsed(source: str) -> ast.Module:
    """The syntax tree, parsed without garbage collection, which would walk it repeatedly."""
    with collection_paused(), warnings.catch_warnings(action="ignore", category=SyntaxWarning):
        return ast.parse(source)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
