"""Group runs into model variants, name them by what differs, and refuse to compare what is not comparable."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcdt.config import as_text, depends_on, flatten, model_option, search_space
from dcdt.runs.reader import FINISHED, Run
from dcdt.utils.errors import UserError

# Settings that do not define a variant: where results go, and what must agree anyway (data, split, embedder, ks).
IGNORED = ("outputs", "logger", "sweep", "experiment_name", "seed", "split", "data", "embedder", "ks", "primary_metric")
IGNORED_CALLBACKS = ("callbacks.progress", "callbacks.collapse_cosine")
TRAINING_QUERIES = {"train_queries": None, "train_on": "all", "max_overlap": None}  # of split: may differ between rows
SIMULATED = " (simulated)"
TRAINING = (
    "loss",
    "sampler",
    "optimizer",
    "trainer",
    "callbacks",
    "batch_size",
)  # irrelevant for models that are not trained


@dataclass(frozen=True)
class Variant:
    """Runs that differ in fold and seed only.

    Attributes:
        label: its option of conf/model, or the nearest one, and the choices in which the variants of a report with
            the same option differ.
        model: name of the model.
        runs: the finished ones, by fold and seed, one each.
        missing: unfinished ones of a fold and seed that no run finished.
        retried: unfinished ones of a fold and seed that another run finished.
    """

    label: str
    model: str
    runs: list[Run]
    missing: list[Run]
    retried: list[Run]

    @property
    def folds(self) -> list[int]:
        """Folds of the finished runs."""
        return sorted({run.fold for run in self.runs})


def make_variants(runs: list[Run]) -> list[Variant]:
    """Group runs into the variants of a report, sorted by label.

    Raises:
        UserError: runs that cannot be compared, or two runs of one variant, fold and seed with different results.
    """
    check_comparable(runs)
    groups: dict[str, list[Run]] = {}
    choices: dict[str, dict[str, str]] = {}
    for run in runs:
        deciding = _deciding_options(run)
        key = json.dumps(deciding, sort_keys=True)
        choices[key] = deciding
        groups.setdefault(key, []).append(run)
    labels = _labels(choices, {key: model_option(members[0].config["model"]) for key, members in groups.items()})
    simulated = any("interactions" in run.provenance.get("simulated", []) for run in runs)
    variants = []
    for key, members in groups.items():
        model, _, rest = labels[key].partition(", ")
        if simulated and _uses_interactions(members[0].config["model"]):
            model += SIMULATED
        variants.append(_make_variant(f"{model}, {rest}" if rest else model, members))
    return sorted(variants, key=lambda variant: variant.label)


def check_comparable(runs: list[Run]) -> None:
    """Raise UserError, naming two runs, if settings, collections, embeddings or splits disagree."""
    for name in ("split", "ks", "primary_metric"):
        _check_equal(name, ((run, as_text(_without_index(run.config.get(name)))) for run in runs))
    done = [run for run in runs if run.status == FINISHED]
    for name, label in (("collection_fingerprint", "collection"), ("embeddings", "embedding space")):
        _check_equal(label, ((run, str(run.provenance.get(name))) for run in done))
    _check_equal("vectors", ((run, run.provenance["vectors"]) for run in done if run.provenance.get("vectors")))
    for fold, subset in sorted({(run.fold, _training_subset(run)) for run in done}):
        fingerprints = (
            (run, str(run.provenance.get("split_fingerprint")))
            for run in done
            if (run.fold, _training_subset(run)) == (fold, subset)
        )
        _check_equal(f"split of fold {fold}", fingerprints)
    for fold in sorted({run.fold for run in done}):  # a learning curve: other training queries, the same test queries
        _check_equal(
            f"test side of fold {fold}", ((run, str(sorted(run.sides["test"].ids))) for run in done if run.fold == fold)
        )


def _check_equal(label: str, values: Iterable[tuple[Run, str]]) -> None:
    first: tuple[Run, str] | None = None
    for run, value in values:
        first = first or (run, value)
        if value != first[1]:
            raise UserError(
                f"not comparable: the {label} of {first[0].folder} is {first[1]}, that of {run.folder} is {value}.\n"
                "Report on them apart, or repeat one of them."
            )


def _training_subset(run: Run) -> str:
    """Return the subset of training queries of a run: how many, judged or weak ones, and how like test queries."""
    return str(_training_queries(run))


def _training_queries(run: Run) -> dict[str, Any]:
    split = run.config.get("split", {})
    return {key: split.get(key, default) for key, default in TRAINING_QUERIES.items()}


def _without_index(value: Any) -> Any:  # noqa: ANN401 - configuration
    varied = ("index", *TRAINING_QUERIES)
    return {key: item for key, item in value.items() if key not in varied} if isinstance(value, Mapping) else value


def _deciding_options(run: Run) -> dict[str, str]:
    """Return the dotted keys and values of a run's configuration that its model depends on: they define its variant."""
    keys = depends_on(run.config["model"], run.config.get("trials"))
    skipped = (*IGNORED, *(() if "optimizer" in keys else TRAINING), *(() if search_space(run.model) else ("trials",)))
    settings = {key: value for key, value in run.config.items() if key not in skipped}
    if "train_queries" in keys:  # else it is one row of a learning curve
        settings |= _training_queries(run)
    flat = flatten(settings)
    return {key: value for key, value in flat.items() if key not in IGNORED_CALLBACKS}


def training_choices(variants: list[Variant]) -> dict[str, list[str]]:
    """Return the training choices that differ between models, with the labels of the models; empty if none differ."""
    trained = sorted(
        (variant for variant in variants if any(run.cost.get("epochs") for run in variant.runs)),
        key=lambda variant: variant.label,
    )
    flat = {
        variant.label: flatten({group: variant.runs[0].config.get(group) for group in TRAINING}) for variant in trained
    }
    keys = sorted({key for options in flat.values() for key in options} - set(IGNORED_CALLBACKS))
    differing = [key for key in keys if len({options.get(key) for options in flat.values()}) > 1]
    labels_of: dict[str, list[str]] = {}
    for label, options in flat.items():
        choices = ", ".join(f"{key.removesuffix('.name')}={options[key]}" for key in differing if key in options)
        labels_of.setdefault(choices, []).append(label)
    return labels_of if len(labels_of) > 1 else {}


def _labels(choices: dict[str, dict[str, str]], options: dict[str, str]) -> dict[str, str]:
    """Make labels: the option plus the choices that differ among its variants, within their loss, sampler, ..."""
    differing: dict[str, list[str]] = {key: [] for key in choices}
    for name in sorted({name for options_of in choices.values() for name in options_of} - {"model.name"}):
        values: dict[tuple[str, str], set[str]] = {}
        for key, options_of in choices.items():
            if name in options_of:
                values.setdefault((options[key], _peer_group(name, options_of)), set()).add(options_of[name])
        for key, options_of in choices.items():
            if name in options_of and len(values[options[key], _peer_group(name, options_of)]) > 1:
                differing[key].append(f"{name.removesuffix('.name')}={options_of[name]}")
    labels = {key: ", ".join([options[key], *options_of]) for key, options_of in differing.items()}
    counts: dict[str, int] = {}
    for key in sorted(labels):  # equal only where configurations of different versions lack keys
        counts[labels[key]] = counts.get(labels[key], 0) + 1
        if counts[labels[key]] > 1:
            labels[key] += f" #{counts[labels[key]]}"
    return labels


def _peer_group(name: str, options: dict[str, str]) -> str:
    """Return the group in which a choice is compared: for `loss.margin` the same loss; for `loss.name` all."""
    group = f"{name.split('.')[0]}.name"
    return "" if name == group else options.get(group, "")


def _uses_interactions(model: Any) -> bool:  # noqa: ANN401 - configuration
    """Return whether the model, or a component of it, reads interactions."""
    plain = as_text(model)
    named = {"collaborative", "dcdt_history"} & set(re.split(r"[^a-z_]+", plain))
    return bool(named) or bool(re.search(r"\bhistory:(?!none\b)", plain))


def _make_variant(label: str, members: list[Run]) -> Variant:
    done: dict[tuple[int, int], Run] = {}
    for run in (run for run in members if run.status == FINISHED):
        first = done.setdefault((run.fold, run.seed), run)
        if not _equal_results(first, run):
            raise UserError(
                f"two runs of {label}, fold {run.fold}, seed {run.seed}, with different results: "
                f"{first.folder} and {run.folder}.\nGive one of them."
            )
    broken = [run for run in members if run.status != FINISHED]
    missing = [run for run in broken if (run.fold, run.seed) not in done]
    retried = [run for run in broken if (run.fold, run.seed) in done]
    return Variant(label, members[0].model, [done[key] for key in sorted(done)], missing, retried)


def _equal_results(one: Run, other: Run) -> bool:
    ours, theirs = one.sides["test"], other.sides["test"]
    return ours.ids == theirs.ids and all(
        np.array_equal(values, theirs.values.get(name, values)) for name, values in ours.values.items()
    )
