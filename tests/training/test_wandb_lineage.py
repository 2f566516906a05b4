"""What a run reads and writes, as artifacts of digests, read back from the offline files."""

import hashlib
import json

import pytest
import yaml
from test_wandb_runs import records

from dcdt.runs.folder import RunFolder
from dcdt.serving.layout import CHECKSUMS, MODEL
from dcdt.training.loggers import log_index
from dcdt.training.loggers.wandb_lineage import checkpoint_artifact, data_artifacts, log_lineage, results_artifact
from dcdt.training.loggers.wandb_run import start_run

SECRET = "sk-" + "k" * 40


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that logged to W&B offline, as far as lineage reads it."""
    run = RunFolder(tmp_path / "sweep" / "run")
    run.files.checkpoint.parent.mkdir(parents=True)
    run.files.checkpoint.write_bytes(b"weights")
    config = {"logger": {"name": "wandb", "artifacts": True, "entity": None}, "data": {"path": str(tmp_path / SECRET)}}
    run.files.config.write_text(yaml.safe_dump(config))
    run.files.metrics.write_text("{}")
    run.files.wandb.write_text(json.dumps({"id": "abc", "name": "dcdt", "project": "p", "mode": "offline"}))
    facts = {"collection": "linear algebra", "collection_fingerprint": "12ab", "embeddings": "space", "vectors": "34cd"}
    run.files.provenance.write_text(json.dumps({**facts, "command": ["python", str(tmp_path)]}))
    return run


def artifacts(folder):
    """Name to the record of every artifact of the offline runs beside a run's folder."""
    return {one["name"]: one for part in records(folder, "artifact").values() for one in part}


def reads(record):
    return bool(record.get("useAfterCommit") or record.get("use_after_commit"))


@pytest.mark.slow
def test_a_run_reads_its_data_and_writes_its_results(folder, tmp_path, capfd):
    run, _ = start_run(folder.path.parent, "offline", False, console=False, machine=False, project="p")
    log_lineage(run, data_artifacts(folder), [checkpoint_artifact(folder), results_artifact(folder)])
    run.finish()
    found = artifacts(folder.path.parent)
    assert {name: (one["type"], reads(one)) for name, one in found.items()} == {
        "collection-linear_algebra": ("collection", True),
        "embeddings-linear_algebra-space": ("embeddings", True),
        "checkpoint-abc": ("checkpoint", False),
        "results-abc": ("run", False),
    }
    text = json.dumps(found)
    assert "dcdt:12ab" in text and "dcdt:34cd" in text
    assert f"sha256:{hashlib.sha256(b'weights').hexdigest()}" in text
    assert str(tmp_path) not in text and SECRET not in text and "file:" not in text
    assert "unsupported" not in capfd.readouterr().err  # W&B's warning about each reference


@pytest.mark.slow
def test_an_index_reads_the_checkpoint_where_the_run_logs_artifacts(folder):
    files = [folder.path / name for name in (MODEL, CHECKSUMS)]
    for path in files:
        path.write_text("{}")
    log_index(folder.path, files)
    found = artifacts(folder.path.parent)
    assert {name for name, one in found.items() if reads(one)} >= {"checkpoint-abc", "collection-linear_algebra"}
    assert not reads(found["index-abc"])


def test_without_the_option_an_index_is_not_logged(folder):
    folder.files.config.write_text(folder.files.config.read_text().replace("artifacts: true", "artifacts: false"))
    log_index(folder.path, [])
    assert not (folder.path.parent / "wandb").exists()


def test_the_same_content_is_the_same_version(folder):
    first, again = (data_artifacts(folder)[0] for _ in range(2))
    folder.files.provenance.write_text(folder.files.provenance.read_text().replace("12ab", "99ff"))
    assert first.digest == again.digest != data_artifacts(folder)[0].digest
