"""Recommend teaching videos to a learner who asks a question in words."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcdt.serving.recommender import ServedRecommender

__version__ = "0.1.0"


def load(run: str | Path, engine: str = "memory") -> "ServedRecommender":
    """A recommender of a finished run of any model: `dcdt.load(run).recommend("what is a basis", k=5)`.

    The first use of a run exports it (RUN/serving), which takes torch and some seconds; later ones need neither.

    Args:
        run: the run's folder.
        engine: `memory`, or `lance`, which holds no vectors but searches the table; for models with one vector a video.

    Raises:
        UserError: the run did not finish, has no saved state, its index is of another run, or the engine does not fit.
    """
    from dcdt.serving.recommender import load as load_run

    return load_run(run, engine=engine)
