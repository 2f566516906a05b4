"""Finished runs from Python, one or several compared; their values are data frames."""

import io
import socket
import threading
from collections.abc import Iterable
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dcdt.config import model_option
from dcdt.report import report
from dcdt.reporting import render, tables
from dcdt.reporting.cells import ranking_cell
from dcdt.reporting.figures import make_figures
from dcdt.reporting.table_types import metric_name
from dcdt.run import train as train_run
from dcdt.runs.folder import RunFolder
from dcdt.runs.reader import read_runs
from dcdt.serve import LOOPBACK
from dcdt.serving.hot_reload import ReloadingRecommender
from dcdt.serving.load import load
from dcdt.serving.recommender import Recommendation, ServedRecommender
from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.shell import user_path

with needs_extra("dcdt.train and dcdt.compare", "pandas", "pandas"):
    import pandas as pd


class Run:
    """A finished run, which stands for its path where one is expected; raises UserError where the folder is none.

    Attributes:
        folder: of the run.
        metrics: a row for each metric, such as `test/mrr`: its value, and the untrained cosine's (zero_shot).
        history: loss and validation metrics by epoch; empty for a model without epochs.
        summary: model, collection, and the primary metric with its interval beside the untrained cosine's.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        RunFolder(self.folder).require_finished()
        [run] = self._runs = read_runs([self.folder])
        self.history = pd.DataFrame(run.history)
        own = {name: value for name, value in run.metrics.items() if "zero_shot/" not in name}
        self.metrics = pd.DataFrame(
            {"value": own, "zero_shot": {name: run.metrics.get(f"zero_shot/{name}") for name in own}}
        )
        metric = str(run.config["primary_metric"]).partition("/")[2]
        number, untrained = ranking_cell([run], metric), run.metrics.get(f"zero_shot/test/{metric}", float("nan"))
        assert number is not None
        figures = " ".join([metric_name(metric), number.text(), *render.interval_and_spread(number)])
        name = f"{model_option(run.config['model'])} on {run.provenance.get('collection')}"
        n = len(run.sides["test"].ids)
        self.summary = f"{name}: {figures}, untrained cosine {untrained:.3f}, {n} test queries"

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({self.summary}; {self.folder})"

    @cached_property
    def per_query(self) -> pd.DataFrame:
        """A row for each query and metric."""
        return pq.read_table(RunFolder(self.folder).files.per_query).to_pandas()

    @property
    def figures(self) -> dict[str, Any]:
        """The figures that have data, of matplotlib: loss, scores."""
        return dict(make_figures(tables.make_report(self._runs)))

    @cached_property
    def recommender(self) -> ServedRecommender:
        """What `dcdt.load` returns."""
        return load(self.folder)

    def recommend(self, question: str, k: int = 10, **options: Any) -> list[Recommendation]:  # noqa: ANN401
        """Recommend the best k videos for a question, with the options of `dcdt.load(run).recommend`."""
        return self.recommender.recommend(question, k, **options)[0]

    def serve(self, port: int = 0) -> str:
        """Serve page and API to this machine until this process ends; return the address. Port 0 is any free one."""
        with needs_extra("serving", "serve", "uvicorn", "fastapi", "starlette"):
            import uvicorn

            from dcdt.serving.app import make_app
        app = make_app([ReloadingRecommender(self.folder)], hosts=LOOPBACK)
        listener = socket.create_server(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, server_header=False))
        threading.Thread(target=server.run, args=([listener],), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


class Report:
    """Tables and figures of several runs; its repr is the summary that `python -m dcdt.report` prints.

    Attributes:
        tables: data frames by name, such as `main`, `tests` and `cost`; intervals in columns `_low` and `_high`.
        figures: those that have data, of matplotlib: loss, scores, differences, learning.
        page: path of the written page.
    """

    def __init__(self, content: tables.Report, page: Path) -> None:
        self.page, self.figures, self._summary = page, make_figures(content), render.summary(content)
        parts = [part for part in (*content.tables, content.failures, content.cost) if part.rows]
        self.tables = {part.name: pd.read_csv(io.StringIO(render.csv_wide(part)), index_col=0) for part in parts}

    def __repr__(self) -> str:
        return f"{self._summary}\npage: {self.page}"


def train(*overrides: str) -> Run:
    """Train and test one configuration: `dcdt.train("model=dcdt_ridge", "seed=1")`, as `python -m dcdt.run` does.

    `resume=FOLDER` continues a run that was cut off. Raises UserError for what the user can correct.
    """
    return Run(train_run(*overrides))


def compare(
    runs: Iterable[str | PathLike[str]],
    out: str | Path | None = None,
    metric: str | None = None,
    against: str | None = None,
) -> Report:
    """Compare runs, which may be folders of runs or of sweeps, and write the files of `python -m dcdt.report`.

    They go to `out`, or report/ in the first of the runs. Raises UserError where nothing can be compared.
    """
    if not (folders := [user_path(Path(run)) for run in runs]):
        raise UserError("no run to compare: give runs, or folders of runs or of sweeps.")
    folder = user_path(out) if out else folders[0] / "report"
    return Report(report(folders, folder, metric=metric, against=against), folder / "index.html")
