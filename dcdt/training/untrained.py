"""Make a run of a catalogue without questions, by the model that reads no judgment."""

from collections.abc import Sequence

import numpy as np
from hydra import compose, initialize_config_dir

from dcdt.config import config_folder, parse, register_resolvers
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import Side, Split
from dcdt.data.types import Collection
from dcdt.runs.folder import RunFolder
from dcdt.runs.provenance import provenance
from dcdt.training import build
from dcdt.training.checkpoint import cpu_weights, write_state
from dcdt.utils.shell import override


def write_untrained_run(run: RunFolder, collection: Collection, overrides: Sequence[str] = ()) -> None:
    """Index the videos of a collection for BM25 and the whitened cosine; its questions, if any, are not read."""
    register_resolvers()
    chosen = ["model=hybrid_untrained", "data=files", override("data.path", collection.path.resolve())]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", overrides=[*chosen, "split.part=all", "logger=none", "trainer=cpu", *overrides])
    settings = parse(config)
    tables = build.load_tables(settings, collection)
    nothing = collection.judgments.where(np.zeros(len(collection.judgments), dtype=bool))
    side = Side(nothing.query, np.ones(len(collection.videos), dtype=bool), nothing)
    split = Split("none", 0, np.empty((0, 2), dtype=np.int64), side, side, side)
    model = build.make_model(settings, tables)
    model.prepare(RankingDataModule(collection, split, {}, None, 1, 0, (1,)))
    run.start(config, provenance(collection, split, build.space(settings), tables.digest))
    write_state({"state_dict": cpu_weights(model)}, run.files.checkpoint)
    run.finish()
