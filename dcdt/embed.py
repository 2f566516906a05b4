"""Fill the embedding cache of a collection: `python -m dcdt.embed [data=...] [embedder=...]`.

dry_run=true                                say what it would take, and stop
verify=true                                 check every vector of the cache
import.vectors=FILE [import.names=FILE]     bring in vectors that are there already
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dcdt.cli import command, prepare_hydra
from dcdt.config import Settings, config_folder, parse, vector_fields
from dcdt.embeddings.config import EmbedJob, take_embed_job
from dcdt.utils.errors import UserError, format_error, is_user_error
from dcdt.utils.shell import override, shell_command
from dcdt.utils.signals import Interrupted

if TYPE_CHECKING:
    from dcdt.embeddings.cache import VectorCache


def run(settings: Settings, job: EmbedJob) -> None:
    """Embed what the cache lacks of the queries and the fields of the videos, or verify it, or import vectors.

    Raises:
        UserError: a mistake that the user can correct.
    """
    from dcdt.data.beir import load_collection
    from dcdt.embeddings.cache import VectorCache
    from dcdt.embeddings.fill import fill
    from dcdt.embeddings.providers import space_of
    from dcdt.embeddings.vector_import import import_vectors

    collection = load_collection(settings.data.path)
    folders = override("data.path", collection.path), override("data.cache", settings.data.cache)
    choice = [] if settings.embedder.name == "local" else [override("embedder", settings.embedder.name)]
    remedy = shell_command("embed", "data=files", *folders, *choice)
    space = space_of(settings.embedder)
    if job.verify:
        _verify(VectorCache(settings.data.cache, space, remedy, lazy=True))
        return
    cache = VectorCache(settings.data.cache, space, remedy)
    if job.importing.vectors is not None:
        names = job.importing.names
        added, skipped = import_vectors(
            cache,
            Path(job.importing.vectors),
            None if names is None else Path(names),
            collection,
            job.importing.field,
            job.importing.normalise,
        )
        _print(f"{added:,} vectors imported; {skipped:,} rows left out, their texts have a vector already")
    else:
        collection.check_fields(settings.fields)
        fields = [text for name in vector_fields(settings.model) for text in collection.vector_texts(name)]
        queries = collection.queries.texts if collection.has_questions else []
        result = fill(cache, [*queries, *fields], settings.embedder, dry_run=job.dry_run)
        if settings.reads_images and not job.dry_run:
            from dcdt.embeddings.tables import load_images

            load_images(collection, settings.image_embedder, settings.data.cache)
        if not result.embedded and not job.dry_run:
            _print(f"{result.texts:,} distinct texts, all cached")
    if not job.dry_run:
        _print(f"{cache.folder}: {len(cache):,} vectors of {cache.space.dimensions} numbers")


def _verify(cache: "VectorCache") -> None:
    from dcdt.embeddings.verification import verify

    if not cache.folder.is_dir():
        raise UserError(f"there is no cache {cache.folder}. Check data.cache and embedder; {cache.remedy} makes one.")
    result = verify(cache)
    counts = f"{result.files} files, {result.vectors:,} vectors of {result.texts:,} texts; {len(result.bad)} bad"
    _print(f"{cache.folder}: {counts}")
    if result.bad:
        raise UserError("\n".join([*result.bad, f"Delete these files, then {cache.remedy}; other vectors are kept."]))


def _print(line: str) -> None:
    print(line)  # noqa: T201 - what the command says


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="embed")
def job(config: DictConfig) -> None:
    """One job of Hydra."""
    os.chdir(HydraConfig.get().runtime.cwd)  # relative paths start where the user stands, whatever hydra.job.chdir says
    try:
        own, rest = take_embed_job(config)
        run(parse(rest), own)
    except Exception as error:
        if not is_user_error(error):
            raise
        print(f"error: {format_error(error)}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except Interrupted as error:
        error.advice = "what was embedded is stored, and the same command continues from there."
        raise


@command
def main() -> None:
    """The command."""
    prepare_hydra()
    job()


if __name__ == "__main__":
    main()
