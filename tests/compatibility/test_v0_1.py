"""What version 0.1.0 wrote is read by this one: its vectors unchanged, its runs reported and restored.

`v0_1/` was written by 0.1.0 (commit 2c943b3): a small collection, the vectors of its texts, and three finished runs.
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from dcdt import report
from dcdt.data.beir import load_collection
from dcdt.data.splits import make_split
from dcdt.data.units import query_units
from dcdt.embeddings import fill
from dcdt.evaluation.ties import tie_positions
from dcdt.models.query_batch import query_batch
from dcdt.models.ranking import rank_side
from dcdt.training import build
from dcdt.training.checkpoint import restore

STORED = Path(__file__).parent / "v0_1"
RUNS = ("dcdt", "hybrid", "ridge")


@pytest.fixture
def stored(tmp_path):
    """A copy, whose configurations name the folder it lies in."""
    folder = Path(shutil.copytree(STORED, tmp_path / "stored"))
    for path in folder.glob("runs/*/config.yaml"):
        path.write_text(path.read_text().replace("FOLDER", str(folder)))
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_restored_with_its_metrics_and_no_text_is_embedded_again(stored, name, monkeypatch):
    monkeypatch.setattr(fill, "make_embedder", None)  # nothing may be embedded
    before = contents(stored / "cache")
    restored = restore(stored / "runs" / name)
    split = make_split(restored.collection, restored.settings.split)
    data = build.make_datamodule(restored.settings, restored.collection, split, restored.tables)
    side, grade, ks = data.sides["test"], restored.collection.positive_grade, restored.settings.ks
    with torch.no_grad():
        scores = restored.model.score(query_batch(restored.collection, restored.tables, side.queries, side))
    _, metrics, _ = rank_side(side, torch.arange(len(side.queries)), scores, data.ties.on(scores.device), grade, ks)
    stored_metrics = json.loads((stored / "runs" / name / "metrics.json").read_text())
    assert len(metrics) > 5
    assert {f"test/{key}": float(values.mean()) for key, values in metrics.items()} == pytest.approx(
        {f"test/{key}": stored_metrics[f"test/{key}"] for key in metrics}, abs=1e-6
    )
    assert contents(stored / "cache") == before


def test_runs_are_reported(stored, monkeypatch):
    runs = [str(stored / "runs" / name) for name in RUNS]
    monkeypatch.setattr("sys.argv", ["report", *runs, "--out", str(stored / "report")])
    report.main()
    [header, _, *rows] = [line for line in (stored / "report" / "table.md").read_text().splitlines() if "|" in line][:6]
    assert "MRR" in header
    for name in RUNS:
        metrics = json.loads((stored / "runs" / name / "metrics.json").read_text())
        assert any(f"{metrics['test/mrr']:.3f}" in row for row in rows), (name, rows)
    collection = load_collection(stored / "collection")
    units = query_units(collection, tie_positions(collection.videos.ids))
    tested = pq.read_table(stored / "runs" / RUNS[0] / "per_query.parquet", filters=[("split", "=", "test")])
    rows = {collection.queries.row_of[name] for name in tested["query_id"].to_pylist()}
    caption = json.loads((stored / "report" / "table.json").read_text())["facts"]["units"]
    assert caption.startswith(f"{len({units[row] for row in rows})}")  # computed from the collection
    assert "not known" not in caption
