"""A small OpenAI-compatible chat endpoint that answers as a script says; what it was asked is kept."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[str, str, int], str]
"""From the system's words, the user's, and how many questions of code came before, to an answer."""


@dataclass
class ModelEndpoint:
    """Its address, and what came."""

    script: Script
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    refuse: Callable[[dict[str, Any]], str | None] = lambda body: None
    """Why a request is not taken (400), if it is not."""
    usage: bool = True
    finish: str = "stop"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            code = sum("complete Python program" in old["messages"][0]["content"] for old in self.asked)
            self.headers.append(headers)
            if (reason := self.refuse(body)) is not None:
                return 400, {"error": {"message": reason, "type": "invalid_request_error"}}
            self.asked.append(body)
        system, user = (message["content"] for message in body["messages"])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.script(system, user, code)},
            "finish_reason": self.finish,
        }
        said: dict[str, Any] = {"id": "x", "object": "chat.completion", "model": "scripted-1", "choices": [choice]}
        if self.usage:
            said["usage"] = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
        return 200, said


@contextmanager
def model_endpoint(script: Script) -> Iterator[ModelEndpoint]:
    """Serves on loopback for as long as this lasts."""
    endpoint = ModelEndpoint(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/v1/chat/completions"
            status, said = endpoint.answer(body, {name.lower(): value for name, value in self.headers.items()})
            raw = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
