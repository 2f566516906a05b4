"""Small collections with seeded texts and vectors, so that no test needs an embedder."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
from omegaconf import OmegaConf

from dcdt.config import config_folder, validate
from dcdt.data.beir import load_collection
from dcdt.data.pairs import load_pairs
from dcdt.data.splits import make_split
from dcdt.data.tables import Tables
from dcdt.embeddings.cache import VectorCache
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers import space_of
from dcdt.embeddings.tables import load_tables

EMBEDDER = validate(LocalEmbedderConfig, OmegaConf.load(config_folder() / "embedder" / "local.yaml"), "embedder")
WORDS = ["span", "rank", "basis", "pivot", "kernel", "image", "norm", "angle", "eigen", "trace", "shear", "plane"]


def make_collection(
    folder, n_videos=20, n_queries=60, *, grades=(1,), positive_grade=1, twins=0, repeats=0, seed=0, spoken=0
):
    """Write a BEIR folder and, at `<folder>/embeddings`, a vector for each of its texts in the default local space.

    Every query has one to three judged videos, the first of the highest grade, and its vector lies near that video's.

    Args:
        folder: where to write; made if need be.
        n_videos: videos v0, v1, ...
        n_queries: queries q0, q1, ..., asked one second after the other.
        grades: grades that occur.
        positive_grade: written to collection.yaml.
        twins: the last so many videos have the text of the first ones, under another title.
        repeats: the last so many queries ask what the first ones ask, with other capitals and punctuation.
        seed: of texts, judgments and vectors.
        spoken: the first so many videos have a transcript of one to five minutes, and moments are asked about in them.

    Returns:
        The folder.
    """
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    texts = [f"{' '.join(rng.choice(WORDS, 5))} lesson {at}" for at in range(n_videos)]
    texts[n_videos - twins :] = texts[:twins]
    videos = [{"_id": f"v{at}", "title": f"Title {at}", "text": texts[at]} for at in range(n_videos)]
    asked = [f"{' '.join(rng.choice(WORDS, 3))} question {at}" for at in range(n_queries)]
    asked[n_queries - repeats :] = [f"  {text.upper()}?" for text in asked[:repeats]]
    queries = [{"_id": f"q{at}", "text": text, "metadata": {"timestamp": at}} for at, text in enumerate(asked)]
    related = [rng.choice(n_videos, rng.integers(1, 4), replace=False) for _ in queries]
    qrels = [
        (query, video, max(grades) if place == 0 else rng.choice(grades))
        for query, found in enumerate(related)
        for place, video in enumerate(found)
    ]
    write_folder(folder, videos, queries, qrels=[f"q{query}\tv{video}\t{grade}" for query, video, grade in qrels])
    (folder / "collection.yaml").write_text(f"positive_grade: {positive_grade}\n")

    if spoken:
        write_transcripts(folder, spoken, qrels)
    width = space_of(EMBEDDER).dimensions
    passages = load_collection(folder).passages.texts if spoken else []
    titles = (video["title"] for video in videos)
    vectors = {text: rng.normal(size=width) for text in dict.fromkeys([*texts, *titles, *passages])}
    for text, found in zip(asked, related, strict=True):
        near = vectors[texts[found[0]]] + vectors[f"Title {found[0]}"]
        vectors[text.strip()] = near + 30 * rng.normal(size=width)
    matrix = np.stack(list(vectors.values()))
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    VectorCache(folder / "embeddings", space_of(EMBEDDER)).add(list(vectors), matrix)
    return folder


def write_transcripts(folder, n_videos, qrels):
    """Write transcripts.jsonl of the first videos, in segments of five seconds, and a moment for their judgments."""
    rng = np.random.default_rng(0)
    with (folder / "transcripts.jsonl").open("w") as lines:
        for video in range(n_videos):
            starts = 5.0 * np.arange(rng.integers(12, 60))
            segments = [
                {"start": start, "end": start + 5, "text": " ".join([*rng.choice(WORDS, 9), f"s{video}"])}
                for start in starts.tolist()
            ]
            lines.write(json.dumps({"_id": f"v{video}", "segments": segments}) + "\n")
    moments = [(query, video) for query, video, _ in qrels if video < n_videos]
    lines = [f"q{query}\tv{video}\t{rng.integers(0, 60)}\n" for query, video in moments]
    (folder / "moments.tsv").write_text("query-id\tcorpus-id\tseconds\n" + "".join(lines))


def write_folder(folder, videos, queries, **qrels):
    """Write corpus.jsonl, queries.jsonl and one qrels file for each keyword from lists of records and of lines."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, records in (("corpus", videos), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, lines in qrels.items():
        text = "".join(f"{line}\n" for line in ["query-id\tcorpus-id\tscore", *lines])
        (folder / "qrels" / f"{name}.tsv").write_text(text)
    return folder


def small_run(collection, model, run_folder, *overrides):
    """Train on a collection whose texts a sentence model of a few kilobytes embeds, in this process.

    Args:
        collection: a BEIR folder.
        model: folder of the sentence model, made where it is not there; the vectors lie beside it.
        run_folder: of the run.
        overrides: of the configuration.

    Returns:
        The run's folder.
    """
    from embeddings.tiny import write_model
    from hydra import compose, initialize_config_dir

    from dcdt.config import parse, register_resolvers
    from dcdt.runs.folder import RunFolder
    from dcdt.training.experiment import run
    from dcdt.training.loggers.base import RunLogger

    if not model.is_dir():
        write_model(model)
    fixed = {
        "data": "files",
        "data.path": collection,
        "data.cache": model.parent / "cache",
        "embedder.package": model,
        "embedder.layer_weights": "[0.2,1.0]",
        "embedder.max_tokens": 32,
        "trainer": "cpu",
        "trainer.max_epochs": 2,
        "logger": "none",
        "callbacks.progress": "false",
        "ks": "[1,5]",
        "outputs": run_folder.parent / "out",
    }
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", overrides=[*(f"{key}={value}" for key, value in fixed.items()), *overrides])
    run(parse(config), config, RunFolder(run_folder), RunLogger())
    return run_folder


def prepare(folder, split, fields=("title", "text"), pairs=True, width=None):
    """What a run has before its model: collection, split, tables and pairs of a folder made by `make_collection`.

    Closed forms take half a second over vectors of the embedder's width: `width` leaves their first numbers alone.
    """
    collection = load_collection(folder)
    division = make_split(collection, split)
    tables = load_tables(collection, list(fields), EMBEDDER, str(folder / "embeddings"), progress=False)
    if width is not None:
        if passages := tables.passages:
            passages.vectors = passages.vectors[:, :width]
        parts = (part[..., :width] for part in (tables.queries, tables.videos, tables.frozen))
        tables = Tables(*parts, tables.fields, passages)
    vectors = tables.queries.numpy(), tables.frozen.numpy()
    pairs = load_pairs(folder / "pairs", collection, division, *vectors, space=f"test{width}") if pairs else {}
    return SimpleNamespace(collection=collection, split=division, tables=tables, pairs=pairs)


def slow_but(fast, values):
    """Values of a parameter in their order, marked as slow but for those of `fast`."""
    return slow_rows_but([(value,) for value in fast], [(value,) for value in values])


def slow_rows_but(fast, rows):
    """Rows of several parameters, marked as slow but for those of `fast`."""
    return [pytest.param(*row, marks=() if row in fast else pytest.mark.slow) for row in rows]


def quiet_trainer(**options):
    """Lightning's Trainer on the CPU that writes and prints nothing."""
    silent = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    return L.Trainer(**{"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, **silent, **options})


def related_sets(collection):
    """Videos with a grade above 0, by query row: what brute force compares with."""
    rows = [set() for _ in collection.queries.ids]
    for query, video, grade in zip(*vars(collection.judgments).values(), strict=True):
        if grade > 0:
            rows[query].add(int(video))
    return rows


def made_once(tmp_path_factory, name, make):
    """A folder that the first test that needs it makes, and all tests of the session read, whatever their process.

    Args:
        tmp_path_factory: pytest's.
        name: of the folder.
        make: called with the path of a folder that is not there yet.

    Returns:
        The path, the same in every process. Not to be changed: take a copy.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared"
    folder, done = root / name, root / f"{name}.done"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that did not come to its end
            make(folder)
            done.touch()
    return folder


def correlated_values(rng, n_units, kind="difference"):
    """Values of queries in units of unequal sizes, with a correlation of 0.3 between two queries of a unit.

    A query has its unit's value with a chance of the root of 0.3, else one of its own from the same distribution:
    reciprocal ranks, or differences of two with a mean of 0. Sizes are log-normal, from 1.
    """
    sizes = 1 + rng.lognormal(1, 1, n_units).astype(int)
    units = np.repeat(np.arange(n_units), sizes)

    def draw(n):
        ranks = np.exp(1 + 1.2 * rng.normal(size=(2, n))).clip(1)
        if kind == "value":
            return 1 / np.ceil(ranks[0])
        return np.where(rng.random(n) < 0.5, 0, 1 / np.ceil(ranks[0]) - 1 / np.ceil(ranks[1]))

    of_unit, own = draw(n_units)[units], draw(len(units))
    return np.where(rng.random(len(units)) < 0.3**0.5, of_unit, own), units
