"""Middleware around every HTTP request: a line of log, the headers of every answer, an answer to every error."""

import logging
import time
from urllib.parse import parse_qs

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("dcdt.serve")
MAX_BODY_BYTES = 4 << 20  # of a request
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
TOO_LARGE = f"the body of a request has at most {MAX_BODY_BYTES:,} bytes, and says how many"


class RequestLog:
    """ASGI middleware; a plain one, since Starlette's `BaseHTTPMiddleware` starts tasks of its own for each request.

    Args:
        app: the application.
        max_question_chars: of the question `q` that are logged; 0: none.
    """

    def __init__(self, app: ASGIApp, max_question_chars: int = 0) -> None:
        self.app, self.max_question_chars = app, max_question_chars

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, is_lost = time.perf_counter(), 0, False

        async def send_logged(message: Message) -> None:
            nonlocal status, is_lost
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            try:
                await send(message)
            except Exception:  # the other side is gone, or what it sent was no whole request
                is_lost = True
                raise

        try:
            # the server sends the answer to HEAD without a body
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            app = self.app if _is_small(dict(scope["headers"])) else JSONResponse({"detail": TOO_LARGE}, 413)
            await app({**scope, "method": method}, receive, send_logged)
        except Exception:
            if is_lost:
                log.info("a connection was lost", extra={"fields": {"path": scope["path"]}})
                return
            log.exception("a request failed")
            if status:  # the answer has begun
                raise
            failure = JSONResponse({"detail": "the service met an error of its own; it is logged"}, 500)
            await failure(scope, receive, send_logged)
        fields = {
            "path": scope["path"],
            "status": status,
            "milliseconds": round(1000 * (time.perf_counter() - started), 2),
        }
        query = parse_qs(scope["query_string"].decode("latin-1")) if self.max_question_chars else {}
        if "q" in query:
            fields["question"] = query["q"][0][: self.max_question_chars]
        log.info("request", extra={"fields": fields})


def _is_small(headers: dict[bytes, bytes]) -> bool:
    """Whether the body of a request is of a known size that is read."""
    size = headers.get(b"content-length", b"0")
    return b"transfer-encoding" not in headers and size.isdigit() and int(size[:20]) <= MAX_BODY_BYTES
