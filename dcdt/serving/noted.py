"""What happens around every HTTP request: a line of log, the headers of every answer, no error without an answer."""

import logging
import time
from urllib.parse import parse_qs

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("dcdt.serve")
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Noted:
    """ASGI middleware; a plain one, since Starlette's `BaseHTTPMiddleware` starts tasks of its own for each request.

    Args:
        app: what answers.
        question: length up to which the question `q` stands in the log; 0: it does not.
    """

    def __init__(self, app: ASGIApp, question: int = 0) -> None:
        self.app, self.question = app, question

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, lost = time.perf_counter(), 0, False

        async def send_noted(message: Message) -> None:
            nonlocal status, lost
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            try:
                await send(message)
            except Exception:  # the other side is gone, or what it sent was no whole request
                lost = True
                raise

        try:
            await self.app(scope, receive, send_noted)
        except Exception:
            if lost:
                log.info("a connection was lost", extra={"facts": {"path": scope["path"]}})
                return
            log.exception("a request failed")
            if status:  # the answer has begun
                raise
            sorry = JSONResponse({"detail": "the service met an error of its own; it is logged"}, 500)
            await sorry(scope, receive, send_noted)
        facts = {
            "path": scope["path"],
            "status": status,
            "milliseconds": round(1000 * (time.perf_counter() - started), 2),
        }
        if self.question:
            asked = parse_qs(scope["query_string"].decode("latin-1"))
            if "q" in asked:
                facts["question"] = asked["q"][0][: self.question]
        log.info("request", extra={"facts": facts})
