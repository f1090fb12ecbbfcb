"""A stand-in for Ollama that needs no GPU. Runs in a pod of the cluster, from a ConfigMap.

It answers every question at once with a sentence about it, and knows every model. It uses the standard library only,
because the pod may run an older image.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

PORT = 11434
VERSION = "0.0.0-rehearsal"
SECONDS = float(os.environ.get("ANSWER_SECONDS", "0.2"))
"""How long an answer takes."""
MODEL = os.environ.get("LLM_MODEL", "llama3.2")
CREATED = "2026-01-01T00:00:00Z"


class Handler(BaseHTTPRequestHandler):
    """Ollama's API, as far as the service uses it."""

    protocol_version = "HTTP/1.1"
    models: ClassVar[list[dict[str, Any]]] = [
        {"name": name, "model": name, "size": 1, "digest": "0" * 64, "expires_at": CREATED, "size_vram": 0}
        for name in (MODEL if ":" in MODEL else f"{MODEL}:latest",)
    ]

    def do_HEAD(self) -> None:
        self._send({})

    def do_GET(self) -> None:
        match self.path:
            case "/api/tags" | "/api/ps":
                self._send({"models": self.models})
            case _:
                self._send({"version": VERSION})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        match self.path:
            case "/api/chat":
                self._answer(request, lambda text: {"message": {"role": "assistant", "content": text}})
            case "/api/generate":
                self._answer(request, lambda text: {"response": text})
            case _:
                self._send({"details": {"family": "llama"}, "model_info": {}, "capabilities": ["completion"]})

    def _answer(self, request: dict[str, Any], piece: Any) -> None:
        turns = request.get("messages") or [{"content": request.get("prompt", "")}]
        words = f"The rehearsal's answer to: {turns[-1].get('content', '')[-200:]}".split(" ")
        head = {"model": request.get("model", MODEL), "created_at": CREATED}
        end = {"done": True, "done_reason": "stop", "total_duration": int(SECONDS * 1e9), "eval_count": len(words)}
        end |= {"prompt_eval_count": len(words), "prompt_eval_duration": 1_000_000, "eval_duration": int(SECONDS * 1e9)}
        time.sleep(SECONDS)
        if request.get("stream") is False:
            self._send({**head, **piece(" ".join(words)), **end})
            return
        lines = [{**head, **piece(f"{word} "), "done": False} for word in words] + [{**head, **piece(""), **end}]
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            text = json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


def main(host: str = "", port: int = PORT) -> None:
    """Serves until SIGTERM."""
    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
