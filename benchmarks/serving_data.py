"""Large catalogues for the serving benchmarks, made of real vectors and texts."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from dcdt.config import cache_home
from dcdt.data.types import Documents
from dcdt.embeddings.cache import VectorCache
from dcdt.embeddings.fill import fill
from dcdt.embeddings.providers import space_of
from dcdt.serving.arrow import vector_column
from dcdt.serving.recommender import ServedRecommender
from dcdt.serving.videos import table_of
from dcdt.training.checkpoint import run_settings

NOISE = 0.5  # of a vector's length
MIXED = 256  # real vectors whose differences from the mean are mixed into the noise of a block
OTHERS = ("khan_math", "cranfield")


def collections(served: ServedRecommender) -> list[Path]:
    """Folders whose texts are used: the run's own, and the public ones if present."""
    own = Path(run_settings(served.catalogue.run).data.path)
    root = os.environ.get("DCDT_COLLECTIONS")
    return [own, *(Path(root) / name for name in OTHERS if root and (Path(root) / name).is_dir() and own.name != name)]


class Cached:
    """The run's embedder with the embedding cache, so that nothing is embedded twice."""

    def __init__(self, served: ServedRecommender) -> None:
        settings = run_settings(served.catalogue.run)
        caches = (settings.data.cache, cache_home() / "embeddings")
        self.caches = [VectorCache(folder, space_of(settings.embedder)) for folder in caches]
        self.settings = settings

    def embed(self, texts: list[str]) -> np.ndarray:
        """Return vectors of texts, from a cache with all of them, else embedded into the last one."""
        for cache in self.caches:
            if not cache.missing(texts):
                return cache.vectors(texts)
        fill(cache, texts, self.settings.embedder)
        return cache.vectors(texts)


def read(path: Path) -> list[dict]:
    """Records of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def real_vectors(served: ServedRecommender) -> tuple[np.ndarray, np.ndarray]:
    """Video vectors (n, W) and question vectors (q, W) of all collections, by the run's embedder and towers."""
    kept = Path("outputs/bench/real.npz")
    if kept.is_file():
        with np.load(kept) as arrays:
            return arrays["videos"], arrays["questions"]
    videos, questions = [], []
    for folder in collections(served):
        records = read(folder / "corpus.jsonl")
        documents = Documents(
            [record["_id"] for record in records],
            [record.get("title", "") for record in records],
            [record.get("text", "") for record in records],
            [{} for _ in records],
        )
        served._embedder = Cached(served)
        fields = [[title or text for title, text in zip(documents.titles, documents.texts, strict=True)]]
        fields.append([text or title for title, text in zip(documents.titles, documents.texts, strict=True)])
        videos.append(served.scorers[0].towers.videos(np.stack(served.embed_fields(fields)))[0])
        asked = [record["text"] for record in read(folder / "queries.jsonl")]
        questions.append(served.scorers[0].towers.query(served.embed(asked))[0])
    served._embedder = None  # what is measured afterwards embeds
    found = np.concatenate(videos), np.concatenate(questions)
    mixed = np.random.default_rng(0).permutation(len(found[1]))
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept, videos=found[0], questions=found[1][mixed])
    return found[0], found[1][mixed]


def repeat_perturbed(base: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Repeat the base rows to (n, W) fp32, after the first time with noise shaped like real variation."""
    rng = np.random.default_rng(seed)
    centred = (base - base.mean(0)).astype(np.float32)
    length = float(np.sqrt((centred**2).sum(1).mean()))
    result = np.empty((n, base.shape[1]), dtype=np.float32)
    for start in range(0, n, 20_000):
        rows = np.arange(start, min(start + 20_000, n))
        block = base[rows % len(base)].astype(np.float32)
        mixing = centred[rng.choice(len(base), min(MIXED, len(base)), replace=False)]  # others for every block
        noise = rng.standard_normal((len(rows), len(mixing)), dtype=np.float32) @ (mixing / np.sqrt(len(mixing)))
        block += np.where(rows < len(base), 0, NOISE / length)[:, None].astype(np.float32) * noise
        result[rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return result


def catalogue_table(served: ServedRecommender, matrix: np.ndarray, with_vectors: bool = True) -> pa.Table:
    """Make a table with a video for each row of the matrix, repeating titles and texts of the collections."""
    records = [record for folder in collections(served) for record in read(folder / "corpus.jsonl")]
    n = len(records)
    titles, texts = [record.get("title", "") for record in records], [record.get("text", "") for record in records]
    few = Documents([str(at) for at in range(n)], titles, texts, [{} for _ in records])
    small = table_of(few, {})
    words = [name for name in ("words_0",) if served.manifest.scorers[0].kind == "bm25"]
    if words:
        small = small.append_column("words_0", _words(served, few))
    table = small.take(pa.array(np.arange(len(matrix)) % n))
    ids = pa.array([f"v{at}" for at in range(len(matrix))])
    table = table.set_column(0, "id", ids)
    return table.append_column("vector_0", vector_column(matrix)) if with_vectors else table


def _words(served: ServedRecommender, videos: Documents) -> pa.Array:
    from dcdt.data.tokens import tokenizer

    config = served.manifest.scorers[0].config
    split = tokenizer(config["stem"], config["stop_words"])
    joined = [f"{title} {text}" for title, text in zip(videos.titles, videos.texts, strict=True)]
    return pa.array([split(text) for text in joined], pa.list_(pa.string()))
