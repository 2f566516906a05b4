"""Load a finished run as a recommender."""

from collections.abc import Callable
from pathlib import Path

from dcdt.serving.layout import read_pointer
from dcdt.serving.recommender import ServedRecommender


def served_run(path: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """The run to serve: the one in this folder, or of a collection's folder the one that needs no judgment.

    Raises:
        UserError: the collection is invalid, or its texts cannot be embedded here.
    """
    if (path / "status.json").exists() or not (path / "corpus.jsonl").is_file():
        return path
    from dcdt.training.untrained import untrained_run

    run = untrained_run(path, say)
    say(f"{path} is a collection, searched by BM25 and the whitened cosine, whose weights no question chose: {run}")
    return run


def load(
    run: str | Path, say: Callable[[str], None] = lambda text: None, threads: int = 0, engine: str = "memory"
) -> ServedRecommender:
    """A recommender of a finished run; its index is built first where there is none (which needs torch, once).

    Args:
        run: the run's folder, or a collection's, which is searched without training.
        say: is told what is being built.
        threads: of the embedder; 0: as many as there are cores.
        engine: `memory`, or `lance`, which searches the LanceDB table itself; for models with one vector a video.

    Raises:
        UserError: the run did not finish, has no saved state, or its index is of another run.
    """
    folder = served_run(Path(run), say)
    if read_pointer(folder) is None:
        from dcdt.runs.folder import RunFolder

        RunFolder(folder).require_finished()
        from dcdt.serving.export import build

        build(folder, say)
    return ServedRecommender(folder, threads, engine)
