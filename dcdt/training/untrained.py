"""Make a run of a catalogue without questions, by the model that reads no judgment."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dcdt.config import outputs_root, parse
from dcdt.config.composition import compose_config
from dcdt.config.job_names import folder_name
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import Side, Split
from dcdt.data.types import Collection
from dcdt.runs.folder import RunFolder
from dcdt.runs.provenance import provenance
from dcdt.training import build
from dcdt.training.checkpoint import cpu_weights, write_state
from dcdt.utils.shell import override

MODEL = "hybrid_untrained"


def untrained_run(catalogue: Path, say: Callable[[str], None] = lambda text: None, *overrides: str) -> Path:
    """Index the videos of a collection for BM25 and the whitened cosine; return the run, the earlier one if unchanged.

    Args:
        catalogue: the collection's folder; its questions, if it has any, are not read.
        say: prints what is being done.
        overrides: of the configuration, such as another embedder.

    Raises:
        UserError: the collection is invalid, or its texts cannot be embedded here.
    """
    collection = load_collection(catalogue, needs_queries=False)
    run = RunFolder(outputs_root() / f"{folder_name(collection.name)}_untrained_{collection.fingerprint[:8]}")
    run.lock(wait=True)
    try:
        if run.read_status().get("status") != "finished":
            say("embedding the videos for BM25 and the whitened cosine, which no question trains")
            _write(run, collection, overrides)
    finally:
        run.unlock()
    return run.path


def _write(run: RunFolder, collection: Collection, overrides: Sequence[str]) -> None:
    where = ["data=files", override("data.path", collection.path.resolve()), "split.part=all", "logger=none"]
    config = compose_config([*where, f"model={MODEL}", "trainer=cpu", *overrides])
    settings = parse(config)
    tables = build.load_tables(settings, collection)
    split = _without_queries(collection)
    data = RankingDataModule(collection, split, {}, None, 1, 0, (1,))
    model = build.make_model(settings, tables)
    model.prepare(data)
    run.start(config, provenance(collection, split, build.space(settings), tables.digest))
    write_state({"state_dict": cpu_weights(model)}, run.files.checkpoint)
    run.finish()


def _without_queries(collection: Collection) -> Split:
    """Divide no queries: every side ranks all videos."""
    nothing = collection.judgments.where(np.zeros(len(collection.judgments), dtype=bool))
    side = Side(nothing.query, np.ones(len(collection.videos), dtype=bool), nothing)
    return Split("none", 0, np.empty((0, 2), dtype=np.int64), side, side, side)
