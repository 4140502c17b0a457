"""Who may call the page, and what the command says of a bad address."""

import socket

import pytest

from pipelines.explorer import server
from training.record.errors import InputError

HERE = "127.0.0.1:8050"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"Host": HERE}, ""),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, ""),  # a tunnel
        ({"Host": "[::1]:8050"}, ""),
        ({"Host": HERE, "Origin": f"http://{HERE}", "Sec-Fetch-Site": "same-origin"}, ""),
        (
            {"Host": HERE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"},
            "",
        ),  # a link
        ({"Host": "evil.example:8050"}, "'evil.example:8050' is not a name of this page"),
        ({"Host": "127.0.0.1.evil.example"}, "not a name of this page"),
        ({"Host": "["}, "not a name of this page"),
        ({}, "'' is not a name of this page"),
        ({"Host": HERE, "Origin": "http://127.0.0.1:5000"}, "'http://127.0.0.1:5000' is not this"),
        ({"Host": HERE, "Origin": "null"}, "'null' is not this page"),
        ({"Host": HERE, "Origin": "http://["}, "the origin 'http://[' is not this page"),
        ({"Host": HERE, "Sec-Fetch-Site": "same-site"}, "a page of another origin"),
        ({"Host": HERE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}, "another"),
    ],
)
def test_only_the_page_itself_is_answered(headers: dict[str, str], why: str) -> None:
    refused = server.refusal("GET", headers, "127.0.0.1")
    assert (why in refused) if why else not refused


def test_a_link_cannot_post() -> None:
    headers = {"Host": HERE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert server.refusal("POST", headers, "127.0.0.1")


def test_a_page_for_others_has_addresses_and_its_own_names() -> None:
    for name, known in (
        ("10.0.0.7:8050", True), (f"{socket.gethostname()}:8050", True), ("evil.example", False),
    ):  # fmt: skip
        assert (not server.refusal("GET", {"Host": name}, "0.0.0.0")) == known


def test_a_bad_address_is_named() -> None:
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert server.url("127.0.0.1", taken) == f"http://127.0.0.1:{port}/"
        with pytest.raises(InputError, match=f"port: {port} is taken; give another one, or 0"):
            server.listen("127.0.0.1", port)
    for host, port, message in (
        ("no host", 0, "host: 'no host' is not an address"),
        ("192.0.2.1", 0, "host: '192.0.2.1' is not an address of this machine"),
        ("127.0.0.1", 70000, "port: 70000 is not from 0 to 65535"),
    ):
        with pytest.raises(InputError, match=message):
            server.listen(host, port)


def test_loopback() -> None:
    assert all(map(server.is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(server.is_loopback, ("0.0.0.0", "10.0.0.1", "::", "example.com")))
