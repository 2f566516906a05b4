"""The pair file of a split: what the paper's accuracy, precision, recall and F1 are computed on.

Each positive of a held-out query comes with four negatives: two random, one hard by BM25, one hard by frozen cosine
(prevalence 0.2). Drawn once a split and stored, so that every model and every sampler is judged on the same pairs.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdt.data.bm25 import EMPTY_WORD, BM25Index, Postings
from dcdt.data.splits import Side, Split
from dcdt.data.tokens import tokenize
from dcdt.data.types import Collection, Rows
from dcdt.utils.errors import UserError
from dcdt.utils.files import atomic_write

COLUMNS = ("side", "query_id", "video_id", "label", "origin")


@dataclass(frozen=True)
class Pairs:
    """Labelled (query, video) pairs of one side as row numbers."""

    query: Rows  # (m,)
    video: Rows  # (m,)
    label: NDArray[np.bool_]  # (m,)


def load_pairs(
    folder: Path,
    collection: Collection,
    split: Split,
    queries: NDArray[np.float32],
    videos: NDArray[np.float32],
    space: str,
) -> dict[str, Pairs]:
    """Load the pairs of the val and test sides from the split's file, which is drawn and stored the first time.

    Args:
        folder: of the pair files.
        collection: the texts, for BM25.
        split: the division.
        queries: (Q, D) frozen query vectors.
        videos: (N, D) frozen video vectors.
        space: name of the embedding space, which is part of the file's name.

    Raises:
        UserError: the stored file is corrupt.
    """
    seed = hashlib.sha256(f"{split.fingerprint} {space} no twins".encode()).hexdigest()[:16]
    path = folder / f"{seed}.parquet"
    if not path.exists():
        lexical = _bm25_plus(collection)
        rows = [
            row
            for name, side in (("val", split.val), ("test", split.test))
            for row in _draw_pairs(
                name, side, collection, queries, videos, lexical, np.random.default_rng(int(seed, 16))
            )
        ]
        with atomic_write(path) as temporary:
            table = pa.table(dict(zip(COLUMNS, zip(*rows, strict=True), strict=True)))
            pq.write_table(table, temporary, write_page_checksum=True)
    try:
        table = pq.read_table(path, columns=list(COLUMNS), page_checksum_verification=True).to_pydict()
        query = np.array([collection.queries.row_of[name] for name in table["query_id"]], dtype=np.int64)
        video = np.array([collection.videos.row_of[name] for name in table["video_id"]], dtype=np.int64)
    except (pa.ArrowException, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the pair file {path} is corrupt ({reason}).\nDelete it; it is drawn again the same way."
        ) from error
    order = np.argsort(query, kind="stable")  # in the order of evaluation, whatever the order of lines
    side, label = np.array(table["side"])[order], np.array(table["label"], dtype=bool)[order]
    query, video = query[order], video[order]
    return {name: Pairs(query[side == name], video[side == name], label[side == name]) for name in ("val", "test")}


def unrelated_videos(collection: Collection, query: int, candidates: NDArray[np.bool_]) -> Rows:
    """Find candidate videos that are neither related to the query nor have the text of a related one."""
    judged = collection.never_negative
    related = judged.video[judged.query == query].tolist()
    allowed = candidates.copy()
    allowed[[twin for video in related for twin in collection.duplicates.get(video, [video])]] = False
    return np.flatnonzero(allowed)


def _bm25_plus(collection: Collection) -> BM25Index:
    """Index title and description of every video."""
    documents = zip(collection.videos.titles, collection.videos.texts, strict=True)
    tokens = [tokenize(f"{title} {text}") or [EMPTY_WORD] for title, text in documents]
    return BM25Index("rank_bm25", "plus", 1.5, 0.75, None, [Postings.of(tokens)])


Row = tuple[str, str, str, bool, str]


def _draw_pairs(
    name: str,
    side: Side,
    collection: Collection,
    queries: NDArray[np.float32],
    videos: NDArray[np.float32],
    lexical: BM25Index,
    rng: np.random.Generator,
) -> list[Row]:
    positives = side.judgments.where(side.judgments.grade >= collection.positive_grade)
    id_rank = np.argsort(
        np.argsort(collection.videos.ids)
    )  # (N,) rank by id, so that the order of lines does not matter
    rows: list[Row] = []
    for query in sorted(side.queries.tolist(), key=collection.queries.ids.__getitem__):
        allowed = unrelated_videos(collection, query, side.candidates)
        allowed = allowed[np.argsort(id_rank[allowed])]
        tokens = tokenize(collection.queries.texts[query])
        scores_of = {"bm25": lexical.score(tokens)[allowed], "cosine": (videos @ queries[query])[allowed]}
        ranked = {origin: allowed[np.argsort(-scores, kind="stable")] for origin, scores in scores_of.items()}
        ranked["random"] = rng.permutation(allowed)
        used: set[int] = set()
        for video in sorted(positives.video[positives.query == query].tolist(), key=id_rank.__getitem__):
            rows.append((name, collection.queries.ids[query], collection.videos.ids[video], True, "positive"))
            for origin in ("bm25", "cosine", "random", "random"):
                negative = next((int(row) for row in ranked[origin] if int(row) not in used), None)
                if negative is not None:
                    used.add(negative)
                    rows.append((name, collection.queries.ids[query], collection.videos.ids[negative], False, origin))
    return rows
