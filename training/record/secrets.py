"""Masking of passwords and tokens.

All text that leaves a process goes through `masked`: printed lines, error messages, and texts
written to MLflow. It masks passwords, recognised by the syntax of URLs, and the values of known
secrets wherever they occur.
"""

import base64
import functools
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus

MASK = "***"
SHORTEST = 4  # characters of a secret; masking shorter ones, or numbers, would garble most texts
WORD = 8  # secrets of up to this many characters are masked only as whole words

VARIABLES = (  # environment variables whose values are secrets
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "DATABRICKS_TOKEN",
    "DATABRICKS_CLIENT_SECRET",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "PGPASSWORD",
    "MYSQL_PWD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_CLIENT_SECRET",
)
URL_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")  # URLs whose passwords are secrets

_WEB = ("http", "https", "ftp", "ftps")
_USER = re.compile(  # a number and a slash after the colon are a port and a path
    r"""(?P<scheme>[A-Za-z][\w+.-]{0,30})://(?P<user>[^\s"'<>/?\#:@]*)"""
    r"""(?::(?P<password>(?!\d+[/?\#])[^\s"'<>@]*(?:@[^\s"'<>@?]*)*))?@"""
)
_KEYS = r"password|passwd|pwd|sslpassword"
_TOKENS = r"token|access_token|auth_token|api_key|apikey|secret|client_secret|sig|signature"
_PARAMETER = re.compile(
    rf"""(?i)(?P<key>(?<![\w-])(?:pg)?(?:{_KEYS})=|[?&](?:{_TOKENS})=)"""
    r"""(?:'[^']*'|"[^"]*"|[^\s&;,"'<>\#]+)"""
)

_remembered: set[str] = set()


def masked(text: str) -> str:
    """The text without passwords and tokens."""
    for pattern in _patterns(frozenset(_known())):
        text = pattern.sub(MASK, text)
    text = _USER.sub(_without_password, text)
    return _PARAMETER.sub(rf"\g<key>{MASK}", text)


def remember(url: str | None) -> None:
    """From now on, mask the passwords of this URL wherever they occur."""
    _remembered.update(_passwords(url or ""))


def forget() -> None:
    """Mask no longer what `remember` was given."""
    _remembered.clear()


def guard() -> None:
    """Mask everything that this process prints from now on, and escape unencodable characters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # such as φ in ASCII
        if not hasattr(stream.write, "unmasked"):
            stream.write = _Masking(stream.write)  # type: ignore[method-assign]


class _Masking:
    """A stream's `write` that masks; the rest of the stream is unchanged."""

    def __init__(self, unmasked: Any) -> None:
        self.unmasked = unmasked

    def __call__(self, text: str) -> int:
        self.unmasked(masked(text))
        return len(text)


def _known() -> Iterator[str]:
    """Secrets from the environment and from `remember`."""
    yield from _remembered
    yield from filter(None, map(os.environ.get, VARIABLES))
    for url in filter(None, map(os.environ.get, URL_VARIABLES)):
        yield from _passwords(url)


def _passwords(url: str) -> Iterator[str]:
    """The secrets in a URL: its password, for each way to parse it, and those of its query."""
    scheme, _, rest = url.partition("://") if "://" in url else ("", "", url)
    front, _, query = rest.partition("?")
    for end in {front.find("@"), front.rfind("@"), rest.find("@"), rest.rfind("@")} - {-1}:
        user, _, password = rest[:end].partition(":")
        if "/" not in user:
            token = scheme in _WEB and password in ("", "x-oauth-basic")
            yield user if token else password
            pair = f"{unquote(user)}:{unquote(password)}"
            yield base64.b64encode(pair.encode()).decode()  # as HTTP sends it
    for key, value in parse_qsl(query):
        if re.fullmatch(f"{_KEYS}|{_TOKENS}", key, re.IGNORECASE):
            yield value


@functools.lru_cache(maxsize=16)
def _patterns(known: frozenset[str]) -> list[re.Pattern[str]]:
    """A pattern for each way to write each secret, the longest first."""
    ways = {
        way
        for secret in known
        for plain in (secret, unquote(secret), unquote_plus(secret))
        for way in (
            plain,
            quote(plain, safe=""),
            quote(plain),
            quote_plus(plain),
            json.dumps(plain)[1:-1],
            repr(plain)[1:-1],
        )
        if len(plain) >= SHORTEST and not plain.isdigit()
    }
    return [_pattern(way) for way in sorted(ways, key=len, reverse=True)]


def _pattern(secret: str) -> re.Pattern[str]:
    if len(secret) > WORD and not secret.isalpha():
        return re.compile(re.escape(secret))
    before, after = r"(?:(?<!\w)|(?<=%[0-9A-Fa-f]{2}))", r"(?!\w)"
    return re.compile(before + re.escape(secret) + after)


def _without_password(url: re.Match[str]) -> str:
    """`scheme://user:***@`; for web addresses, where the user may be a token, `scheme://***@`."""
    scheme, user, password = url["scheme"], url["user"], url["password"]
    if scheme.lower().rpartition("+")[2] in _WEB:
        return f"{scheme}://{MASK}@"
    return f"{scheme}://{user}@" if password is None else f"{scheme}://{user}:{MASK}@"
