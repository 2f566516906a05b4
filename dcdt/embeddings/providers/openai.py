"""Embed texts by OpenAI or any server that speaks its API: concurrent requests, each stored when it is answered."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dcdt.embeddings.config import OpenAIEmbedderConfig, vector_width
from dcdt.embeddings.providers.openai_client import Connection, RefusedRequest, api_key
from dcdt.embeddings.providers.token_estimates import estimate_tokens, request_batches, truncate
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

Store = Callable[[list[str], NDArray[np.float32]], None]
PROBE_TEXTS = 16  # texts of the first request, to detect a wrong key, model or width
MIN_REQUEST_TEXTS = 32  # texts a request, if there are few in all
MAX_CUTS = 8  # of a text that is too long
RESUME_HINT = "What was answered is stored; the same command continues from there."


class OpenAIEmbedder:
    """Embed texts by an embedding API.

    Args:
        config: model, address, limits. The key comes from the environment alone.

    Attributes:
        shortened: texts that were cut to the token limit.
        refused: texts that the server refused, with its reason.
        tokens: counted by the server.

    Raises:
        UserError: there is no key.
    """

    def __init__(self, config: OpenAIEmbedderConfig) -> None:
        self.config = config
        api_key(config)  # fail now without a key
        self.shortened = 0
        self.refused: list[tuple[str, str]] = []
        self.tokens = 0

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Embed texts, (n, D) float32, L2-normalised.

        Raises:
            UserError: the server does not answer, or refuses a text.
        """
        vector_of: dict[str, NDArray[np.float32]] = {}
        distinct = list(dict.fromkeys(texts))
        self.embed_each(distinct, lambda batch, vectors: vector_of.update(zip(batch, vectors, strict=True)), progress)
        if self.refused:
            text, reason = self.refused[0]
            raise UserError(f"the server refuses the text '{one_line(text)}' ({reason}).")
        if not texts:
            return np.empty((0, vector_width(self.config)), dtype=np.float32)
        return np.stack([vector_of[text] for text in texts])

    def embed_each(self, texts: Sequence[str], store: Store, progress: Callable[[int], None] | None = None) -> None:
        """Embed distinct texts and call `store` with texts and vectors of each request when it is answered.

        A text that the server refuses is added to `refused`; the others are embedded.

        Raises:
            UserError: a text is empty, the server does not answer for `patience` seconds or its answer is invalid, or
                `store` fails. Stored vectors are kept.
        """
        if any(not text.strip() for text in texts):
            raise UserError("a text is empty; the API takes none. Give it words or leave it out.")
        if not texts:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._run(texts, store, progress))
            return
        with ThreadPoolExecutor(1) as thread:  # inside a notebook's event loop
            thread.submit(asyncio.run, self._run(texts, store, progress)).result()

    async def _run(self, texts: Sequence[str], store: Store, progress: Callable[[int], None] | None) -> None:
        connection = Connection(self.config)
        writing = asyncio.Lock()

        async def keep(batch: list[str], vectors: NDArray[np.float32]) -> None:
            async with writing:
                await asyncio.to_thread(store, batch, vectors)
            if progress:
                progress(len(batch))

        batches = (list(map(texts.__getitem__, rows)) for rows in self._batches(texts))
        work = asyncio.create_task(self._all(connection, batches, keep))
        try:
            while not (await asyncio.wait([work], timeout=0.2))[0]:
                if time.monotonic() - connection.answered > self.config.patience:
                    raise connection.timeout_error(RESUME_HINT)
            await work
        except UserError as error:
            raise UserError(str(error) if RESUME_HINT in str(error) else f"{error} {RESUME_HINT}") from error
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self.tokens += connection.tokens
            await connection.close()

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Divide texts into a small first request, then requests up to the limits, or smaller for all connections."""
        config = self.config
        inputs = min(config.request_inputs, max(MIN_REQUEST_TEXTS, math.ceil(len(texts) / config.concurrency)))
        limits = config.request_tokens, config.max_tokens
        probe = min(PROBE_TEXTS, inputs)
        yield from request_batches(texts[:probe], probe, *limits)
        for rows in request_batches(texts[probe:], inputs, *limits):
            yield [probe + row for row in rows]

    async def _all(
        self,
        connection: Connection,
        batches: Iterator[list[str]],
        keep: Callable[[list[str], NDArray[np.float32]], Awaitable[None]],
    ) -> None:
        async def answer(batch: list[str]) -> None:
            """Send one request; if the server refuses it, halve it until the text at fault is alone."""
            try:
                vectors = await connection.vectors([self._cut(text) for text in batch])
            except RefusedRequest as refusal:
                if len(batch) == 1:
                    retried = await self._alone(connection, batch[0], refusal)
                    if retried is not None:
                        await keep(batch, retried)
                    return
                await answer(batch[: len(batch) // 2])
                await answer(batch[len(batch) // 2 :])
                return
            self.shortened += sum(self._cut(text) != text for text in batch)
            await keep(batch, vectors)

        failed: list[UserError] = []

        async def worker() -> None:
            for batch in batches:  # shared by all workers: each takes the next
                if failed:  # no new requests; the pending ones are paid for
                    return
                try:
                    await answer(batch)
                except UserError as error:
                    failed.append(error)

        await answer(next(batches))
        await asyncio.gather(*(worker() for _ in range(self.config.concurrency)))
        if failed:
            raise failed[0]

    def _cut(self, text: str) -> str:
        """Cut a text that is certainly too long; return others as they are."""
        limit = self.config.max_tokens
        return truncate(text, limit) if estimate_tokens(text) > 2 * limit else text

    async def _alone(self, connection: Connection, text: str, refusal: RefusedRequest) -> NDArray[np.float32] | None:
        """Retry a refused text alone, cut if it may be too long; add it to `refused` if that fails."""
        limit = float(self.config.max_tokens)
        if len(text.encode()) > limit:  # a token has at least one byte, so a shorter text is not too long
            for _ in range(MAX_CUTS):
                try:
                    vectors = await connection.vectors([truncate(text, limit)])
                    self.shortened += 1
                    return vectors
                except RefusedRequest as error:
                    refusal, limit = error, 0.75 * limit
        self.refused.append((text, str(refusal)))
        if not connection.answers and len(self.refused) >= 3:
            raise UserError(f"the server refuses every text so far ({refusal}).")
        return None
