"""Recommend teaching videos to a learner who asks a question in words."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdt.utils.signals import end_in_one_line

if TYPE_CHECKING:
    from dcdt.evaluation.evaluate import Evaluation
    from dcdt.serving.recommender import ServedRecommender

__version__ = "0.2.0"
__all__ = ["evaluate", "load", "register"]


if sys.argv[:1] == ["-m"] or Path((sys.argv or [""])[0]).name == "dcdt":  # a command, whose imports take seconds
    end_in_one_line()


def load(run: str | Path, engine: str = "memory") -> "ServedRecommender":
    """A recommender of a finished run of any model: `dcdt.load(run).recommend("what is a basis", k=5)`.

    The first use of a run exports it (RUN/serving), which takes torch and some seconds; later ones need neither.

    Args:
        run: the run's folder.
        engine: `memory`, or `lance`, which holds no vectors but searches the table; for models with one vector a video.

    Raises:
        UserError: the run did not finish, has no saved state, its index is of another run, or the engine does not fit.
    """
    from dcdt.serving.load import load as load_run

    return load_run(run, engine=engine)


def register(
    group: str,
    name: str,
    schema: type,
    search_space: Mapping[str, list[Any]] | None = None,
    depends_on: Iterable[str] = ("loss", "sampler", "batch_size", "optimizer", "train_queries"),
) -> Callable[[type], type]:
    """Register the class that follows as `group=name`: `@register("loss", "mine", MyConfig)` (docs/extending.md).

    Args:
        group: model, loss, sampler, embedder or optimizer.
        name: of the option.
        schema: of its configuration, a class decorated with `dcdt.config.schema`, with a field `name`.
        search_space: of a model: keys of the configuration, each with the values that tuning draws from.
        depends_on: of a model: which of these its scores depend on.

    Raises:
        UserError: the group or the schema is none, or the name is taken.
    """
    from dcdt.config.registry import register as register_entry

    return register_entry(group, name, schema, search_space, depends_on)


def evaluate(
    scores: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, float]],
    ks: Sequence[int] = (1, 5, 10),
    positive_grade: float = 1.0,
) -> "Evaluation":
    """Measure any system's scores by the protocol of the tables: `dcdt.evaluate(scores, qrels).means["mrr"]`.

    Args:
        scores: query id -> video id -> score, of every video; higher is better.
        qrels: query id -> video id -> grade.
        ks: cut-offs.
        positive_grade: the least grade of a positive.

    Returns:
        `means`, `per_query`, `left_out`, and `interval(metric)`.

    Raises:
        UserError: a score or grade that is no number, a cut-off below 1, or no query with a positive.
    """
    from dcdt.evaluation.evaluate import evaluate as evaluate_scores

    return evaluate_scores(scores, qrels, ks, positive_grade)
