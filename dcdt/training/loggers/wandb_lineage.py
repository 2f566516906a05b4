"""Lineage on W&B: what a run reads and writes, as artifacts that hold digests alone. Nothing is uploaded.

The reference of an entry is the digest of what it stands for, never a path of this machine: `sha256:HEX` of a file's
content, `dcdt:HEX` of a collection or of vectors, as `provenance.json` has them. Artifacts with the same name and
digests are one version on W&B, so that the runs which read it are joined.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import wandb
from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
from wandb.sdk.lib.paths import LogicalPath

from dcdt.runs.folder import RunFolder
from dcdt.training.loggers.wandb_run import MAX_NAME_CHARS, start_run
from dcdt.utils.files import read_json


def log_lineage(run: wandb.Run, reads: Sequence[wandb.Artifact], writes: Sequence[wandb.Artifact]) -> None:
    """Declare artifacts as inputs and outputs of a run, without waiting for the server.

    `Run.use_artifact` refuses a run that is offline; what it calls for one that is online does not.
    """
    for artifact in reads:
        run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    for artifact in writes:
        run.log_artifact(artifact)


def data_artifacts(folder: RunFolder) -> list[wandb.Artifact]:
    """Make the artifacts of the collection and of the embedding cache that a run reads."""
    facts = read_json(folder.files.provenance)
    parts = [("collection", facts["collection"], facts["collection_fingerprint"])]
    parts.append(("embeddings", f"{facts['collection']}-{facts['embeddings']}", facts["vectors"]))
    return [_artifact(f"{kind}-{name}", kind, {kind: f"dcdt:{digest}"}) for kind, name, digest in parts if digest]


def checkpoint_artifact(folder: RunFolder) -> wandb.Artifact:
    """Make the artifact of a run's best weights and of the configuration that they are built from."""
    files = (folder.files.checkpoint, folder.files.config)
    return _artifact(f"checkpoint-{_run_id(folder)}", "checkpoint", _digests(files))


def results_artifact(folder: RunFolder) -> wandb.Artifact:
    """Make the artifact of a run's results, from which tables are made."""
    files = folder.files
    written = (files.config, files.provenance, files.metrics, files.per_query, files.ranking)
    return _artifact(f"results-{_run_id(folder)}", "run", _digests(written))


def log_index(folder: RunFolder, files: Sequence[Path]) -> None:
    """Log a new index of a run, whose content these files decide, as a W&B run that reads the run's checkpoint."""
    facts, entity = read_json(folder.files.wandb), folder.read_config().logger.get("entity")
    names = {"name": f"index of {facts['name']}", "job_type": "index", "config": {"run": facts["id"]}}
    place = {"project": facts["project"], "entity": entity}
    run, _ = start_run(folder.path.parent, facts["mode"], False, console=False, machine=False, **names, **place)
    index = _artifact(f"index-{facts['id']}", "index", _digests(files))
    log_lineage(run, [*data_artifacts(folder), checkpoint_artifact(folder)], [index])
    run.finish(exit_code=0)


def _run_id(folder: RunFolder) -> str:
    return str(read_json(folder.files.wandb)["id"])


def _digests(files: Sequence[Path]) -> dict[str, str]:
    """Name to `sha256:HEX` of the files that exist."""
    digests = {}
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                digests[path.name] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return digests


def _artifact(name: str, kind: str, references: dict[str, str]) -> wandb.Artifact:
    artifact = wandb.Artifact(re.sub(r"[^a-zA-Z0-9_.-]", "_", name)[:MAX_NAME_CHARS], kind)
    for entry, reference in references.items():  # what add_reference does, without its warning of an unknown scheme
        artifact.manifest.add_entry(ArtifactManifestEntry(path=LogicalPath(entry), digest=reference, ref=reference))
    return artifact
