"""Embed texts by OpenAI or any server that speaks its API: many requests at once, each answer handed on as it comes."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dcdt.embeddings.config import OpenAIEmbedderConfig, vector_width
from dcdt.embeddings.providers.openai_client import Connection, RefusedRequest, api_key
from dcdt.embeddings.providers.token_estimates import estimate_tokens, request_batches, shortened
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

Store = Callable[[list[str], NDArray[np.float32]], None]
PROBE = 16  # texts of the first request, alone: a wrong key, model or width shows before many are sent
SMALLEST = 32  # texts a request, where there are few in all
TRIES = 8  # times that a too long text is cut further
KEPT = "What was answered is stored; the same command goes on from there."


class OpenAIEmbedder:
    """Text to vector by an embedding API.

    Args:
        config: model, address, limits. The key comes from the environment alone.

    Attributes:
        shortened: texts that were cut to the token limit.
        refused: texts that the server would not take, with its words.
        tokens: that the server says it has counted.

    Raises:
        UserError: there is no key.
    """

    def __init__(self, config: OpenAIEmbedderConfig) -> None:
        self.config = config
        api_key(config)  # a missing key shows now
        self.shortened = 0
        self.refused: list[tuple[str, str]] = []
        self.tokens = 0

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Vectors of texts, (n, D) float32, L2-normalised.

        Raises:
            UserError: the server does not answer, or refuses a text.
        """
        held: dict[str, NDArray[np.float32]] = {}
        distinct = list(dict.fromkeys(texts))
        self.embed_each(distinct, lambda part, found: held.update(zip(part, found, strict=True)), progress)
        if self.refused:
            text, reason = self.refused[0]
            raise UserError(f"the server refuses the text '{one_line(text)}' ({reason}).")
        if not texts:
            return np.empty((0, vector_width(self.config)), dtype=np.float32)
        return np.stack([held[text] for text in texts])

    def embed_each(self, texts: Sequence[str], store: Store, progress: Callable[[int], None] | None = None) -> None:
        """Embed distinct texts and hand each request's texts and vectors to `store` when its answer is there.

        A text that the server refuses is noted in `refused` and loses no other.

        Raises:
            UserError: a text is empty, the server does not answer for `patience` seconds or answers what cannot be
                used, or `store` fails. What was stored stays.
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

        async def keep(part: list[str], vectors: NDArray[np.float32]) -> None:
            async with writing:
                await asyncio.to_thread(store, part, vectors)
            if progress:
                progress(len(part))

        batches = (list(map(texts.__getitem__, rows)) for rows in self._batches(texts))
        work = asyncio.create_task(self._all(connection, batches, keep))
        try:
            while not (await asyncio.wait([work], timeout=0.2))[0]:
                if time.monotonic() - connection.answered > self.config.patience:
                    raise connection.given_up(KEPT)
            await work
        except UserError as error:
            raise UserError(str(error) if KEPT in str(error) else f"{error} {KEPT}") from error
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self.tokens += connection.tokens
            await connection.close()

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """A small first request, then requests up to the limits, or smaller so that all connections have work."""
        config = self.config
        inputs = min(config.request_inputs, max(SMALLEST, math.ceil(len(texts) / config.concurrency)))
        limits = config.request_tokens, config.max_tokens
        probe = min(PROBE, inputs)
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
            """One request, halved where the server refuses it, until the text at fault stands alone."""
            try:
                vectors = await connection.vectors([self._cut(text) for text in batch])
            except RefusedRequest as refusal:
                if len(batch) == 1:
                    found = await self._alone(connection, batch[0], refusal)
                    if found is not None:
                        await keep(batch, found)
                    return
                await answer(batch[: len(batch) // 2])
                await answer(batch[len(batch) // 2 :])
                return
            self.shortened += sum(self._cut(text) != text for text in batch)
            await keep(batch, vectors)

        failed: list[UserError] = []

        async def worker() -> None:
            for batch in batches:  # shared by all workers: each takes the next
                if failed:  # no new request; those under way end, for their answers are paid for
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
        """A text that is too long by any count, cut before it is sent; others go as they are."""
        limit = self.config.max_tokens
        return shortened(text, limit) if estimate_tokens(text) > 2 * limit else text

    async def _alone(self, connection: Connection, text: str, refusal: RefusedRequest) -> NDArray[np.float32] | None:
        """A refused text on its own: cut until the server takes it, where it may be too long; else noted."""
        limit = float(self.config.max_tokens)
        if len(text.encode()) > limit:  # a token has at least one byte, so a shorter text is not too long
            for _ in range(TRIES):
                try:
                    found = await connection.vectors([shortened(text, limit)])
                    self.shortened += 1
                    return found
                except RefusedRequest as error:
                    refusal, limit = error, 0.75 * limit
        self.refused.append((text, str(refusal)))
        if not connection.answers and len(self.refused) >= 3:
            raise UserError(f"the server refuses every text so far ({refusal}).")
        return None
