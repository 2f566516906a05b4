"""Export a finished run so that it answers without torch: towers as ONNX, the catalogue with its vectors, a manifest.

This is the one module of `dcdt.serving` that imports torch, with `threshold.py`.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from dcdt.config.registry import MODELS, name_of
from dcdt.data.tables import Tables
from dcdt.data.transcripts import TRANSCRIPT
from dcdt.embeddings.providers.onnx import RECIPE
from dcdt.embeddings.providers.onnx_export import EXPORTER, ensure_exported, export_model, silence_exporter
from dcdt.models.recommender import Recommender
from dcdt.serving.catalogue.snapshot import SEARCHED, Snapshot
from dcdt.serving.catalogue.video_table import VideoTable, check_address
from dcdt.serving.graphs import arrays_path, session
from dcdt.serving.layout import (
    CATALOGUE,
    CHECKSUMS,
    EMBEDDER,
    FOLDER,
    MODEL,
    Pointer,
    exclusive_lock,
    fingerprint,
    read_pointer,
    write_checksums,
    write_pointer,
)
from dcdt.serving.learners import LEARNERS, save_learners
from dcdt.serving.manifest import FORMAT, Manifest
from dcdt.serving.passages import passage_columns, with_segments
from dcdt.serving.scorers import SCORERS, hybrid, two_stage
from dcdt.serving.scorers.base import TOLERANCE, Export, Graph, Scorer
from dcdt.serving.scorers.passages import PassagesScorer
from dcdt.serving.scorers.towers import TowersScorer
from dcdt.serving.threshold import choose_threshold
from dcdt.serving.videos import metadata_columns, table_of
from dcdt.training.checkpoint import Restored, restore
from dcdt.training.loggers import log_index
from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.files import temporary_folder, write_json


class _GraphModule(nn.Module):
    """A function of a module, as torch's exporter takes it."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.module, self.function = graph.module, graph.function

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        return self.function(self.module, rows)


def build(run: Path, say: Callable[[str], None] = lambda text: None, catalogue: str | None = None) -> Pointer:
    """Export a finished run into RUN/serving and make the new build the current one.

    Args:
        run: the run's folder.
        say: prints what is being done.
        catalogue: folder or object store under which the table of this build is to lie; None: in the build itself.

    Raises:
        UserError: the run cannot be restored or exported, or the folder or the catalogue cannot be written.
    """
    address = check_address(catalogue) if catalogue is not None else None
    say("restoring the run")
    own = fingerprint(run)
    restored = restore(run)
    with exclusive_lock(run):
        folder = run / FOLDER
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        try:
            with temporary_folder(folder / name) as temporary:
                version = _write(temporary, restored, own, say, f"{address}/{name}" if address else None)
                temporary.chmod(0o755)
                temporary.rename(folder / name)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}). Free some space.") from error
        pointer = Pointer(name, version, version)
        try:
            earlier = read_pointer(run)
        except UserError:  # it says nothing of what was current: no build is removed
            keep = {path.name for path in folder.iterdir()}
        else:
            keep = {name, earlier.build if earlier else name}
        write_pointer(run, pointer)
        _drop_old(folder, keep)
    log_index(run, [folder / name / MODEL, folder / name / CHECKSUMS])
    return pointer


def _write(folder: Path, restored: Restored, run: str, say: Callable[[str], None], address: str | None) -> int:
    """Write a build and return the version of its catalogue."""
    settings, collection, model = restored.settings, restored.collection, restored.model
    components = named_components(model)
    with torch.no_grad():
        exports = [
            scorer_of(component, name).export(component, name, restored, number)
            for number, (name, component) in enumerate(components)
        ]
        head = two_stage.export_head(model) if model_name(model) in two_stage.MODELS else None
        embedder = _bundle_embedder(settings.embedder, folder / EMBEDDER, model if model.reads_tokens else None)
        say("choosing the score below which nothing fits")
        threshold = choose_threshold(restored)
    say("building the index")
    videos, columns = collection.videos, metadata_columns(collection.videos)
    added = [export.columns for export in [*exports, *([head] if head is not None else [])]]
    transcripts = collection.transcripts if TRANSCRIPT in settings.fields else None
    if transcripts is not None:
        videos = with_segments(videos, transcripts.segments)
        added.append(passage_columns(videos, collection.passages))
    table = table_of(videos, columns)
    for name, column in (item for of_export in added for item in of_export.items()):
        table = table.append_column(name, column)
    version, approximate = _write_catalogue(folder, table, exports, address)
    say("exporting the towers")
    for number, ((_, component), export) in enumerate(zip(components, exports, strict=True)):
        component.tables = _one_row(component.tables)
        for name, graph in export.graphs.items():
            _export_graph(folder / f"{name}_{number}.onnx", graph)
        if export.arrays:
            arrays_path(folder, number).write_bytes(save(export.arrays))  # save_file keeps it from other accounts
    if head is not None:
        two_stage.save_head(model, collection, folder)
        for name, graph in head.graphs.items():
            _export_graph(folder / f"{name}.onnx", graph)
    if histories := next(filter(None, (component.histories for _, component in components)), None):
        users, ids = list(histories.position), collection.videos.ids  # all components have the same histories
        units = {f"vector_{n}": one.units.items for n, (_, one) in enumerate(components) if one.units is not None}
        watches = {"items": histories.items, **units}
        save_learners(folder / LEARNERS, users, histories.starts, watches, ids, os.urandom(16))
    recall: Any = model.recall if head is not None else model
    manifest = {
        "format": FORMAT,
        "run": run,
        "model": settings.option,
        "collection": collection.name,
        "collection_fingerprint": collection.fingerprint,
        "scorers": [export.manifest for export in exports],
        "fusion": hybrid.Fusion.of(recall) if model_name(recall) in hybrid.MODELS else None,
        "head": head.manifest if head is not None else None,
        "columns": columns,
        "catalogue": address,
        "embedder": embedder,
        "threshold": threshold,
        "approximate": approximate,
        "has_transcripts": transcripts is not None,
    }
    write_json(folder / MODEL, Manifest.model_validate(manifest).model_dump(mode="json"))
    write_checksums(folder)
    return version


def _write_catalogue(
    folder: Path, table: pa.Table, exports: Sequence[Export], address: str | None
) -> tuple[int, dict[str, Any]]:
    """Write the table and its snapshot; return their version, and the info of the approximate indexes."""
    videos = VideoTable(address or str(folder / CATALOGUE))
    videos.create(table)
    probes = {name: export.probes for export in exports for name in export.columns if name.startswith(SEARCHED)}
    snapshot = Snapshot.build(table, videos.version, probes)
    snapshot.save_indexes(folder)
    snapshot.save(folder / Pointer("", snapshot.version, snapshot.version).snapshot_name)
    return snapshot.version, {name: asdict(index.info) for name, index in snapshot.indexes.items()}


def scorer_of(model: Recommender, name: str) -> type[Scorer]:
    """Choose the kind of scorer that serves a model.

    Raises:
        UserError: none does.
    """
    registered = model_name(model)
    for scorer in SCORERS.values():
        if registered in scorer.models:
            return scorer
    if model.pooling is not None:
        return PassagesScorer
    if not model.decoupled:
        raise UserError(
            f"model={name} cannot be served yet: it has no two towers, and no scorer of its own.\n"
            "Serve a run of another model, such as experiment=best."
        )
    return TowersScorer


def named_components(model: Recommender) -> list[tuple[str, Recommender]]:
    """Name the models that a model combines, each differently."""
    parts = [part.components if model_name(part) in hybrid.MODELS else [part] for part in model.components]
    components = [component for of_part in parts for component in of_part]
    names = [model_name(component) for component in components]
    return [
        (f"{name} {number}" if names.count(name) > 1 else name, component)
        for number, (name, component) in enumerate(zip(names, components, strict=True), 1)
    ]


def model_name(model: Recommender) -> str:
    """Return the name under which a model is registered."""
    return name_of(MODELS, type(model))


def _one_row(tables: Tables) -> Tables:
    """Keep one row of everything: a graph needs the model, not the catalogue."""
    return Tables(tables.queries[:1], tables.videos[:, :1], tables.frozen[:1], tables.fields)


def _export_graph(path: Path, graph: Graph) -> None:
    """Write a graph and compare it with torch, on one and on several rows.

    Raises:
        UserError: onnxscript is missing, or the graph differs from torch.
    """
    module, example = _GraphModule(graph).eval(), graph.example
    with needs_extra("exporting a run", "serve", *EXPORTER), silence_exporter(), torch.no_grad():
        torch.onnx.export(
            module, (example,), path, dynamo=True, external_data=False, input_names=[graph.input],
            output_names=graph.outputs, dynamic_shapes={"rows": {example.ndim - 2: torch.export.Dim("batch")}},
        )  # fmt: skip
    exported_graph = session(path)
    for rows in (example, example.narrow(example.ndim - 2, 0, 1)):
        with torch.no_grad():
            wanted = module(rows)
        for one, other in zip(wanted, exported_graph.run(None, {graph.input: rows.numpy()}), strict=True):
            worst = float(np.abs(one.numpy() - other).max()) / max(1.0, float(one.abs().max()))
            if not worst <= TOLERANCE:
                raise UserError(f"{path.name} is {worst:.2g} off torch (limit {TOLERANCE:g}); report this as a bug.")


def _bundle_embedder(config: Any, folder: Path, trained: Any = None) -> dict[str, Any]:  # noqa: ANN401
    """Put an exported local model beside the towers (hard links where the file system has them).

    Args:
        config: of any embedder.
        folder: to write to.
        trained: a model that has trained the encoder.
    """
    if config.name != "local":
        return asdict(config)
    if trained is not None:
        encoder, tokenizer, config = trained.served_encoder()
        weights = {name: value.numpy() for name, value in encoder.state_dict().items()}
        folder.mkdir()
        export_model(encoder, tokenizer, config, hashlib.sha256(save(weights)).hexdigest(), folder)
        return asdict(config)
    source = ensure_exported(config)
    folder.mkdir()
    for path in source.iterdir():
        try:
            os.link(path, folder / path.name)
        except OSError:
            shutil.copy2(path, folder / path.name)
    assert (folder / RECIPE).is_file()
    return asdict(config)


def _drop_old(folder: Path, keep: set[str]) -> None:
    """Remove builds that no reader opens any more: all but the current and the one before."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
