"""Make the tables of a report from variants: titles, captions, columns and rows in a fixed order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dcdt.config import search_space
from dcdt.data.types import CLICKS
from dcdt.evaluation.lists import LIST_METRICS
from dcdt.reporting.breakdowns import (
    Parts,
    cost_table,
    failure_table,
    kinds_table,
    moments_table,
    side_tables,
    training_table,
    warmth_parts,
)
from dcdt.reporting.cells import PAIR_METRICS, Number, list_cells, pair_cells, per_query, ranking_cell
from dcdt.reporting.comparisons import MARGIN, Comparison, compare, difference_cell
from dcdt.reporting.table_types import (
    CELL_CAPTION,
    Cell,
    Row,
    Table,
    format_ranges,
    format_span,
    mark_best,
    metric_name,
)
from dcdt.reporting.units import describe_detectable, describe_units, fill_units
from dcdt.reporting.variants import SIMULATED, Variant, make_variants, training_choices
from dcdt.runs.reader import NOT_APPLICABLE, Run
from dcdt.utils.errors import UserError
from dcdt.utils.text import pluralize

REPORTED = {  # the paper's table, in fractions; its "accuracy" is consistent with precision
    "collaborative": {"accuracy": 0.623, "recall": 0.587, "f1": 0.604, "mrr": 0.412},
    "bm25": {"accuracy": 0.689, "recall": 0.632, "f1": 0.659, "mrr": 0.487},
    "single_tower": {"accuracy": 0.735, "recall": 0.698, "f1": 0.716, "mrr": 0.532},
    "dcdt": {"accuracy": 0.821, "recall": 0.784, "f1": 0.802, "mrr": 0.641},
}
PAPER_COLLECTION = "linear_algebra"  # the one whose tables have the paper's figures beside ours
NAMES = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1", "auroc": "AUROC"}
LIST_CAPTION = (
    "Of the first k videos of each query: coverage@k, the share of all videos that stand in any of these lists; "
    "popularity@k, the mean share of the learners who had watched a video; novelty@k, the mean of -log2 of that share "
    "(one learner added), in bits. None is better high or low by itself."
)
REPORTED_NAMES = {
    "accuracy": "Accuracy (reported; consistent with precision)",
    "recall": "Recall (reported)",
    "f1": "F1 (reported)",
    "mrr": "MRR (reported)",
}


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        metadata: what was compared, by name.
        variants: in the order of the rows.
        best: the best variant that was tested on every query.
        reference: the zero_shot variant of the tests, or None.
        metric: the primary metric.
        tables: quality tables; no timing, no path, no date.
        comparisons: the family of tests.
        failures: runs without a result.
        cost: parameters and timing, which differ between equal runs.
    """

    metadata: dict[str, str]
    variants: list[Variant]
    best: Variant
    reference: Variant | None
    metric: str
    tables: list[Table]
    comparisons: list[Comparison]
    failures: Table
    cost: Table


def make_report(runs: list[Run], metric: str | None = None, against: str | None = None) -> Report:
    """Make all tables of a report.

    Args:
        runs: finished and unfinished ones.
        metric: of the order of the rows and of the tests; None: the primary metric of the runs.
        against: label of the row that every other is tested against; None: zero_shot.

    Raises:
        UserError: the runs cannot be compared, or there is no such metric or label.
    """
    refused = [run for run in runs if not run.config]
    runs, units_note = fill_units([run for run in runs if run.config])
    variants = make_variants(runs)
    if metric is not None and metric not in _metric_names(runs, "mrr"):
        raise UserError(f"--metric is '{metric}'; choose one of {', '.join(_metric_names(runs, 'mrr'))}.")
    metric = metric or _primary_metric(runs)
    ranked = _metric_names(runs, metric)
    _check_metrics(variants, ranked)
    complete = _complete_labels(variants)
    variants = _sort_variants(variants, complete, metric)
    metadata = _report_metadata(runs, variants)
    complete_variants = [variant for variant in variants if variant.label in complete]
    best = complete_variants[0]
    reference = find_variant(variants, against, "--against") if against else _default_reference(variants, metric)
    family = [(model, reference) for model in variants if reference and model.runs and model is not reference]
    family += [(model, best) for model in variants if model.runs and model is not best and (best, model) not in family]
    family = [pair for i, pair in enumerate(family) if pair not in family[:i]]
    comparisons = compare(family, metric)
    if family and not comparisons:
        raise UserError(
            "not comparable: no two models here were tested on the same division (split.index).\n"
            "Run each of them on the same ones, or report on them apart."
        )
    against = (reference or best).label
    metadata["units"] = describe_units(reference or best, metric, units_note)
    if detectable := describe_detectable(comparisons, against, metric):
        metadata["smallest detectable difference"] = detectable
    parts, warmth_caption = warmth_parts(complete_variants, metric)
    main = _main_table(variants, complete, ranked, metadata, reference, parts)
    tables = [
        replace(main, caption=f"{main.caption} {warmth_caption}") if parts.columns else main,
        _test_table(comparisons, metric, against, metadata["units"], parts),
        kinds_table(complete_variants, metric),
        *side_tables(complete_variants, ranked),
        moments_table(variants),
        training_table(variants, metadata["collection"] == PAPER_COLLECTION),
    ]
    return Report(
        metadata,
        variants,
        best,
        reference,
        metric,
        [table for table in tables if table.rows],
        comparisons,
        failure_table(variants, refused),
        cost_table(variants),
    )


def _primary_metric(runs: list[Run]) -> str:
    return str(runs[0].config["primary_metric"]).partition("/")[2]


def _metric_names(runs: list[Run], metric: str) -> list[str]:
    ks = sorted(int(k) for k in runs[0].config["ks"])
    return list(dict.fromkeys([metric, "mrr", f"ndcg@{ks[-1]}", *(f"recall@{k}" for k in ks)]))


def _check_metrics(variants: list[Variant], metrics: list[str]) -> None:
    for run in (run for variant in variants for run in variant.runs):
        for side, scores in run.sides.items():
            lacking = [metric for metric in metrics if metric not in scores.values]
            if lacking:
                raise UserError(f"{run.folder / 'per_query.parquet'} lacks {', '.join(lacking)} of side {side}.")


def _complete_labels(variants: list[Variant]) -> set[str]:
    """Return the labels of variants tested on the largest set of queries; means of others are not comparable."""
    tested = {one.label: {name for run in one.runs for name in run.sides["test"].ids} for one in variants if one.runs}
    largest = max(tested.values(), key=len)
    return {label for label, names in tested.items() if names == largest}


def _sort_variants(variants: list[Variant], complete: set[str], metric: str) -> list[Variant]:
    """Sort variants by the metric, then by name; those that miss queries, then those without a result come last."""

    def sort_key(variant: Variant) -> tuple[int, float, str]:
        if not variant.runs:
            return 2, 0.0, variant.label
        mean = float(np.mean(list(per_query(variant.runs, metric).values())))
        return int(variant.label not in complete), -mean, variant.label

    return sorted(variants, key=sort_key)


def find_variant(variants: Sequence[Variant], label: str, option: str) -> Variant:
    """Find the variant with a label.

    Raises:
        UserError: no finished run has it; the message lists those that have one.
    """
    by_label = {variant.label: variant for variant in variants if variant.runs}
    if label not in by_label:
        raise UserError(f"{option}: there is no finished '{label}' here; choose of: {'; '.join(by_label)}.")
    return by_label[label]


def _default_reference(variants: list[Variant], metric: str) -> Variant | None:
    """Find the zero_shot variant of title and text, not whitened, else the best zero_shot variant."""
    candidates = [variant for variant in variants if variant.model == "zero_shot" and variant.runs]
    models = [variant.runs[0].config["model"] for variant in candidates]
    plain = [model["fields"] == ["title", "text"] and model.get("whiten", "none") == "none" for model in models]
    return candidates[plain.index(True)] if any(plain) else next(iter(candidates), None)


def _report_metadata(runs: list[Run], variants: list[Variant]) -> dict[str, str]:
    """Describe what was compared, without paths and times."""
    done = [run for variant in variants for run in variant.runs]
    split = done[0].config["split"]
    folds, seeds = sorted({run.fold for run in done}), sorted({run.seed for run in done})
    folds_text = (
        f"{len(folds)} of {split['n_folds']} folds" if split["name"] == "folds" else pluralize(len(folds), "division")
    )
    videos = sorted({int(run.provenance.get("candidates", {}).get("test", 0)) for run in done})
    part_names = {
        "open": "open (the sealed quarter of the queries took no part)",
        "sealed": "sealed (the sealed quarter)",
    }
    labels = [run.pairs.labels for run in done if run.pairs is not None]
    simulated = sorted({str(item) for run in done for item in run.provenance.get("simulated", [])})
    marked = [variant.label for variant in variants if SIMULATED in variant.label]
    metadata = {
        "collection": str(done[0].provenance.get("collection", "")),
        "queries": f"{len({name for run in done for name in run.sides['test'].ids})} unique test queries",
        "videos": f"{format_span(videos)} videos ranked for each",
        "split": f"{split['name']}, part {part_names.get(split['part'], split['part'])}",
        "folds": f"{folds_text} ({format_ranges(folds)})",
        "seeds": f"{pluralize(len(seeds), 'seed')} ({format_ranges(seeds)})",
        "tuning trials": _format_trials(variants),
    }
    if labels:
        metadata["prevalence"] = f"{float(np.mean(np.concatenate(labels))):.2f}"
    if weak := _format_weak_queries(done):
        metadata["weak"] = weak
    if simulated:
        metadata["simulated"] = ", ".join(simulated) + (f"; used by {', '.join(marked)}" if marked else "")
    return metadata


def _format_weak_queries(runs: list[Run]) -> str:
    """Describe the weak queries; empty without any."""
    counts = [run.provenance.get("weak", {}) for run in runs]
    clauses = []
    if clicked := sorted({count[CLICKS] for count in counts if CLICKS in count}):
        clauses.append(f"{format_span(clicked)} training queries of some rows have weighted clicks as judgments")
    if trained := sorted({count["train"] - count.get(CLICKS, 0) for count in counts if "train" in count} - {0}):
        clauses.append(
            f"{format_span(trained)} training queries of some rows were made by rule, without human judgments"
        )
    if any("test" in count for count in counts):
        clauses.append("so were test queries: their figures speak of the rule, not of learners")
    return "; ".join(clauses)


def _format_trials(variants: list[Variant]) -> str:
    counts = {one.label: format_span(sorted({run.trials for run in one.runs})) for one in variants if one.runs}
    if set(counts.values()) == {"1"}:
        return "1 for every model (nothing tuned)"
    return "; ".join(f"{label}: {count}" for label, count in sorted(counts.items()))


def _main_table(
    variants: list[Variant],
    complete: set[str],
    ranked: list[str],
    metadata: dict[str, str],
    reference: Variant | None,
    parts: Parts,
) -> Table:
    names = [variant.model for variant in variants]
    all_folds = sorted({run.fold for variant in variants for run in (*variant.runs, *variant.missing)})
    rows = []
    for variant in variants:
        cells: dict[str, Cell] = {}
        if variant.runs:
            cells["n"] = str(len(per_query(variant.runs, ranked[0])))
            cells |= parts.cells.get(variant.label, {})
            cells |= {f"pair_{name}": number for name, number in pair_cells(variant.runs).items()}
            cells |= {name: number for name in ranked if (number := ranking_cell(variant.runs, name))}
            cells |= list_cells(variant.runs)
        if names.count(variant.model) == 1 and metadata["collection"] == PAPER_COLLECTION:
            cells |= {f"reported_{name}": Number(value) for name, value in REPORTED.get(variant.model, {}).items()}
        rows.append(Row(variant.label, cells, _missing_jobs_note(variant, all_folds)))
    columns = {"n": "n", ranked[0]: metric_name(ranked[0])}  # the metric of the order first, also on a phone
    columns |= parts.columns
    columns |= {f"pair_{name}": NAMES[name] for name in PAIR_METRICS}
    columns |= {name: metric_name(name) for name in ranked}
    list_columns = {key: key for row in rows for key in row.cells if key.partition("@")[0] in LIST_METRICS}
    columns |= list_columns
    columns |= {f"reported_{name}": heading for name, heading in REPORTED_NAMES.items()}
    used = {key for row in rows for key in row.cells}
    columns = {key: heading for key, heading in columns.items() if key in used}
    ranked_columns = {key for key in columns if key not in {"n", *list_columns} and not key.startswith("reported_")}
    return Table(
        "main",
        f"Comparison on {metadata['collection']}",
        columns,
        mark_best(rows, ranked_columns, complete),
        _main_caption(metadata, ranked[0]) + (f" {LIST_CAPTION}" if list_columns else ""),
        [*([parts.note] if parts.note else []), *_main_notes(variants, complete, reference, used)],
    )


def _main_caption(metadata: dict[str, str], metric: str) -> str:
    prevalence = metadata.get("prevalence")
    pairs = (
        "Accuracy, Precision, Recall and F1: test pairs of one positive and four negatives (prevalence "
        f"{prevalence}), at the threshold with the best F1 on validation; AUROC compares pairs of one run. "
        "recall@k, MRR and nDCG: every video ranked, never a sample. "
    )
    text = (
        f"{metadata['collection']}: {metadata['queries']}, {metadata['videos']}; split {metadata['split']}; "
        f"{metadata['folds']} x {metadata['seeds']}. Rows by {metric_name(metric)}. {CELL_CAPTION} "
        f"{pairs if prevalence else ''}Tuning trials, judged on validation: {metadata['tuning trials']}. "
        "Within each trial hybrids choose the weight of their parts and dcdt_ridge its penalty, as part of the fit."
    )
    labels = {
        "units": "Units",
        "smallest detectable difference": "Smallest detectable difference",
        "weak": "Weak supervision",
        "simulated": "Simulated",
    }
    return text + "".join(f" {label}: {metadata[key]}." for key, label in labels.items() if key in metadata)


def _main_notes(variants: list[Variant], complete: set[str], reference: Variant | None, used: set[str]) -> list[str]:
    notes = []
    if reference is None:
        notes.append(
            "No zero_shot run is here, so nothing shows what training gained. Add it: repeat the command with "
            "model=zero_shot, then give its folder to dcdt.report as well."
        )
    if any(variant.runs and variant.label not in complete for variant in variants):
        notes.append("Rows that miss queries come last and are never bold: their means are not comparable.")
    if any(key.startswith("reported_") for key in used):
        notes.append(
            "Reported: the paper's own figures, of 46 videos that are not published and one split with five test "
            "samples; to be read beside ours, not against them."
        )
    effort = {
        variant.label: max(run.trials for run in variant.runs)
        for variant in variants
        if variant.runs and search_space(variant.model)
    }
    if len(set(effort.values())) > 1:
        fewest = min(effort.values())
        behind = sorted(label for label, trials in effort.items() if trials == fewest)
        notes.append(f"The tuning effort is not equal: {', '.join(behind)} had {pluralize(fewest, 'trial')} only.")
    for variant in variants:
        cold = [run for run in variant.runs if run.metrics.get("test/cold_queries")]
        if cold:
            n, total = (sum(int(run.metrics[key]) for run in cold) for key in ("test/cold_queries", "test/n_queries"))
            notes.append(
                f"{variant.label}: {n} of {total} test queries came from learners without a history (popularity)."
            )
    if choices_of := training_choices(variants):
        details = "; ".join(f"{', '.join(labels)}: {choices}" for choices, labels in choices_of.items())
        notes.append(f"Trained each in its own way. {details}.")
    versions = {run.provenance.get("code") for variant in variants for run in variant.runs}
    if len(versions) > 1:
        notes.append(f"The runs were made by {len(versions)} versions of the code.")
    return notes


def _missing_jobs_note(variant: Variant, all_folds: list[int]) -> str:
    """Describe the jobs of a row without a result."""
    clauses = []
    if variant.runs and len(variant.folds) < len(all_folds):
        clauses.append(f"{len(variant.folds)} of {len(all_folds)} folds")
    total = len({(run.fold, run.seed) for run in (*variant.runs, *variant.missing)})
    for status in sorted({run.status for run in variant.missing}):
        jobs = [run for run in variant.missing if run.status == status]
        reason = next((f": {run.error}" for run in jobs if run.error), "")
        n_jobs = len({(run.fold, run.seed) for run in jobs})
        extent = "" if status == NOT_APPLICABLE and n_jobs == total else f" in {n_jobs} of {total} jobs"
        clauses.append(f"{status}{extent}{reason}")
    return "; ".join(clauses)


def _test_table(comparisons: list[Comparison], metric: str, against: str, units: str, parts: Parts) -> Table:
    by_part = {key: f"Difference in {heading}" for key, heading in parts.columns.items()}
    rows = []
    for comparison in comparisons:
        cells: dict[str, Cell] = {
            "against": comparison.reference,
            "n": str(comparison.n),
            "units": str(comparison.n_units),
            "difference": comparison.difference,
            "p": Number(comparison.adjusted, digits=4, floor=True, by_query=(comparison.adjusted_by_query,)),
            "verdict": comparison.verdict,
            "verdict_by_query": comparison.verdict_by_query,
        }
        numbers = {
            "corrected": comparison.corrected,
            "design_effect": Number(comparison.design_effect),
            "detectable_difference": Number(comparison.detectable),
        }
        cells |= {key: number for key, number in numbers.items() if not np.isnan(number.value)}
        model, reference = (parts.variants.get(label) for label in (comparison.model, comparison.reference))
        if model and reference:
            on_parts = {key: difference_cell(model, reference, metric, key) for key in by_part}
            cells |= {key: number for key, number in on_parts.items() if number}
        rows.append(Row(comparison.model, cells))
    columns = {
        "against": "Against",
        "n": "n",
        "units": "Units",
        "difference": f"Difference in {metric_name(metric)}",
        "p": "p (Holm)",
        "verdict": "Verdict",
    }
    columns |= {key: heading for key, heading in by_part.items() if any(key in row.cells for row in rows)}
    if any("corrected" in row.cells for row in rows):
        columns["corrected"] = "Across training sets"
    effects = [one.design_effect for one in comparisons if one.design_effect == one.design_effect]
    effect = f", the median design effect of the differences {np.median(effects):.2f}" if effects else ""
    caption = (
        f"Paired randomisation (sign-flip) test, two-sided, on the {metric_name(metric)} of unique queries, each the "
        "mean over its seeds; the signs of a unit's queries flip together. n: queries both models were tested on. "
        f"Units: {units}{effect}. Family: every model against {against} and against the best, "
        f"{pluralize(len(rows), 'test')}, Holm-corrected; the best was found on these same queries. "
        "Difference: model minus the other [95 % interval by units, as in the comparison]"
        f"{'; on ' + ', '.join(by_part) + ' queries without a test' if by_part else ''}. "
        "Across training sets: mean over folds [95 % interval, Nadeau-Bengio corrected]. Better, worse: p (Holm) below "
        f"0.05. Non-inferior: neither, and the difference's lower end is above -{MARGIN}. No difference shown: "
        "neither; that is no evidence of equality."
    )
    return Table("tests", "Paired tests", columns, rows, caption)
