"""An embedding server on this machine that speaks OpenAI's wire format and misbehaves as it is told."""

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np


def vector_of(text, width=1536):
    """The server's vector of a text: always the same, of length 1."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(width, dtype=np.float32)
    return vector / np.linalg.norm(vector)


class Trouble(Exception):
    """An answer other than vectors: a status, headers and the error object of the API; status 0 drops the line."""

    def __init__(self, status, message="", code=None, **headers):
        self.status, self.headers = status, {name.replace("_", "-"): str(value) for name, value in headers.items()}
        self.body = {"error": {"message": message, "type": "x", "param": None, "code": code}}


class Loopback:
    """The server, in a thread of its own while the `with` block lasts.

    Args:
        misbehave: called with the server, the number of the request (from 1) and its payload before it is answered; it
            may sleep, raise `Trouble`, or return a function of the answer's rows that changes them.
        width: of the vectors.
        longest: characters of the longest text that is taken.
        latency: seconds before each answer.
        cheap: answer the same vector for all texts, where the server's own work would be most of the time.

    Attributes:
        requests: payloads in the order of arrival.
        headers: of each request.
        paths: asked for, with their queries.
        answered: how often vectors of each text were sent in full.
    """

    def __init__(self, misbehave=None, width=1536, longest=32_000, latency=0.0, cheap=False):
        self.cheap = self.row(0, "", width, "base64")["embedding"] if cheap else None
        self.misbehave, self.width, self.longest, self.latency = misbehave, width, longest, latency
        self.requests, self.headers, self.paths, self.answered = [], [], [], Counter()
        self.lock = threading.Lock()
        server = Server(("127.0.0.1", 0), handler_of(self))
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def asked(self):
        """How often each text was in a request."""
        return Counter(text for payload in self.requests for text in payload["input"])

    def rows(self, payload, headers):
        """The `data` of an answer, or Trouble."""
        with self.lock:
            self.requests.append(payload)
            self.headers.append(headers)
            number = len(self.requests)
        time.sleep(self.latency)
        change = self.misbehave(self, number, payload) if self.misbehave else None
        texts = payload["input"]
        if len(texts) > 2048 or not all(texts):
            raise Trouble(400, "'$.input' is invalid.")
        if worst := max((len(text) for text in texts if len(text) > self.longest), default=0):
            raise Trouble(400, f"maximum context length is {self.longest} tokens, however you requested {worst} tokens")
        width = payload.get("dimensions", self.width)
        if self.cheap:
            return [{"object": "embedding", "index": at, "embedding": self.cheap} for at in range(len(texts))]
        rows = [self.row(at, text, width, payload.get("encoding_format")) for at, text in enumerate(texts)]
        return change(rows) if change else rows

    @staticmethod
    def row(at, text, width, encoding):
        vector = vector_of(text, width)
        held = base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
        return {"object": "embedding", "index": at, "embedding": held}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that was killed is no error of the server's."""


def handler_of(loopback):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers = 200, {}
            try:
                loopback.paths.append(self.path)
                if self.path.partition("?")[0] != "/v1/embeddings":
                    raise Trouble(404, f"no route {self.path}")
                rows = loopback.rows(payload, {name.lower(): value for name, value in self.headers.items()})
                counted = 7 * len(payload["input"])
                usage = {"prompt_tokens": counted, "total_tokens": counted}
                body = {"object": "list", "data": rows, "model": payload["model"], "usage": usage}
            except Trouble as trouble:
                status, headers, body = trouble.status, trouble.headers, trouble.body
            if not status:
                self.close_connection = True
                return
            content = json.dumps(body).encode()
            try:
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()
            except OSError:  # the client is gone
                self.close_connection = True
                return
            if status == 200:
                with loopback.lock:
                    loopback.answered.update(payload["input"])

        def log_message(self, *_):
            """Say nothing."""

    return Handler
