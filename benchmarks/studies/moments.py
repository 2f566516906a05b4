"""Given the right video, how near is the moment shown to the second that a question names? Ways to choose it.

    python benchmarks/studies/moments.py COLLECTION [--cache CACHE]

COLLECTION holds moments.tsv and transcripts; the vectors of its passages are cached. A moment is the start or middle
of the best passage; or, within it, the segment around which most rare words of the question are said. Nothing is
trained but for the last row, whose weight is chosen for each tenth of the videos on the others.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf

from dcdt.config import config_folder
from dcdt.data.beir import load_collection
from dcdt.data.tokens import tokenizer
from dcdt.data.types import Collection
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.tables import load_tables

LAST, AROUND = 50.0, 3  # seconds of a passage with no second one after it; segments whose words are counted together
WEIGHTS = [step / 10 for step in range(11)]
Floats = NDArray[np.float64]


def z(values: Floats) -> Floats:
    """Values with mean 0 and deviation 1."""
    return (values - values.mean()) / (values.std() + 1e-9)


def bm25(documents: list[list[str]], words: set[str]) -> Floats:
    """Scores of the passages of one video, whose words are as rare as they are in it."""
    counts, lengths = [Counter(document) for document in documents], np.array([len(one) for one in documents])
    total = np.zeros(len(documents))
    for word in words:
        tf = np.array([count[word] for count in counts])
        idf = np.log(1 + (len(tf) - (tf > 0).sum() + 0.5) / ((tf > 0).sum() + 0.5))
        total += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * lengths / max(lengths.mean(), 1)))
    return total


def within(collection: Collection, video: int, words: set[str], start: float, end: float) -> float:
    """The second between start and end around which most rare words of the question are said; else the middle."""
    assert collection.transcripts is not None
    tokens = tokenizer(stop_words=True)
    segments = [one for one in collection.transcripts.segments[video] if one.start is not None]
    said = [set(tokens(segment.text)) & words for segment in segments]
    n_of = Counter(word for found in said for word in found)
    values = np.array([sum(np.log(1 + len(said) / n_of[word]) for word in found) for found in said])
    times = np.array([segment.start for segment in segments], dtype=float)
    inside = (times >= start) & (times <= end)
    values = np.convolve(values, np.ones(AROUND), "same")[inside]
    return float(times[inside][values == values.max()].mean()) if len(values) and values.max() else (start + end) / 2


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("collection", type=Path)
    parser.add_argument("--cache", default=None, help="of the vectors; default: COLLECTION/embeddings")
    given = parser.parse_args()
    collection, tokens = load_collection(given.collection), tokenizer(stop_words=True)
    embedder = LocalEmbedderConfig(**OmegaConf.to_container(OmegaConf.load(config_folder() / "embedder/local.yaml")))  # type: ignore[arg-type]
    cache = given.cache or str(given.collection / "embeddings")
    tables = load_tables(collection, ["title", "text", "transcript"], embedder, cache, False, torch.float16, False)
    passages, spoken = collection.passages, tables.passages
    assert spoken is not None
    queries = torch.nn.functional.normalize(tables.queries.float(), dim=-1)
    asked = [(query, video, seconds) for query, video, seconds in collection.moments]
    parts, times = [], []
    for query, video, _ in asked:
        rows = slice(int(passages.offsets[video]), int(passages.offsets[video + 1]))
        words = set(tokens(collection.queries.texts[query]))
        vectors = torch.nn.functional.normalize(spoken.vectors[rows].float(), dim=-1)
        cosine = (vectors @ queries[query]).double().numpy()
        parts.append((cosine, bm25([tokens(text) for text in passages.texts[rows]], words)))
        starts = passages.starts[rows]
        times.append((starts, np.append(starts[2:], starts[-2:] + LAST)))  # the one after the next begins at its end

    def shown(weight: float, place: str) -> Floats:
        errors = []
        for (query, video, seconds), (cosine, lexical), (starts, ends) in zip(asked, parts, times, strict=True):
            best = int(np.argmax((1 - weight) * z(cosine) + weight * z(lexical)))
            start, end = float(starts[best]), float(ends[best])
            at = {"start": start, "middle": (start + end) / 2}.get(place)
            words = set(tokens(collection.queries.texts[query]))
            errors.append(abs((within(collection, video, words, start, end) if at is None else at) - seconds))
        return np.array(errors)

    def line(name: str, place: str, errors: Floats) -> None:
        shares = " | ".join(f"{(errors <= limit).mean():.3f}" for limit in (30, 60, 120))
        print(f"| {name} | {place} | {shares} | {np.median(errors):.0f} |", flush=True)

    print("| passage by | moment | within 30 s | 60 s | 120 s | median, s |\n|---|---|---|---|---|---|")
    for name, weight in (("cosine", 0.0), ("BM25", 1.0), ("2/3 cosine, 1/3 BM25", 1 / 3), ("the even sum", 0.5)):
        for place in ("start", "middle", "words"):
            line(name, place, shown(weight, place))
    folds = np.array([video % 10 for _, video, _ in asked])
    by_weight = np.stack([shown(weight, "middle") for weight in WEIGHTS])  # (W, M)
    near = (by_weight <= 60).astype(float)
    best = [int(near[:, folds != fold].mean(1).argmax()) for fold in folds]
    line("a sum, its weight by the other folds", "middle", by_weight[best, np.arange(len(asked))])


if __name__ == "__main__":
    main()
