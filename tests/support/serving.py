"""A registered predictor behind `mlflow models serve`, as a user starts it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMAND = 'mlflow models serve -m "$MODEL" --env-manager local --port $PORT'
START_SECONDS = 180  # on a busy machine
IDLE_SECONDS = 2  # after which a new connection is opened: the server closes idle ones after 5
JSON, CSV = "application/json", "text/csv"


@dataclass
class Server:
    """A running server, asked over one connection while requests follow each other."""

    port: int
    process: "subprocess.Popen[bytes]"
    connection: http.client.HTTPConnection = field(init=False)
    answered: float = 0.0  # when

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def text(self, method: str, path: str, kind: str = "", body: bytes = b"") -> tuple[int, str]:
        """The status and the body of an answer."""
        if time.monotonic() - self.answered > IDLE_SECONDS:
            self.connection.close()
        self.connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = self.connection.getresponse()
        text = answer.read().decode()
        self.answered = time.monotonic()
        return answer.status, text

    def post(self, kind: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON, or else the text, of an answer to a request for predictions."""
        status, text = self.text("POST", "/invocations", kind, body)
        try:
            return status, json.loads(text)
        except json.JSONDecodeError:
            return status, text


@contextmanager
def served(model: str, folder: Path, command: str = COMMAND) -> Iterator[Server]:
    """The server that a bash command starts for `$MODEL` at `$PORT`; its log lies in the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", command],
            env={**os.environ, "MODEL": model, "PORT": str(port)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        server = Server(port, process)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                assert server.text("GET", "/ping")[0] == 200
                break
            except OSError:
                server.connection.close()
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the server does not start: {log.read_text()}") from None
                time.sleep(0.2)
        yield server
    finally:
        server.connection.close()
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
