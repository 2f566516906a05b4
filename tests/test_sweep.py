import logging

import pytest
from omegaconf import OmegaConf

from dcdt import sweep


@pytest.fixture(autouse=True)
def clean():
    yield
    sweep.FAILED.clear()


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
        sweep.SweepSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert sweep.FAILED == ["c", "d", "e"]
    assert [record.getMessage() for record in caplog.records] == [
        "sweep: 1 failed, 1 finished, 1 not_applicable, 1 running, 1 unreadable",
        "  c: ValueError: x",
        "  d: did not finish",
        "  e: did not finish",
        f"tables: python -m dcdt.report {tmp_path}",
    ]


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
    assert sweep.differing(given, tmp_path) == ["split.index=1", "model=b"]
    assert sweep.differing(given, tmp_path / "nowhere") == given
