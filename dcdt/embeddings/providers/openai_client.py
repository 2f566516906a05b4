"""One request to an embedding API: the official client, its retries, and errors in words."""

import asyncio
import base64
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdt.embeddings.config import OpenAIEmbedderConfig, vector_width
from dcdt.embeddings.providers.openai_models import requested_dimensions
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

KEY = "OPENAI_API_KEY"
RETRIES = 4  # the client's own, with growing pauses and Retry-After obeyed; then we start over, until patience ends
REFUSED = (400, 413, 422)  # something in the request is not to the server's liking
AGAIN = (408, 409, 429)
QUOTA = b"insufficient_quota"
CHATTY = ("httpx", "httpx2", "openai")  # a line for each request, in the middle of the progress bar


def api_key(config: OpenAIEmbedderConfig) -> str:
    """The key from the environment; "" where a server of one's own is asked, which may want none.

    Raises:
        UserError: there is none, or it cannot be one.
    """
    key = os.environ.get(KEY, "").strip()
    if not key and not config.base_url:
        raise UserError(
            f"embedder=openai needs a key: export {KEY}=...\n"
            "Without one: embedder=local runs a model here, embedder.base_url=URL asks another server."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{KEY} holds characters that no key has; set it again without quotes, spaces or line breaks.")
    return key


class RefusedRequest(Exception):
    """The server finds fault with the texts of one request."""


class Connection:
    """An embedding API: texts in, vectors out, whatever happens in between.

    Attributes:
        tokens: that the server says it has counted.
        answers: number of requests answered with vectors.
        answered: when the last answer came.
        trouble: what went wrong last, in words.

    Raises:
        UserError: there is no key.
    """

    def __init__(self, config: OpenAIEmbedderConfig) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self.config, self.key = config, api_key(config)
        if not os.environ.get("OPENAI_LOG"):  # the client's own switch: whoever sets it wants the lines
            for name in CHATTY:
                logging.getLogger(name).setLevel(logging.WARNING)
        self.client = AsyncOpenAI(
            api_key=self.key or "none",
            base_url=config.base_url or "https://api.openai.com/v1",
            max_retries=RETRIES,
            timeout=config.timeout,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [self._look]}),
        )
        self.tokens = self.answers = 0
        self.answered = time.monotonic()
        self.trouble = "nothing came back"

    async def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, D) of the texts of one request, in their order; waits and asks again as long as it takes.

        Raises:
            RefusedRequest: the server finds fault with the texts.
            UserError: asking again cannot help.
        """
        from openai import APIConnectionError, APIError, APIStatusError

        while True:
            try:
                return await self._ask(texts)
            except APIStatusError as error:
                pause = self._after(error)
            except APIConnectionError as error:  # also a time-out
                self.trouble, pause = f"{type(error).__name__}: {_first_line(error.__cause__ or error)}", 1.0
            except (APIError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{self._where} answers what is no embedding response: {_first_line(error)}") from error
            await asyncio.sleep(pause)

    def given_up(self, kept: str) -> UserError:
        """The error for a server that has not answered for `patience` seconds."""
        waited = f"{self.config.patience:g} s (embedder.patience)"
        return UserError(f"{self._where} has not answered for {waited}; {self.trouble}.\n{kept}")

    async def close(self) -> None:
        """Let go of the connections."""
        await self.client.close()

    async def _ask(self, texts: Sequence[str]) -> NDArray[np.float32]:
        options: dict[str, Any] = {"dimensions": wanted} if (wanted := requested_dimensions(self.config)) else {}
        answer = await self.client.embeddings.create(
            model=self.config.model, input=list(texts), encoding_format="base64", **options
        )
        rows = {item.index: _decoded(item.embedding) for item in answer.data}
        if len(answer.data) != len(texts) or rows.keys() != set(range(len(texts))):
            raise UserError(f"{self._where} answered {len(answer.data)} vectors for {len(texts)} texts.")
        if wrong := {len(row) for row in rows.values()} - {vector_width(self.config)}:
            raise UserError(
                f"{self._where} answers vectors of {wrong.pop()} numbers; {vector_width(self.config)} are expected.\n"
                "Set embedder.model and embedder.dimensions to what the server runs; embedder.shorten=true asks it to."
            )
        self.answered = time.monotonic()
        self.answers += 1
        self.tokens += getattr(answer.usage, "total_tokens", 0) or 0
        found = np.stack([rows[at] for at in range(len(texts))])  # (n, D)
        return found / np.linalg.norm(found, axis=1, keepdims=True) if self.config.normalise else found

    async def _look(self, response: Any) -> None:  # noqa: ANN401 - httpx of one version or another
        """Remember trouble for the message; a used-up quota is not worth the client's retries."""
        if response.status_code >= 400:
            await response.aread()
            self.trouble = f"its last answer was {response.status_code}"
            if QUOTA in response.content:
                response.headers["x-should-retry"] = "false"

    def _after(self, error: Any) -> float:  # noqa: ANN401 - openai.APIStatusError, imported where it is needed
        """Seconds to wait before asking again.

        Raises:
            RefusedRequest, UserError: it is of no use.
        """
        status, said = error.status_code, self._said(error)
        if status == 429 and QUOTA in error.response.content:
            raise UserError("the quota of this key is used up (429 insufficient_quota). Raise it in your account.")
        if status in AGAIN or status >= 500:
            waits = error.response.headers.get("retry-after", "")
            return float(waits) if waits.replace(".", "", 1).isdigit() else 1.0
        if status in (401, 403):  # the server's own words may repeat the key
            raise UserError(
                f"{self._where} rejects the key ({status}). Set {KEY} to a valid one, or use embedder=local."
            )
        if status == 404:
            raise UserError(
                f"{self._where} knows no embedding model '{self.config.model}' at this address (404): {said}"
            )
        if status in REFUSED:
            raise RefusedRequest(f"{status}: {said}")
        raise UserError(f"{self._where} answers {status}: {said}")

    def _said(self, error: Any) -> str:  # noqa: ANN401
        body = error.body if isinstance(error.body, dict) else {}
        text = _first_line(body.get("message") or error.message)
        return text.replace(self.key, "***") if self.key else text

    @property
    def _where(self) -> str:
        return self.config.base_url or "OpenAI"


def _decoded(embedding: str | list[float]) -> NDArray[np.float32]:
    """A vector from base64 (little-endian float32) or, from servers that know no other way, a list of numbers."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.asarray(embedding, dtype=np.float32)


def _first_line(said: object) -> str:
    return one_line(said, 200) or type(said).__name__
