"""Requests to an embedding API by the official client, with retries and readable errors."""

import asyncio
import base64
import logging
import os
import re
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from dcdt.embeddings.config import OpenAIEmbedderConfig, vector_width
from dcdt.embeddings.providers.openai_models import requested_dimensions
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_RETRIES = 4  # of the client, with growing pauses and Retry-After; then again, until patience ends
REFUSED_ENCODING = re.compile("base64|encoding", re.IGNORECASE)  # some servers have numbers alone
REFUSED_STATUSES = (400, 413, 422)  # the server rejects the texts
RETRY_STATUSES = (408, 409, 429)
QUOTA_CODE = b"insufficient_quota"
NOISY_LOGGERS = ("httpx", "httpx2", "openai")  # they log each request, into the progress bar


def api_key(config: OpenAIEmbedderConfig) -> str:
    """Return the key of the environment; "" for another server, which may need none.

    Raises:
        UserError: there is none, or it has invalid characters.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and not config.base_url:
        raise UserError(
            f"embedder=openai needs a key: export {KEY_VARIABLE}=...\n"
            "Without one: embedder=local runs a model here, embedder.base_url=URL asks another server."
        )
    for name in (KEY_VARIABLE, "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):  # the client sends all three
        value = os.environ.get(name, "").strip()
        if not value.isascii() or not value.isprintable() or " " in value:
            raise UserError(
                f"{name} holds characters that no key has; set it again without quotes, spaces or line breaks."
            )
    return key


class RefusedRequest(Exception):
    """The server refuses the texts of a request."""


class Connection:
    """A connection to an embedding API, with retries.

    Attributes:
        tokens: counted by the server.
        answers: number of requests answered with vectors.
        answered: time of the last answer.
        trouble: description of the last problem.

    Raises:
        UserError: there is no key.
    """

    def __init__(self, config: OpenAIEmbedderConfig) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self.config, self.key = config, api_key(config)
        if not os.environ.get("OPENAI_LOG"):  # the client's own switch for these lines
            for name in NOISY_LOGGERS:
                logging.getLogger(name).setLevel(logging.WARNING)
        address = urlsplit(config.base_url or "https://api.openai.com/v1")
        try:
            self.client = AsyncOpenAI(
                api_key=self.key or "none",
                base_url=address._replace(query="").geturl(),
                default_query=dict(parse_qsl(address.query)),
                default_headers={"api-key": self.key} if address.query else {},  # Azure's
                max_retries=MAX_RETRIES,
                timeout=config.timeout,
                http_client=DefaultAsyncHttpxClient(event_hooks={"response": [self._record_problem]}),
            )
        except Exception as error:  # of httpx: a proxy of another kind, or one that needs another package; certificates
            cause = _first_line(error)
            if re.search("proxy|socks|scheme", cause, re.IGNORECASE):
                raise UserError(f"the proxies of the environment cannot be used: {cause}") from error
            raise UserError(f"no connection can be set up ({cause}); check SSL_CERT_FILE and SSL_CERT_DIR.") from error
        self.encoding: Literal["base64", "float"] = "base64"
        self.tokens = self.answers = 0
        self.answered = time.monotonic()
        self.trouble = "nothing came back"

    async def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed the texts of one request, (n, D), in their order; retry as long as it takes.

        Raises:
            RefusedRequest: the server refuses the texts.
            UserError: retrying cannot help.
        """
        from openai import APIConnectionError, APIError, APIStatusError

        while True:
            try:
                return await self._ask(texts)
            except APIStatusError as error:
                refuses = error.status_code in REFUSED_STATUSES and REFUSED_ENCODING.search(self._message_of(error))
                if refuses and self.encoding == "base64":
                    self.encoding = "float"
                    continue
                pause = self._pause_after(error)
            except APIConnectionError as error:  # also a time-out
                self.trouble, pause = f"{type(error).__name__}: {_first_line(error.__cause__ or error)}", 1.0
            except (APIError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(
                    f"{self._server} answers what is no embedding response: {_first_line(error)}"
                ) from error
            await asyncio.sleep(pause)

    def timeout_error(self, hint: str) -> UserError:
        """Make the error of a server that has not answered for `patience` seconds."""
        waited = f"{self.config.patience:g} s (embedder.patience)"
        return UserError(f"{self._server} has not answered for {waited}; {self.trouble}.\n{hint}")

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def _ask(self, texts: Sequence[str]) -> NDArray[np.float32]:
        options: dict[str, Any] = (
            {"dimensions": dimensions} if (dimensions := requested_dimensions(self.config)) else {}
        )
        answer = await self.client.embeddings.create(
            model=self.config.model, input=list(texts), encoding_format=self.encoding, **options
        )
        rows = {item.index: _decode_vector(item.embedding) for item in answer.data}
        if len(answer.data) != len(texts) or rows.keys() != set(range(len(texts))):
            raise UserError(f"{self._server} answered {len(answer.data)} vectors for {len(texts)} texts.")
        if wrong := {len(row) for row in rows.values()} - {vector_width(self.config)}:
            raise UserError(
                f"{self._server} answers vectors of {wrong.pop()} numbers; {vector_width(self.config)} are expected.\n"
                "Set embedder.model and embedder.dimensions to what the server runs; embedder.shorten=true asks it to."
            )
        self.answered = time.monotonic()
        self.answers += 1
        self.tokens += getattr(answer.usage, "total_tokens", 0) or 0
        vectors = np.stack([rows[i] for i in range(len(texts))])  # (n, D)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if self.config.normalise else vectors

    async def _record_problem(self, response: Any) -> None:  # noqa: ANN401 - httpx of one version or another
        """Record the problem for the message; do not retry after a used-up quota."""
        if response.status_code >= 400:
            await response.aread()
            self.trouble = f"its last answer was {response.status_code}"
            if QUOTA_CODE in response.content:
                response.headers["x-should-retry"] = "false"

    def _pause_after(self, error: Any) -> float:  # noqa: ANN401 - openai.APIStatusError, imported where it is needed
        """Return the seconds to wait before retrying.

        Raises:
            RefusedRequest, UserError: retrying cannot help.
        """
        status, message = error.status_code, self._message_of(error)
        if status == 429 and QUOTA_CODE in error.response.content:
            raise UserError("the quota of this key is used up (429 insufficient_quota). Raise it in your account.")
        if status in RETRY_STATUSES or status >= 500:
            return _retry_seconds(error.response.headers.get("retry-after", ""), self.config.patience)
        if status in (401, 403):  # the server's message may repeat the key
            raise UserError(
                f"{self._server} rejects the key ({status}). Set {KEY_VARIABLE} to a valid one, or use embedder=local."
            )
        if status == 404:
            raise UserError(
                f"{self._server} has no embedding model '{self.config.model}' at this address (404): {message}"
            )
        if status in REFUSED_STATUSES:
            raise RefusedRequest(f"{status}: {message}")
        raise UserError(f"{self._server} answers {status}: {message}")

    def _message_of(self, error: Any) -> str:  # noqa: ANN401
        body = error.body if isinstance(error.body, dict) else {}
        return _first_line(body.get("message") or error.message)

    @property
    def _server(self) -> str:
        return self.config.base_url or "OpenAI"


def _decode_vector(embedding: str | list[float]) -> NDArray[np.float32]:
    """Decode a vector from base64 (little-endian float32) or, as some servers answer, a list of numbers."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.asarray(embedding, dtype=np.float32)


def _retry_seconds(header: str, limit: float) -> float:
    """Read a Retry-After header, a number or a date, up to a limit; 1 where it is neither.

    >>> [_retry_seconds(text, 60) for text in ("2.5", "1e9", "²", "-1", "nan", "Fri, 01 Jan 2100 00:00:00 GMT", "")]
    [2.5, 60, 1.0, 1.0, 1.0, 60, 1.0]
    >>> _retry_seconds("Fri, 01 Jan 99999999999999999999 00:00:00 GMT", 60)
    1.0
    """
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            seconds = -1.0
    return min(seconds, limit) if seconds >= 0 else 1.0


def _first_line(value: object) -> str:
    return one_line(value, 200) or type(value).__name__
