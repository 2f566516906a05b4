"""Load a finished run as a recommender."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dcdt.config import outputs_root
from dcdt.config.job_names import folder_name
from dcdt.data.beir import load_collection
from dcdt.runs.folder import RunFolder
from dcdt.serving.layout import read_pointer
from dcdt.serving.recommender import ServedRecommender

UNTRAINED = "the whitened cosine and BM25 (weight 0.2, the median chosen on four collections)"


def served_run(path: Path, say: Callable[[str], None] = lambda text: None, overrides: Sequence[str] = ()) -> Path:
    """Return the run to serve: in this folder, or of a collection's folder the one that needs no judgment, made once.

    `overrides` are of the configuration of a collection's run, such as another embedder, which makes another run.
    """
    if (path / "status.json").exists() or not (path / "corpus.jsonl").is_file():
        return path
    collection = load_collection(path, needs_queries=False)
    name = "_".join([collection.name, "untrained", collection.fingerprint[:8], *overrides])
    run = RunFolder(outputs_root() / folder_name(name)[:200])
    run.lock(wait=True)
    try:
        if run.read_status().get("status") != "finished":
            from dcdt.training.untrained import write_untrained_run

            say(f"{path} is a collection: searched by {UNTRAINED}, as {run.path}")
            write_untrained_run(run, collection, overrides)
    finally:
        run.unlock()
    return run.path


def load(
    run: str | Path, engine: str = "memory", *, say: Callable[[str], None] = lambda text: None, threads: int = 0
) -> ServedRecommender:
    """A recommender of a finished run; its index is built first where there is none (which needs torch, once).

    Args:
        run: the run's folder, or a collection's, which is searched without training.
        engine: `memory`, or `lance`, which searches the LanceDB table itself; for models with one vector a video.
        say: is told what is being built.
        threads: of the embedder; 0: as many as there are cores.

    Raises:
        UserError: the run did not finish, has no saved state, or its index is of another run.
    """
    folder = served_run(Path(run), say)
    if read_pointer(folder) is None:
        RunFolder(folder).require_finished()
        from dcdt.serving.export import build

        build(folder, say)
    return ServedRecommender(folder, threads, engine)
