"""Serve the page to its own address alone."""

import errno
import ipaddress
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import dash
import flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from training.record.errors import InputError

LARGEST_PORT = 65535
LOCAL = "localhost"
LARGEST_BODY = 2**20  # bytes of a request
HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
POLICY = (  # nothing comes from another host, and no script but the page's own runs
    "default-src 'self'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _Silent(WSGIRequestHandler):
    """Prints nothing."""

    def log(self, type: str, message: str, *args: object) -> None:
        """Nothing."""


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address; port 0 takes a free one.

    Raises InputError for a port that is taken and for a host that is not of this machine.
    """
    if port > LARGEST_PORT:
        raise InputError(f"port: {port} is not from 0 to {LARGEST_PORT}")
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(
            f"host: {host!r} is not an address; leave it out for this machine alone (127.0.0.1)"
        ) from None
    made = socket.socket(family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        made.listen()
    except OSError as error:
        made.close()
        raise InputError(_why(error, host, port)) from error
    return made


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port: {port} is taken; give another one, or 0 for a free one"
    if error.errno == errno.EACCES:
        return f"port: {port} may not be used by this user; give one from 1024 on"
    return f"host: {host!r} is not an address of this machine; 127.0.0.1 is, and 0.0.0.0 is all"


def url(host: str, listening: socket.socket) -> str:
    """Where the page is."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}/"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == LOCAL


def refusal(method: str, headers: Mapping[str, str], host: str) -> str:
    """Why a request is refused; empty if it is not.

    A page of another origin may not call this one, nor may a name that another's DNS points here
    (DNS rebinding). A link to the page may lie anywhere.
    """
    asked = headers.get("Host", "")
    if not _known(asked, host):
        return f"refused: {asked!r} is not a name of this page"
    origin = headers.get("Origin")
    if origin is not None and _place(origin) != asked:
        return f"refused: the origin {origin!r} is not this page"
    site = headers.get("Sec-Fetch-Site", "same-origin")
    link = method == "GET" and headers.get("Sec-Fetch-Dest") == "document"
    if site not in ("same-origin", "none") and not link:
        return "refused: a page of another origin may not call this one"
    return ""


def _place(origin: str) -> str:
    """Host and port of an Origin header; empty where it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _known(asked: str, host: str) -> bool:
    """Whether a Host header names this page, on any port: a tunnel has its own."""
    try:
        name = urlsplit(f"//{asked}").hostname or ""
    except ValueError:
        return False
    if is_loopback(name):
        return True
    if is_loopback(host):
        return False
    try:
        return bool(ipaddress.ip_address(name))  # which no DNS points elsewhere
    except ValueError:
        return name in {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}


def guard(app: dash.Dash, host: str) -> None:
    """Refuse what does not come from the page, and forbid the page everything else."""
    policy = POLICY.format(hashes=" ".join(app.csp_hashes()))

    def check() -> flask.Response | None:
        why = refusal(flask.request.method, dict(flask.request.headers), host)
        return flask.Response(why + "\n", 403, mimetype="text/plain") if why else None

    def headed(response: flask.Response) -> flask.Response:
        response.headers.update({**HEADERS, "Content-Security-Policy": policy})
        return response

    app.server.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY  # beyond it the answer is 413
    app.server.before_request(check)
    app.server.after_request(headed)


@contextmanager
def serving(app: dash.Dash, host: str, listening: socket.socket) -> Iterator[BaseWSGIServer]:
    """A server of the app on a socket, whose `serve_forever` answers until it is interrupted."""
    guard(app, host)
    port = listening.getsockname()[1]
    made = make_server(
        host, port, app.server, threaded=True, request_handler=_Silent, fd=listening.fileno()
    )
    try:
        yield made
    finally:
        made.server_close()
