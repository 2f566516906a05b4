"""Export a finished run so that it answers without torch: towers as ONNX, the catalogue with its vectors, a spec.

This is the one module of `dcdt.serving` that imports torch (with `abstain.py`).
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
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
from dcdt.data.tokens import tokenizer
from dcdt.data.types import Collection, as_one, lent_texts
from dcdt.embeddings.providers.onnx import RECIPE
from dcdt.embeddings.providers.onnx_export import exported, quietly
from dcdt.models.recommender import Recommender
from dcdt.serving.abstain import choose_threshold
from dcdt.serving.export_head import head_export, save_head
from dcdt.serving.export_history import collaborative, histories_of, history_towers, save_histories
from dcdt.serving.index import vector_column
from dcdt.serving.lance import LanceIndex, check_address
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
from dcdt.serving.parts import PARITY, TOLERANCE, PartExport, linear_query
from dcdt.serving.questions import check_eight_bit, eight_bit_questions
from dcdt.serving.recommender import reads_vectors
from dcdt.serving.towers import learned_path, session
from dcdt.serving.validation import Validation
from dcdt.serving.videos import metadata_columns, table_of
from dcdt.training.restore import Restored, restore
from dcdt.utils.errors import UserError
from dcdt.utils.files import write_json


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
    spec["reads_history"] = getattr(model, "histories", None) is not None
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
    spec["linear"], learned = linear_query(model)
    return PartExport(spec, columns, graphs, learned, model.encode_queries(tables.queries[:400]).numpy())


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


KINDS: dict[str, Callable[[Any, Restored, int], PartExport]] = {
    "single_tower": _joint,
    "bm25": _lexical,
    "collaborative": collaborative,
    "dcdt_history": history_towers,
}


def restored_config(model: Recommender) -> dict[str, Any]:
    """The configuration a model keeps, as plain values; empty where it keeps none."""
    config = getattr(model, "config", None)
    return asdict(config) if config is not None else {}


def build(
    run: Path,
    say: Callable[[str], None] = lambda text: None,
    catalogue: str | None = None,
    eight_bit: bool = False,
) -> Pointer:
    """Export a finished run into RUN/serving and make the new build the current one.

    Args:
        run: the run's folder.
        say: is told what is being done.
        catalogue: folder or object store under which the table of this build is to lie; None: in the build itself.
        eight_bit: whether questions are embedded with 8-bit weights (`dcdt.serving.questions`).

    Raises:
        UserError: the run cannot be restored or exported, the folder or the catalogue cannot be written, or 8-bit
            weights lose too much on validation.
    """
    address = check_address(catalogue) if catalogue is not None else None
    say("restoring the run")
    known = fingerprint(run)
    restored = restore(run)
    with writing(run):
        folder = run / FOLDER
        temporary = Path(tempfile.mkdtemp(prefix=".build-", dir=folder))
        try:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
            version = _write(temporary, restored, known, say, f"{address}/{name}" if address else None, eight_bit)
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


def _write(
    folder: Path, restored: Restored, known: str, say: Callable[[str], None], address: str | None, eight_bit: bool
) -> int:
    settings, collection, model = restored.settings, restored.collection, restored.model
    with torch.no_grad():
        named = dict(model_parts(model))
        for name, member in named.items():
            if _name(member) not in KINDS and not member.decoupled:
                raise UserError(
                    f"model={name} cannot be served yet: it has no two towers, and no scorer of its own here.\n"
                    "Serve a run of another model, such as experiment=best."
                )
        parts = [KINDS.get(_name(part), _towers)(part, restored, at) for at, part in enumerate(named.values())]
        head = head_export(model) if hasattr(model, "recall") else None
        validation, questions, vectors = Validation(restored), None, None
        embedder = _bundle_embedder(settings.embedder, folder / EMBEDDER)
        if eight_bit:
            check_eight_bit(restored, reads_vectors([part.spec for part in parts], head))
            say("measuring questions by 8-bit weights")
            questions, vectors = eight_bit_questions(validation, folder / EMBEDDER)
        say("choosing the score below which nothing fits")
        threshold = choose_threshold(validation, vectors)
    columns = metadata_columns(collection.videos)
    table = table_of(collection.videos, columns)
    for part in [*parts, *([head] if head else [])]:
        for name, column in part.columns.items():
            table = table.append_column(name, column)
    say("building the index")
    memory = MemoryIndex()
    memory.build(table, 1, {f"vector_{at}": part.probes for at, part in enumerate(parts) if part.probes is not None})
    catalogue = LanceIndex(address or str(folder / CATALOGUE))
    catalogue.build(table)
    version = catalogue.version
    memory.relabel(version)
    memory.save(folder, Pointer("", version, version).snapshot_name)
    say("exporting the towers")
    _write_parts(folder, named, parts, collection)
    if head is not None:
        save_head(model, collection, folder)
        for kind, graph in head.graphs.items():
            _export_graph(folder / f"{kind}.onnx", *graph)
    facts = {name: asdict(ann.facts) for name, ann in memory.state.anns.items()}
    spec = {
        "format": FORMAT,
        "run": known,
        "model": settings.option,
        "collection": collection.name,
        "collection_fingerprint": collection.fingerprint,
        "parts": [{"name": name, **part.spec} for name, part in zip(named, parts, strict=True)],
        "fusion": _fusion(getattr(model, "recall", model)),
        "head": head.spec if head is not None else None,
        "columns": columns,
        "catalogue": address,
        "embedder": embedder,
        "questions": questions,
        "threshold": threshold,
        "approximate": facts,
    }
    write_json(folder / MODEL, spec)
    return version


def _write_parts(folder: Path, named: dict[str, Recommender], parts: list[PartExport], collection: Collection) -> None:
    """The graphs and arrays of all parts, and the histories that they read."""
    for at, (name, part) in enumerate(zip(named, parts, strict=True)):
        named[name].tables = _tiny(named[name].tables)
        for kind, graph in part.graphs.items():
            _export_graph(folder / f"{kind}_{at}.onnx", *graph)
        if part.learned:
            learned_path(folder, at).write_bytes(save(part.learned))  # save_file keeps it from other accounts
    if watched := next(filter(None, map(histories_of, named.values())), None):
        save_histories(watched, collection, folder)


def model_parts(model: Any) -> list[tuple[str, Recommender]]:  # noqa: ANN401 - baselines are not imported here
    """The parts of a model by name: those of a hybrid, those of two stages (the recall's first), or itself."""
    members = _members(model)
    found = [(_name(part), part) for part in members]
    named = [name for name, _ in found]
    return [(f"{name} {at}" if named.count(name) > 1 else name, part) for at, (name, part) in enumerate(found, 1)]


def _members(model: Any) -> list[Recommender]:  # noqa: ANN401
    if hasattr(model, "recall"):
        return [*_members(model.recall), *([model.lexical] if model.lexical is not None else [])]
    return [model.first, model.second] if hasattr(model, "first") else [model]


def _name(model: Recommender) -> str:
    return name_of(MODELS, type(model))


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
    try:
        with quietly(), torch.no_grad():
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
