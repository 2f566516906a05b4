"""Estimates of embedding before it starts: tokens, cost and time."""

import math
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from dcdt.embeddings.config import (
    ClipConfig,
    EmbedderConfig,
    LocalEmbedderConfig,
    MultilingualEmbedderConfig,
    OpenAIEmbedderConfig,
    price,
)
from dcdt.embeddings.providers import make_embedder
from dcdt.embeddings.providers.token_estimates import estimate_tokens, request_batches

MAX_TIMED_TEXTS = 32  # to measure the speed of this machine
MIN_TEXTS_TO_TIME = 512  # with fewer, the speed is not measured
REQUEST_SECONDS = 1.0  # assumed duration of a request; it depends on the load of the API


class Forecast(NamedTuple):
    """Estimated tokens; cost in USD and seconds, if known; the basis of the estimate."""

    tokens: int
    cost: float | None
    seconds: float | None
    basis: str


def forecast(config: EmbedderConfig, texts: Sequence[str]) -> Forecast:
    """Estimate the embedding of texts."""
    return forecast_openai(config, texts) if isinstance(config, OpenAIEmbedderConfig) else forecast_local(config, texts)


def forecast_openai(config: OpenAIEmbedderConfig, texts: Sequence[str]) -> Forecast:
    """Estimate the embedding of texts by an API, without a request."""
    tokens = sum(min(estimate_tokens(text), config.max_tokens) for text in texts)
    per_million = price(config)
    inputs = min(config.request_inputs, max(32, math.ceil(len(texts) / config.concurrency)))
    requests = sum(1 for _ in request_batches(texts, inputs, config.request_tokens, config.max_tokens))
    seconds = math.ceil(requests / config.concurrency) * REQUEST_SECONDS
    basis = (
        f"{requests} requests, {config.concurrency} at once, if one takes {REQUEST_SECONDS:g} s; "
        "the rate limit of an account can make it longer"
    )
    return Forecast(tokens, None if per_million is None else tokens / 1e6 * per_million, seconds, basis)


def forecast_local(
    config: LocalEmbedderConfig | MultilingualEmbedderConfig | ClipConfig, texts: Sequence[str]
) -> Forecast:
    """Estimate the embedding of texts on this machine; of many texts, a few are embedded to measure the speed."""
    longest = getattr(config, "max_tokens", None) or sys.maxsize
    lengths = [min(estimate_tokens(text), longest) for text in texts]
    tokens = sum(lengths)
    if len(texts) < MIN_TEXTS_TO_TIME:
        return Forecast(tokens, None, None, f"soon done: fewer than {MIN_TEXTS_TO_TIME} texts are not timed")
    rows = range(0, len(texts), len(texts) // MAX_TIMED_TEXTS)
    sample = [texts[row] for row in rows]
    embedder = make_embedder(config)
    embedder.embed(sample[:2])  # the first call is slow
    started = time.perf_counter()
    embedder.embed(sample)
    speed = sum(lengths[row] for row in rows) / (time.perf_counter() - started)
    return Forecast(tokens, None, tokens / speed, f"{len(sample)} of them were timed")


def format_forecast(config: EmbedderConfig, missing: int, estimate: Forecast, gibibytes: float) -> str:
    """Format a forecast as a sentence.

    >>> found = Forecast(9000, None, 90.0, "32 of them were timed")
    >>> format_forecast(LocalEmbedderConfig("local", "m", [1.0], 8192, 256), 600, found, 0.0)
    'about 9,000 tokens by embedder=local, under 1 MiB on disk; about 2 min (32 of them were timed)'
    >>> local = LocalEmbedderConfig("local", "m", [1.0], 8192, 256)
    >>> format_forecast(local, 2, forecast_local(local, ["a base", "a basis"]), 0.0)
    'about 4 tokens by embedder=local, under 1 MiB on disk; soon done: fewer than 512 texts are not timed'
    """
    size = f"{1024 * gibibytes:,.0f} MiB" if gibibytes >= 1 / 1024 else "under 1 MiB"
    clauses = [f"about {estimate.tokens:,} tokens by embedder={config.name}, {size} on disk"]
    if estimate.cost is not None:
        clauses.append(f"about {estimate.cost:.2f} USD" if estimate.cost >= 0.01 else "less than 0.01 USD")
    if estimate.seconds is not None:
        clauses.append(f"about {_duration(estimate.seconds)} ({estimate.basis})")
    elif estimate.basis:
        clauses.append(estimate.basis)
    return "; ".join(clauses)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
