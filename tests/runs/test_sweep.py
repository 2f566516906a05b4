import logging

import pytest
from omegaconf import OmegaConf

from dcdt import run
from dcdt.runs import sweep


@pytest.fixture(autouse=True)
def clean():
    yield
    sweep.ENDED.clear()


def ended(folder, **changed):
    """What Hydra calls when a sweep is over."""
    config = {"hydra": {"sweep": {"dir": str(folder)}}, "logger": {"name": "csv"}, **changed}
    sweep.SweepSummary().on_multirun_end(OmegaConf.create(config))
    [found] = sweep.ENDED
    return found


def test_jobs_are_counted_by_status_and_what_did_not_finish_is_named(tmp_path, caplog):
    written = {
        "a": '{"status": "finished"}',
        "b": '{"status": "not_applicable", "error": "no interactions"}',
        "c": '{"status": "failed", "error": "ValueError: x"}',
        "d": '{"status": "running"}',
        "e": '{"status": "fin',
    }
    for name, text in written.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(text)
    with caplog.at_level(logging.WARNING, "dcdt"):
        found = ended(tmp_path, sweep={"report": False})
    assert (found.finished, found.failed, found.report) == (["a"], ["c", "d", "e"], False)
    assert [record.getMessage() for record in caplog.records] == [
        "sweep: 1 failed, 1 finished, 1 not_applicable, 1 running, 1 unreadable",
        "  c: ValueError: x",
        "  d: did not finish",
        "  e: did not finish",
        f"tables: python -m dcdt.report {tmp_path}",
    ]


@pytest.mark.parametrize(("status", "report"), [("finished", True), ("failed", False)])
def test_a_sweep_is_reported_where_a_job_has_finished(tmp_path, status, report, caplog):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "status.json").write_text(f'{{"status": "{status}"}}')
    assert ended(tmp_path).report == report
    assert ("no report: no job has finished" in caplog.text) != report and "tables:" not in caplog.text
    assert not ended(tmp_path).on_wandb and ended(tmp_path, logger={"name": "wandb"}).on_wandb


def end_of_command(monkeypatch, job, report):
    """Run the command with another job and another report; its exit code."""
    monkeypatch.setattr(run, "prepare_hydra", lambda: None)
    monkeypatch.setattr(run, "run_job", job)
    monkeypatch.setattr("dcdt.report.publish", report)
    try:
        run.main()
    except SystemExit as error:
        return error.code
    return 0


@pytest.mark.parametrize(("failed", "code"), [([], 0), (["b"], 1)])
def test_the_command_ends_a_sweep_with_its_report_and_keeps_its_exit_code(monkeypatch, tmp_path, capsys, failed, code):
    calls = []
    job = lambda: sweep.ENDED.append(sweep.Sweep(tmp_path, ["a"], failed, True, True))  # noqa: E731
    assert end_of_command(monkeypatch, job, lambda *given: calls.append(given)) == code
    assert calls == [([tmp_path], tmp_path / "report", True)]

    def breaking(*_):
        raise ValueError("no figure\nsecond line")

    sweep.ENDED.clear()
    assert end_of_command(monkeypatch, job, breaking) == code
    told = capsys.readouterr().err
    assert (
        told == f"the report is not complete: ValueError: no figure. Repeat: python -m dcdt.report {tmp_path} --wandb\n"
    )


def test_a_sweep_whose_launcher_fails_is_reported_all_the_same(monkeypatch, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "status.json").write_text('{"status": "finished"}')
    calls = []

    def killed():  # as Hydra ends a command whose launcher raises
        sweep.STARTED.append(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
        try:
            raise RuntimeError("a worker process was killed")
        except RuntimeError:
            raise SystemExit(1)  # noqa: B904

    assert end_of_command(monkeypatch, killed, lambda *given: calls.append(given)) == 1
    assert calls == [([tmp_path], tmp_path / "report", False)]


def test_an_interrupted_sweep_has_no_report(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end_of_command(monkeypatch, interrupted, lambda *_: pytest.fail("a report"))


def test_a_job_is_named_by_the_choices_that_differ(tmp_path):
    config = OmegaConf.create(
        {
            "hydra": {
                "sweep": {"dir": str(tmp_path)},
                "sweeper": {"params": {"seed": "0", "split.index": "range(0,2)"}},
                "overrides": {"task": ["model=a,b", "callbacks.progress=false", "model.penalty=null"]},
            }
        }
    )
    sweep.SweepSummary().on_multirun_start(config)
    given = ["seed=0", "split.index=1", "model=b", "callbacks.progress=False", "model.penalty=null"]
    assert sweep.own_choices(given, tmp_path) == ["split.index=1", "model=b"]
    assert sweep.own_choices(given, tmp_path / "nowhere") == given


def test_a_sweep_says_how_many_jobs_are_run_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sweep, "_jobs", lambda *_: ["a", "b", "a", "a"])
    given = {"sweep": {"dir": str(tmp_path)}, "sweeper": {"params": None}, "overrides": {"task": []}}
    summary = sweep.SweepSummary()
    with caplog.at_level(logging.WARNING, "dcdt"):
        summary.on_multirun_start(OmegaConf.create({"hydra": given}))
    assert [record.getMessage() for record in caplog.records] == ["2 of 4 jobs are the same as another and run once"]
    assert (summary.progress.total, summary.progress.pending) == (2, {"a", "b"})
