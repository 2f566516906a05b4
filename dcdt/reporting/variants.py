"""Group runs into model variants, name them by what differs, and refuse to compare what is not comparable."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcdt.config import as_text, flatten, model_option, reads, search_space
from dcdt.runs.reader import FINISHED, Run
from dcdt.utils.errors import UserError

# What makes no other variant: where results go, and what must agree anyway (data, split, embedder, ks).
IGNORED = ("outputs", "logger", "sweep", "experiment_name", "seed", "split", "data", "embedder", "ks", "primary_metric")
IGNORED_CALLBACKS = ("callbacks.progress", "callbacks.collapse_cosine")
SIMULATED = " (simulated)"
TRAINING = ("loss", "sampler", "optimizer", "trainer", "callbacks", "batch_size")  # moot where nothing is trained


@dataclass(frozen=True)
class Variant:
    """Runs that share everything that matters but fold and seed.

    Attributes:
        label: the option of conf/model that it is, or is nearest to, and the choices in which the variants of a
            report with the same option differ.
        model: name of the model.
        runs: the finished ones, by fold and seed, one each.
        missing: those of a fold and seed that no run finished.
        retried: those that broke, but of whose fold and seed another run finished.
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
    """The variants of a report, by label.

    Raises:
        UserError: runs that cannot be compared, or two runs of one variant, fold and seed with different results.
    """
    check_comparable(runs)
    groups: dict[str, list[Run]] = {}
    choices: dict[str, dict[str, str]] = {}
    for run in runs:
        deciding = _deciding(run)
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
        variants.append(_variant(f"{model}, {rest}" if rest else model, members))
    return sorted(variants, key=lambda variant: variant.label)


def check_comparable(runs: list[Run]) -> None:
    """Raise UserError, naming two runs, where settings, collections, embeddings or splits disagree."""
    for name in ("split", "ks", "primary_metric"):
        _agree(name, ((run, as_text(_without_index(run.config.get(name)))) for run in runs))
    done = [run for run in runs if run.status == FINISHED]
    for name, word in (("collection_fingerprint", "collection"), ("embeddings", "embedding space")):
        _agree(word, ((run, str(run.provenance.get(name))) for run in done))
    for fold, few in sorted({(run.fold, _few(run)) for run in done}):
        here = (
            (run, str(run.provenance.get("split_fingerprint"))) for run in done if (run.fold, _few(run)) == (fold, few)
        )
        _agree(f"split of fold {fold}", here)
    for fold in sorted({run.fold for run in done}):  # a learning curve: other training queries, the same test queries
        _agree(
            f"test side of fold {fold}", ((run, str(sorted(run.sides["test"].ids))) for run in done if run.fold == fold)
        )


def _agree(word: str, values: Iterable[tuple[Run, str]]) -> None:
    first: tuple[Run, str] | None = None
    for run, value in values:
        first = first or (run, value)
        if value != first[1]:
            raise UserError(
                f"not comparable: the {word} of {first[0].folder} is {first[1]}, that of {run.folder} is {value}.\n"
                "Report on them apart, or repeat one of them."
            )


def _few(run: Run) -> str:
    """Which training queries a run was given, where that is varied: how many, and judged or weak ones."""
    split = run.config.get("split", {})
    return f"{split.get('train_queries')} {split.get('train_on', 'all')}"


def _without_index(value: Any) -> Any:  # noqa: ANN401 - configuration
    varied = ("index", "train_queries", "train_on")
    return {key: item for key, item in value.items() if key not in varied} if isinstance(value, Mapping) else value


def _deciding(run: Run) -> dict[str, str]:
    """Dotted keys and values of a run's configuration that make its variant: what its model reads."""
    read = reads(run.config["model"], run.config.get("trials"))
    skipped = (*IGNORED, *(() if "optimizer" in read else TRAINING), *(() if search_space(run.model) else ("trials",)))
    parts = {key: value for key, value in run.config.items() if key not in skipped}
    if "train_queries" in read:  # else it is one row of a learning curve
        split = run.config.get("split", {})
        parts |= {"train_queries": split.get("train_queries"), "train_on": split.get("train_on", "all")}
    flat = flatten(parts)
    return {key: value for key, value in flat.items() if key not in IGNORED_CALLBACKS}


def training_choices(variants: list[Variant]) -> dict[str, list[str]]:
    """Where models were trained in different ways: the choices that differ, and the labels of the models."""
    trained = sorted(
        (one for one in variants if any(run.cost.get("epochs") for run in one.runs)), key=lambda one: one.label
    )
    flat = {one.label: flatten({group: one.runs[0].config.get(group) for group in TRAINING}) for one in trained}
    keys = sorted({key for parts in flat.values() for key in parts} - set(IGNORED_CALLBACKS))
    differing = [key for key in keys if len({parts.get(key) for parts in flat.values()}) > 1]
    found: dict[str, list[str]] = {}
    for label, parts in flat.items():
        words = ", ".join(f"{key.removesuffix('.name')}={parts[key]}" for key in differing if key in parts)
        found.setdefault(words, []).append(label)
    return found if len(found) > 1 else {}


def _labels(choices: dict[str, dict[str, str]], options: dict[str, str]) -> dict[str, str]:
    """The option plus the choices that differ among the variants that have it, within their loss, sampler, ..."""
    shown: dict[str, list[str]] = {key: [] for key in choices}
    for name in sorted({name for parts in choices.values() for name in parts} - {"model.name"}):
        values: dict[tuple[str, str], set[str]] = {}
        for key, parts in choices.items():
            if name in parts:
                values.setdefault((options[key], _peers(name, parts)), set()).add(parts[name])
        for key, parts in choices.items():
            if name in parts and len(values[options[key], _peers(name, parts)]) > 1:
                shown[key].append(f"{name.removesuffix('.name')}={parts[name]}")
    labels = {key: ", ".join([options[key], *parts]) for key, parts in shown.items()}
    seen: dict[str, int] = {}
    for key in sorted(labels):  # equal only where configurations of different versions lack keys
        seen[labels[key]] = seen.get(labels[key], 0) + 1
        if seen[labels[key]] > 1:
            labels[key] += f" #{seen[labels[key]]}"
    return labels


def _peers(name: str, parts: dict[str, str]) -> str:
    """Who a choice is compared with: `loss.margin` with those of the same loss; `loss.name` with everybody."""
    group = f"{name.split('.')[0]}.name"
    return "" if name == group else parts.get(group, "")


def _uses_interactions(model: Any) -> bool:  # noqa: ANN401 - configuration
    """Whether the model, or a part of it, reads who watched what."""
    plain = as_text(model)
    named = {"collaborative", "dcdt_history"} & set(re.split(r"[^a-z_]+", plain))
    return bool(named) or bool(re.search(r"\bhistory:(?!none\b)", plain))


def _variant(label: str, members: list[Run]) -> Variant:
    done: dict[tuple[int, int], Run] = {}
    for run in (run for run in members if run.status == FINISHED):
        first = done.setdefault((run.fold, run.seed), run)
        if not _equal(first, run):
            raise UserError(
                f"two runs of {label}, fold {run.fold}, seed {run.seed}, with different results: "
                f"{first.folder} and {run.folder}.\nGive one of them."
            )
    broken = [run for run in members if run.status != FINISHED]
    missing = [run for run in broken if (run.fold, run.seed) not in done]
    retried = [run for run in broken if (run.fold, run.seed) in done]
    return Variant(label, members[0].model, [done[place] for place in sorted(done)], missing, retried)


def _equal(one: Run, other: Run) -> bool:
    ours, theirs = one.sides["test"], other.sides["test"]
    return ours.ids == theirs.ids and all(
        np.array_equal(values, theirs.values.get(name, values)) for name, values in ours.values.items()
    )
