"""A view of a sweep and a written report on W&B, whose own tables compute neither intervals nor tests."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcdt.reporting import render
from dcdt.reporting.cells import largest_k
from dcdt.reporting.table_types import metric_name
from dcdt.reporting.tables import Report
from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.text import one_line

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

PANELS = {  # titles of sections: keys of curves by epoch, or of bars
    "Curves": (("train/loss", "val/loss", "val/mrr"), "curve"),
    "Scores of test pairs": (("test/pair_auroc", "test/pair_f1"), "bar"),
    "Cost": (("training_seconds", "ms_per_query", "parameters"), "bar"),
}


@dataclass(frozen=True)
class Place:
    """Where the runs of a report are on W&B.

    Attributes:
        entity: user or team.
        project: of the runs.
        group: the name of the sweep, by which its runs are found.
        rows: id of the run of each row of the report, by its label.
    """

    entity: str
    project: str
    group: str
    rows: dict[str, str]


def save_workspace(report: Report, place: Place) -> list[str]:
    """Save the view and the written report on W&B, and return their addresses.

    Raises:
        UserError: the extra is missing, or W&B refuses.
    """
    with needs_extra("--workspace", "workspaces", "wandb_workspaces"):
        import wandb_workspaces  # noqa: F401
    try:
        return [str(workspace(report, place).save().url), written_report(report, place).save().url]
    except Exception as error:  # the client's errors share no base
        raise UserError(f"W&B did not take the workspace ({one_line(error, 200)}). The runs are there.") from error


def workspace(report: Report, place: Place) -> "ws.Workspace":
    """Make a view of a sweep: its runs grouped by variant, zero_shot as the baseline, the tests' columns first."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    metrics = list(dict.fromkeys([report.metric, "mrr", f"ndcg@{largest_k(report.best.runs)}"]))
    baseline = place.rows.get(report.reference.label) if report.reference else None
    return ws.Workspace(
        entity=place.entity,
        project=place.project,
        name=place.group[:100],
        sections=[
            ws.Section(name=title, panels=_panels(keys, kind), is_open=True) for title, (keys, kind) in PANELS.items()
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch"),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Group") == place.group, expr.Metric("JobType") != "report"],
            groupby=[expr.Config("variant")],
            order=[expr.Ordering(expr.Summary(report.metric), ascending=False)],
            pinned_columns=[f"summary:{key}" for key in (*metrics, "difference", "p", "verdict")],
            baseline_run=baseline,
        ),
    )


def written_report(report: Report, place: Place) -> "wr.Report":
    """Make a W&B Report: the summary, tables and captions of a report in words, above panels of the same runs."""
    import wandb_workspaces.reports.v2 as wr

    runs = wr.Runset(
        name=place.group,
        project=place.project,
        filters=f"Group = '{place.group}' and JobType != 'report'",
        groupby=["config.variant"],
    )
    tables = [table for table in report.tables if table.name in ("main", "tests")]
    panels = [panel for keys, kind in PANELS.values() for panel in _panels(keys, kind)]
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=f"{place.group}: {report.metadata['collection']}"[:128],
        description=f"Rows by {metric_name(report.metric)}; intervals and tests by dcdt, panels by W&B.",
        width="fluid",
        blocks=[
            wr.MarkdownBlock(f"```\n{render.summary(report)}\n```"),
            wr.MarkdownBlock(render.markdown(tables)),
            wr.PanelGrid(runsets=[runs], panels=panels),
        ],
    )


def _panels(keys: tuple[str, ...], kind: str) -> list["wr.LinePlot | wr.BarPlot"]:
    import wandb_workspaces.reports.v2 as wr

    if kind == "curve":
        return [wr.LinePlot(title=key, x="epoch", y=[key], groupby_rangefunc="minmax") for key in keys]
    return [wr.BarPlot(title=key, metrics=[key]) for key in keys]
