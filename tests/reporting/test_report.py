"""The command: files, bytes, the page, messages and exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from run_folders import write_run
from support import make_collection, write_folder

from dcdt.report import main
from dcdt.reporting.disagreements import disagreements
from dcdt.reporting.figures import loss_curve, make_figures
from dcdt.reporting.tables import make_report
from dcdt.runs.reader import read_runs

TABLES = ["table.md", "table.tex", "table.csv", "tests.csv", "breakdowns.csv", "table.json"]
COST = ["cost.md", "cost.csv", "cost.json"]
FIGURES = ["loss.png", "scores.png", "differences.png"]
DRAWINGS = [name.replace("png", "svg") for name in FIGURES]
QUALITY = [*TABLES, *FIGURES, *DRAWINGS]
SCRIPT = "<script>alert(1)</script>"


def files(folder, names=QUALITY):
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A collection for the queries of the run folders, with markup in its texts."""
    folder = tmp_path_factory.mktemp("collection") / "toy"
    videos = [{"_id": f"v{at}", "title": f"Lecture {at} {SCRIPT}", "text": "x"} for at in range(12)]
    queries = [{"_id": f"q{at}", "text": f"Secret question {at} {SCRIPT} & more"} for at in range(48)]
    return write_folder(folder, videos, queries, all=[f"q{at}\tv{at % 12}\t1" for at in range(48)])


@pytest.fixture(scope="module")
def made(tmp_path_factory, texts):
    """A sweep and its report."""
    sweep = tmp_path_factory.mktemp("made") / "sweep"
    for fold in range(4):
        write_run(sweep, "zero_shot", fold, skill=0.4, collection=texts)
        for seed in (0, 1):
            write_run(sweep, "dcdt", fold, seed, skill=2.0, collection=texts)
        write_run(sweep, "bm25", fold, status="failed", error=f"ValueError: {SCRIPT}", collection=texts)
    main([str(sweep)])
    return sweep / "report"


def test_every_file_is_written(made):
    assert {path.name for path in made.iterdir()} == {*TABLES, *COST, *FIGURES, *DRAWINGS, "index.html"}
    assert all((made / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    drawings = [(made / name).read_text() for name in DRAWINGS]
    assert all(text.startswith("<svg ") and "xmlns=" in text and "var(" not in text for text in drawings)


def test_ranking_metrics_come_first_on_the_page_and_those_of_pairs_in_a_table_of_their_own(page):
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", page.text)
    assert headings[:2] == ["Comparison", "Tests"]
    ranking, pairs = (re.findall(r"<th scope=.col[^>]*>([^<]*)</th>", text) for text in page.text.split("<thead>")[1:3])
    assert ranking[:3] == ["Model", "n", "MRR"] and "nDCG@10" in ranking and "Accuracy" not in ranking
    assert pairs[:2] == ["Model", "Accuracy"] and "MRR" not in pairs


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes_wherever_they_lie_and_in_whatever_order(made, tmp_path):
    runs = sorted(path for path in made.parent.iterdir() if path.name != "report")
    main([str(made.parent), "--out", str(tmp_path / "again")])
    assert files(tmp_path / "again", [*QUALITY, *COST]) == files(made, [*QUALITY, *COST])
    moved = [shutil.copytree(run, tmp_path / "moved" / f"{at}") for at, run in enumerate(reversed(runs))]
    os.utime(moved[0] / "metrics.json", (0, 0))
    main([*(str(run) for run in reversed(moved)), "--out", str(tmp_path / "out")])
    assert files(tmp_path / "out") == files(made)


def test_quality_files_hold_no_time_path_text_or_timing(made, tmp_path):
    cost = json.loads((made / "cost.json").read_text())
    timings = [f"{row['cells']['training_seconds']['value']:.3f}" for row in cost["rows"]]
    for name in TABLES:
        text = (made / name).read_text(encoding="utf-8")
        assert not re.search(r"20\d\d-\d\d", text)
        for word in (str(tmp_path.parent.parent), str(Path.home()), "/tmp", "Secret question", "Lecture", *timings):
            assert word not in text, (name, word)
    for path in made.parent.glob("*/cost.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "training_seconds": 99.0}))
    before = files(made)
    main([str(made.parent), "--out", str(tmp_path / "slower")])
    assert files(tmp_path / "slower") == before
    assert "99.0" in (tmp_path / "slower" / "cost.md").read_text()


class Page(HTMLParser):
    """Collects what a page loads and links, and checks that its elements are closed in order."""

    EMPTY = ("meta", "link", "br", "wbr")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.loads, self.tags, self.ids = [], [], [], set(), []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.loads += [value for key, value in attributes if key == "src" or (key.endswith("href") and tag != "a")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(made):
    found = Page()
    found.text = (made / "index.html").read_text(encoding="utf-8")
    found.feed(found.text)
    return found


def test_the_page_is_well_formed_and_loads_nothing(page):
    assert page.open == []
    assert all(value.startswith(("#", "data:")) for value in page.loads)
    assert not re.search(r"url\((?!#)", page.text)
    assert "script" not in page.tags and "iframe" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    used = {value[1:] for value in page.loads if value.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", page.text))
    assert used <= set(page.ids)


def test_the_page_links_to_every_run(page, made):
    folders = {(made / unquote(link)).resolve() for link in page.links if not link.startswith("#")}
    assert folders == {path for path in made.parent.iterdir() if path.name != "report"}
    assert not any(link.startswith("/") for link in page.links)


def test_texts_are_escaped_and_stand_on_the_page_only(page):
    assert SCRIPT not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page.text
    assert "Lecture" in page.text and "ValueError" in page.text


def test_the_page_has_dark_colours_and_figures_in_the_pages_colours(page):
    assert "prefers-color-scheme: dark" in page.text
    drawings = re.findall(r"<svg .*?</svg>", page.text, flags=re.S)
    assert len(drawings) == 4  # loss, differences, two panels of scores
    for drawing in drawings:
        assert not re.search(r"(fill|stroke): #", drawing)
        assert "var(--ink)" in drawing


def test_the_queries_that_divide_two_models_are_those_with_the_largest_difference(made):
    report = make_report(read_runs([made.parent]))
    one, other = report.best, report.reference
    found, note = disagreements(one, other, "mrr")
    gaps = [abs(item.values[0] - item.values[1]) for item in found]
    assert note == "" and len(found) == 10 and gaps == sorted(gaps, reverse=True)
    for item in found:
        at = int(re.search(r"question (\d+)", item.query)[1])
        first = next(run for run in one.runs if f"q{at}" in run.sides["test"].ids)
        rank = round(1 / first.sides["test"].values["mrr"][first.sides["test"].ids.index(f"q{at}")])
        ticks = [hit for _, hit in item.tops[0]]
        assert len(ticks) == 5 and ticks == [place == rank for place in range(1, 6)]


def test_without_the_collection_or_after_it_changed_ids_stand_in(tmp_path, texts):
    write_run(tmp_path / "a", "zero_shot", ranks=[1] * 12)
    write_run(tmp_path / "a", "dcdt", ranks=[2] * 12)
    one, other = make_report(read_runs([tmp_path / "a"])).variants
    found, note = disagreements(one, other, "mrr")
    assert found[0].query == "q0" and "no collection can be read" in note
    write_run(tmp_path / "b", "zero_shot", ranks=[1] * 12, overrides={"data.path": str(texts)})
    write_run(tmp_path / "b", "dcdt", ranks=[2] * 12, overrides={"data.path": str(texts)})
    one, other = make_report(read_runs([tmp_path / "b"])).variants
    assert "has changed" in disagreements(one, other, "mrr")[1]


@pytest.mark.slow
def test_two_models_can_be_chosen(tmp_path, capsys):
    for model in ("zero_shot", "dcdt", "bm25"):
        write_run(tmp_path / "sweep", model)
    main([str(tmp_path / "sweep"), "--compare", "bm25", "dcdt"])
    assert "differs most between bm25 and dcdt" in (tmp_path / "sweep" / "report" / "index.html").read_text()
    refused(capsys, [str(tmp_path / "sweep"), "--compare", "bm25", "nobody"], "no finished 'nobody'", "zero_shot")


@pytest.mark.slow
def test_a_figure_of_an_earlier_report_does_not_stay(tmp_path):
    sweep = tmp_path / "sweep"
    write_run(sweep, "zero_shot")
    trained = write_run(sweep, "dcdt")
    main([str(sweep)])
    assert (sweep / "report" / "loss.png").is_file()
    shutil.rmtree(trained)
    main([str(sweep)])
    assert {path.name for path in (sweep / "report").glob("*.*g")} == {"scores.png", "scores.svg"}
    assert "nothing to test" in (sweep / "report" / "index.html").read_text()


def test_a_loss_curve_starts_at_epoch_one_and_ends_where_half_of_its_runs_have_stopped():
    epochs, mean, deviation = loss_curve([[4.0, 2.0, 1.0, 0.5], [2.0, 2.0, 3.0], [3.0]])
    assert epochs.tolist() == [1, 2, 3]
    assert mean.tolist() == [3.0, 2.0, 2.0]
    assert deviation.tolist() == pytest.approx([(2 / 3) ** 0.5, 0, 1])


def test_the_loss_figure_shows_the_loss_of_the_validation_side(tmp_path):
    """In the epochs that were validated: the mean over the runs, in the colour of their training loss."""
    for fold, losses in enumerate([("", "0.5", ""), ("", "0.25", "")]):
        folder = write_run(tmp_path, "dcdt", fold)
        rows = [f"{epoch},0.4,{loss}" for epoch, loss in enumerate(losses)]
        (folder / "history.csv").write_text("\n".join(["epoch,train/loss,val/loss", *rows]) + "\n")
    figure = make_figures(make_report(read_runs([tmp_path])))["loss"]
    [axes], [legend] = figure.axes, figure.legends
    training, validation, _ = axes.lines
    assert training.get_xydata().tolist() == [[1, 0.4], [2, 0.4], [3, 0.4]]
    assert validation.get_xydata().tolist() == [[2, 0.375]]
    assert validation.get_color() == training.get_color() and validation.get_linestyle() == "-."
    assert [text.get_text() for text in legend.get_texts()] == ["dcdt", "validation loss"]


def refused(capsys, arguments, *expected):
    """The command ends as a mistake the user can mend: exit 2 and at most two lines."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    shown = capsys.readouterr()
    assert caught.value.code == 2 and shown.out == ""
    assert shown.err.startswith("error: ") and len(shown.err.strip().splitlines()) <= 2
    for text in expected:
        assert text in shown.err


def test_mistakes_are_said_in_two_lines(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    refused(capsys, [str(tmp_path / "empty")], "holds no run")
    refused(capsys, [str(tmp_path / "nowhere")], "is not a folder")
    write_run(tmp_path / "half", status="half-written")
    refused(capsys, [str(tmp_path / "half")], "none of the 1 runs has finished")
    write_run(tmp_path / "mixed", "zero_shot")
    write_run(tmp_path / "mixed", "dcdt", provenance={"split_fingerprint": "other"})
    refused(capsys, [str(tmp_path / "mixed")], "model=zero_shot", "model=dcdt", "split of fold 0")
    path = write_run(tmp_path / "cut", "zero_shot") / "per_query.parquet"
    path.write_bytes(path.read_bytes()[:100])
    refused(capsys, [str(tmp_path / "cut")], "per_query.parquet is corrupt")
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "good", "zero_shot")
    refused(capsys, [str(tmp_path / "good"), "--out", str(tmp_path / "file")], "file")


@pytest.mark.slow
def test_the_command_starts_without_torch_and_says_where_the_report_is(made, tmp_path):
    heavy = ("torch", "lightning", "wandb", "hydra")
    code = f"import sys, dcdt.report; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    command = [sys.executable, "-m", "dcdt.report", str(made.parent), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'out' / 'index.html'}"
    assert re.search(r"dcdt +0\.\d{3} \[.*better \(against zero_shot\)", done.stdout)


@pytest.mark.slow
def test_tables_and_figures_go_to_wandb_offline_in_the_sweeps_group(tmp_path):
    sweep = tmp_path / "comparison_toy"
    for fold in (0, 1):
        for model, skill in (("zero_shot", 0.4), ("dcdt", 2.0)):
            write_run(sweep, model, fold, skill=skill)
    write_run(sweep, "bm25", status="failed", error="ValueError: x")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    command = [sys.executable, "-m", "dcdt.report", str(sweep), "--wandb"]
    environment = {**kept, "NETRC": str(tmp_path / "none")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = {path: inspected(path) for path in (sweep / "wandb").glob("offline-run-*/*.wandb")}
    runs = {path: next(part["run"] for part in parts if part["type"] == "run") for path, parts in found.items()}
    assert sorted(run["job_type"] for run in runs.values()) == ["report", "variant", "variant"]
    assert {(run["run_group"], run["project"]) for run in runs.values()} == {("comparison_toy", "dcdt")}
    (path,) = (path for path, run in runs.items() if run["job_type"] == "report")
    records = found[path]
    assert [record["exit"].get("exit_code", 0) for record in records if record["type"] == "exit"] == [0]
    media = sorted(file.name.split("_0_")[0] for file in path.parent.rglob("media/**/*") if file.is_file())
    assert {"main", "tests", "cost", "failures", "loss", "scores", "differences"} <= set(media)
    (main_table,) = path.parent.rglob("main_0_*.table.json")
    table = json.loads(main_table.read_text())
    report = make_report(read_runs([sweep]))
    at = table["columns"].index("mrr")
    assert [row[0] for row in table["data"]] == [row.name for row in report.tables[0].rows]
    assert table["data"][0][at] == pytest.approx(report.tables[0].rows[0].cells["mrr"].value, abs=1e-6)
    assert (sweep / "report" / "table.md").is_file()
    main([str(sweep)])  # the wandb folder is no run


def inspected(path):
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_resumes_to_the_same_bytes(tmp_path):
    folder = make_collection(tmp_path / "small", n_videos=20, n_queries=60)

    def sweep(outputs):
        return [
            *(sys.executable, "-m", "dcdt.run", "-m", "data=files", f"data.path={folder}"),
            *(f"data.cache={folder}/embeddings", f"outputs={outputs}", "model=zero_shot,dcdt", "split=folds"),
            *("split.n_folds=3", "split.index=0,1,2", "trainer=cpu", "trainer.max_epochs=40", "logger=csv"),
            "callbacks.progress=false",
        ]

    def statuses(outputs):
        found = (outputs / "sweeps").glob("*/*/status.json") if outputs.exists() else ()
        return [json.loads(path.read_text())["status"] for path in found]

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    subprocess.run(sweep(straight), check=True, capture_output=True, timeout=300)
    process = subprocess.Popen(sweep(broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while True:  # stopped before it is looked at, or the job could end between the look and the kill
        process.send_signal(signal.SIGSTOP)
        found = statuses(broken)
        if "running" in found and found.count("finished") == 4:
            break
        process.send_signal(signal.SIGCONT)
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert statuses(broken).count("running") == 1
    (halfway,), (whole,) = (list((outputs / "sweeps").iterdir()) for outputs in (broken, straight))
    main([str(halfway)])
    assert "did not finish in 1 of" in (halfway / "report" / "table.md").read_text()
    subprocess.run(sweep(broken), check=True, capture_output=True, timeout=300)
    for folder in (halfway, whole):
        main([str(folder)])
    assert files(halfway / "report") == files(whole / "report")
