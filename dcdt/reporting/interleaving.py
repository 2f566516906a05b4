"""Compare two models that were interleaved (`dcdt.serve --interleave`) by the clicks on their videos."""

from collections import defaultdict

from dcdt.data.feedback import Feedback
from dcdt.data.types import normalise_text
from dcdt.utils.errors import UserError


def compare_interleaved(feedback: Feedback) -> dict[str, tuple[int, int, int, float]]:
    """Count wins, losses and ties of the first of two models, with the p-value of the exact two-sided sign test.

    An answer goes to the model whose videos have more clicks (thumbs up count too, thumbs down against it), a learner
    to the model that has more answers, so that one learner with many questions counts once; so does a question whose
    learners are not known.

    Raises:
        UserError: no answer was interleaved.
    """
    from scipy.stats import binomtest  # takes a second, which other reports need not wait

    credits: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, answer in feedback.answers.items():
        if len(answer.models) == 2 and len(answer.teams) == len(answer.videos):
            models = " against ".join(f"{model} ({build})" for model, build, _ in answer.models)
            signs = dict(zip(answer.videos, (1 - 2 * team for team in answer.teams), strict=True))
            credit = sum(value * signs[video] for video, value in feedback.values.get(name, {}).items())
            credits[models][answer.user or normalise_text(answer.question)] += (credit > 0) - (credit < 0)
    if not credits:
        raise UserError("no answer was interleaved. Record some: dcdt.serve RUN --beside OTHER --interleave --feedback")
    outcomes = {}
    for models, by_unit in sorted(credits.items()):
        wins, losses = (sum(sign * value > 0 for value in by_unit.values()) for sign in (1, -1))
        p_value = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
        outcomes[models] = wins, losses, len(by_unit) - wins - losses, p_value
    return outcomes
