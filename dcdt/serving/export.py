"""Export a finished run so that it answers without torch: towers as ONNX, the catalogue with its vectors, a spec.

This is the one module of `dcdt.serving` that imports torch (with `abstain.py`).
"""

import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from dcdt.data.collection import as_one, lent_texts
from dcdt.data.tables import Tables
from dcdt.data.tokens import tokenizer
from dcdt.embedders.onnx import RECIPE
from dcdt.errors import UserError
from dcdt.files import write_json
from dcdt.models.recommender import QueryBatch, Recommender
from dcdt.restore import Restored, restore
from dcdt.serving.abstain import choose_threshold
from dcdt.serving.index import vector_column
from dcdt.serving.lance import LanceIndex
from dcdt.serving.layout import (
    CATALOGUE,
    EMBEDDER,
    FOLDER,
    FORMAT,
    MODEL,
    Pointer,
    fingerprint,
    read_pointer,
    write_pointer,
    writing,
)
from dcdt.serving.lexical import EMPTY
from dcdt.serving.memory import MemoryIndex
from dcdt.serving.towers import session
from dcdt.serving.videos import metadata_columns, table_of

TOLERANCE = 1e-5  # between torch and ONNX Runtime
PARITY = 5  # videos and queries on which an exported graph is compared


@dataclass
class PartExport:
    """One part of a model: what is written of it.

    Attributes:
        spec: as model.json holds it.
        columns: what it adds to the table of videos.
        graphs: ONNX graphs by name: module, example inputs, names of the inputs and of the outputs.
        probes: (P, W) query vectors on which the recall of an approximate index is measured.
    """

    spec: dict[str, Any]
    columns: dict[str, pa.Array] = field(default_factory=dict)
    graphs: dict[str, tuple[nn.Module, Tensor, str, list[str]]] = field(default_factory=dict)
    probes: np.ndarray | None = None


class _QueryTower(nn.Module):
    model: Any

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model
        self.weighs = getattr(model, "keys", None) is not None

    def forward(self, vectors: Tensor) -> tuple[Tensor, ...]:
        encoded = self.model.encode_queries(vectors)
        return (encoded, self.model.attention_weights(vectors)) if self.weighs else (encoded,)


class _VideoTower(nn.Module):
    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_videos(fields), torch.stack(list(self.model.video_parts(fields).values()))


class _JointQuery(nn.Module):
    def __init__(self, model: Any) -> None:  # noqa: ANN401 - baselines are not imported here
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor) -> tuple[Tensor]:
        nothing = vectors.new_zeros(len(self.model.towers), 1, vectors.shape[-1])
        return (self.model.sides(vectors, nothing)[0],)


class _JointVideo(nn.Module):
    def __init__(self, model: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.model = model

    def forward(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        shown = self.model.sides(fields.new_zeros(1, fields.shape[-1]), fields)[1]  # (B, F * W)
        return shown, shown.unsqueeze(0)


def _towers(model: Recommender, restored: Restored, at: int) -> PartExport:
    """A decoupled model: both towers, and the vectors of the catalogue."""
    tables = model.tables
    vectors = model.video_vectors()  # (N, W)
    names = list(model.video_parts(tables.videos[:, :1]))
    config = restored_config(model)
    lean = float(config.get("neighbour_weight", 0.0)) if hasattr(model, "whitening") else 0.0
    spec = {"kind": "towers", "fields": tables.fields, "width": vectors.shape[1], "adds": names, "lean": lean}
    columns = {f"vector_{at}": vector_column(vectors.numpy())}
    if lean:
        own = model.encode_videos(tables.videos)
        spec["neighbours"] = int(config["neighbours"])
        columns[f"raw_{at}"] = vector_column(own.numpy())
    outputs = ["encoded", "weights"] if getattr(model, "keys", None) is not None else ["encoded"]
    graphs = {
        "query": (_QueryTower(model), tables.queries[:PARITY], "vectors", outputs),
        "video": (_VideoTower(model), tables.videos[:, :PARITY], "fields", ["encoded", "adds"]),
    }
    return PartExport(spec, columns, graphs, model.encode_queries(tables.queries[:400]).numpy())


def _joint(model: Any, restored: Restored, at: int) -> PartExport:  # noqa: ANN401
    """single_tower: both sides of its hidden layer; what is left for a pair is an addition, a ReLU and the output."""
    tables = model.tables
    shown = model.sides(tables.queries[:1], tables.videos)[1]  # (N, F * W)
    output = {"weight": model.output.weight[0].tolist(), "bias": float(model.output.bias)}
    spec = {"kind": "joint", "fields": tables.fields, "width": shown.shape[1], "adds": ["all"], "output": output}
    graphs = {
        "query": (_JointQuery(model), tables.queries[:PARITY], "vectors", ["encoded"]),
        "video": (_JointVideo(model), tables.videos[:, :PARITY], "fields", ["encoded", "adds"]),
    }
    return PartExport(spec, {f"joint_{at}": vector_column(shown.numpy())}, graphs)


def _lexical(model: Any, restored: Restored, at: int) -> PartExport:  # noqa: ANN401
    """bm25: the words of every video."""
    config = restored_config(model)
    split = tokenizer(config["stem"], config["stop_words"])
    texts = as_one([lent_texts(restored.collection.videos, name) for name in config["fields"]])
    words = pa.array([split(text) or [EMPTY] for text in texts], pa.list_(pa.string()))
    return PartExport({"kind": "lexical", "config": config}, {f"words_{at}": words})


def _popularity(model: Recommender, restored: Restored, at: int) -> PartExport:
    """collaborative: what it ranks by for someone without a history, which a question alone does not bring."""
    nobody = QueryBatch(restored.tables.queries[:1], [""], [None], [None])
    scores = model.score(nobody)[0].double().numpy()
    return PartExport({"kind": "popularity", "unseen": float(scores.min())}, {f"popularity_{at}": pa.array(scores)})


KINDS: dict[str, Callable[[Any, Restored, int], PartExport]] = {
    "single_tower": _joint,
    "bm25": _lexical,
    "collaborative": _popularity,
}


def restored_config(model: Recommender) -> dict[str, Any]:
    """The configuration a model keeps, as plain values; empty where it keeps none."""
    config = getattr(model, "config", None)
    return asdict(config) if config is not None else {}


def build(run: Path, say: Callable[[str], None] = lambda text: None) -> Pointer:
    """Export a finished run into RUN/serving and make the new build the current one.

    Args:
        run: the run's folder.
        say: is told what is being done.

    Raises:
        UserError: the run cannot be restored or exported, or the folder cannot be written.
    """
    say("restoring the run")
    known = fingerprint(run)
    restored = restore(run)
    with writing(run):
        folder = run / FOLDER
        temporary = Path(tempfile.mkdtemp(prefix=".build-", dir=folder))
        try:
            version = _write(temporary, restored, known, say)
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
            temporary.chmod(0o755)
            temporary.rename(folder / name)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}). Free some space.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        pointer = Pointer(name, version, version)
        try:
            earlier = read_pointer(run)
        except UserError:  # it says nothing of what was current: every build is kept
            kept = {path.name for path in folder.iterdir()}
        else:
            kept = {name, earlier.build if earlier else name}
        write_pointer(run, pointer)
        _drop_old(folder, kept)
    return pointer


def _write(folder: Path, restored: Restored, known: str, say: Callable[[str], None]) -> int:
    settings, collection, model = restored.settings, restored.collection, restored.model
    with torch.no_grad():
        named = dict(model_parts(model))
        for name, member in named.items():
            if name not in KINDS and not member.decoupled:
                raise UserError(
                    f"model={name} cannot be served yet: it has no two towers, and no scorer of its own here.\n"
                    "Serve a run of another model, such as experiment=best."
                )
        parts = [KINDS.get(name, _towers)(part, restored, at) for at, (name, part) in enumerate(named.items())]
        say("choosing the score below which nothing fits")
        threshold = choose_threshold(restored)
    columns = metadata_columns(collection.videos)
    table = table_of(collection.videos, columns)
    for part in parts:
        for name, column in part.columns.items():
            table = table.append_column(name, column)
    say("building the index")
    memory = MemoryIndex()
    memory.build(table, 1, {f"vector_{at}": part.probes for at, part in enumerate(parts) if part.probes is not None})
    catalogue = LanceIndex(str(folder / CATALOGUE))
    catalogue.build(table)
    version = catalogue.version
    memory.relabel(version)
    memory.save(folder, Pointer("", version, version).snapshot_name)
    say("exporting the towers")
    for at, (name, part) in enumerate(zip(named, parts, strict=True)):
        named[name].tables = _tiny(named[name].tables)
        for kind, graph in part.graphs.items():
            _export_graph(folder / f"{kind}_{at}.onnx", *graph)
    embedder = _bundle_embedder(settings.embedder, folder / EMBEDDER)
    facts = {name: asdict(ann.facts) for name, ann in memory.state.anns.items()}
    spec = {
        "format": FORMAT,
        "run": known,
        "model": settings.model.name,
        "collection": collection.name,
        "collection_fingerprint": collection.fingerprint,
        "parts": [{"name": name, **part.spec} for name, part in zip(named, parts, strict=True)],
        "fusion": _fusion(model),
        "columns": columns,
        "embedder": embedder,
        "threshold": threshold,
        "approximate": facts,
    }
    write_json(folder / MODEL, spec)
    return version


def model_parts(model: Any) -> list[tuple[str, Recommender]]:  # noqa: ANN401 - baselines are not imported here
    """The parts of a model by name: those of a hybrid, or itself."""
    if not hasattr(model, "first"):
        return [(_name(model), model)]
    found = [(_name(part), part) for part in (model.first, model.second)]
    return found if found[0][0] != found[1][0] else [(f"{name} {at}", part) for at, (name, part) in enumerate(found, 1)]


def _name(model: Recommender) -> str:
    from dcdt.registry import MODELS

    return next(name for name, place in MODELS.items() if place.endswith(f":{type(model).__name__}"))


def _fusion(model: Any) -> dict[str, Any] | None:  # noqa: ANN401
    if not hasattr(model, "first"):
        return None
    config = restored_config(model)
    return {"kind": config["fusion"], "k": config["k"], "weight": float(model.weight)}


def _tiny(tables: Tables) -> Tables:
    """One row of everything: a graph needs the model, not the catalogue."""
    return Tables(tables.queries[:1], tables.videos[:, :1], tables.frozen[:1], tables.fields)


def _export_graph(path: Path, module: nn.Module, example: Tensor, name: str, outputs: list[str]) -> None:
    """Write a graph and compare it with torch, on one and on several rows.

    Raises:
        UserError: onnxscript is missing, or the graph differs from torch.
    """
    module.eval()
    batch = torch.export.Dim("batch")
    shapes = {name: {example.ndim - 2: batch}}
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            try:
                torch.onnx.export(
                    module, (example,), path, dynamo=True, external_data=False,
                    input_names=[name], output_names=outputs, dynamic_shapes=shapes,
                )  # fmt: skip
            except ImportError as error:
                raise UserError("exporting a run needs the extra 'serve': pip install 'dcdt[serve]'.") from error
    graph = session(path)
    for rows in (example, example.narrow(example.ndim - 2, 0, 1)):
        with torch.no_grad():
            wanted = module(rows)
        for one, other in zip(wanted, graph.run(None, {name: rows.numpy()}), strict=True):
            worst = float(np.abs(one.numpy() - other).max()) / max(1.0, float(one.abs().max()))
            if not worst <= TOLERANCE:
                raise UserError(f"{path.name} is {worst:.2g} off torch (limit {TOLERANCE:g}); report this as a bug.")


def _bundle_embedder(config: Any, folder: Path) -> dict[str, Any]:  # noqa: ANN401 - any embedder's configuration
    """Put an exported local model beside the towers (hard links where the file system has them)."""
    if config.name != "local":
        return asdict(config)
    from dcdt.embedders.export import exported

    source = exported(config)
    folder.mkdir()
    for path in source.iterdir():
        try:
            os.link(path, folder / path.name)
        except OSError:
            shutil.copy2(path, folder / path.name)
    assert (folder / RECIPE).is_file()
    return asdict(config)


def _drop_old(folder: Path, kept: set[str]) -> None:
    """Remove builds that no reader opens any more: all but the current and the one before."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
