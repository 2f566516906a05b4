import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reporting.run_folders import query_ids, write_run

from dcdt.runs.reader import FAILED, FINISHED, NOT_APPLICABLE, UNFINISHED, first_line, read_runs
from dcdt.utils.errors import UserError


def test_a_run_is_read_as_it_was_written(tmp_path):
    write_run(tmp_path / "sweep", fold=2, seed=1, ranks=range(1, 13), extra=("slice_zh",), trials=4)
    (run,) = read_runs([tmp_path / "sweep"])
    assert (run.status, run.model, run.fold, run.seed, run.trials) == (FINISHED, "dcdt", 2, 1, 4)
    assert run.sides.keys() == {"test", "slice_zh"}  # never validation
    assert run.sides["test"].ids == query_ids(2)
    assert run.sides["test"].values["mrr"].tolist() == [1 / rank for rank in range(1, 13)]
    assert run.pairs.labels.sum() == 12 and len(run.pairs.scores) == 60
    assert [row["train/loss"] for row in run.history] == pytest.approx([0.52, 0.27, 0.5 / 3 + 0.02, 0.145])


def test_sweeps_and_runs_can_be_mixed_and_none_is_read_twice(tmp_path):
    one = write_run(tmp_path / "sweep", fold=0)
    other = write_run(tmp_path / "apart", fold=1)
    (tmp_path / "sweep" / "wandb").mkdir()
    (tmp_path / "sweep" / "report").mkdir()
    runs = read_runs([tmp_path / "sweep", one, other, tmp_path / "sweep"])
    assert [run.folder for run in runs] == [one, other]


def test_every_status_is_told_apart(tmp_path):
    write_run(tmp_path, fold=0)
    write_run(tmp_path, fold=1, status="failed", error="MemoryError: 3 GB\nTraceback")
    write_run(tmp_path, "collaborative", fold=0, status="not_applicable", error="no interactions.csv")
    write_run(tmp_path, fold=2, status="half-written")
    (write_run(tmp_path, fold=3, status="half-written") / "status.json").unlink()  # killed after config.yaml
    found = {(run.model, run.fold): (run.status, run.error) for run in read_runs([tmp_path])}
    assert found == {
        ("dcdt", 0): (FINISHED, ""),
        ("dcdt", 1): (FAILED, "MemoryError: 3 GB"),
        ("dcdt", 2): (UNFINISHED, ""),
        ("dcdt", 3): (UNFINISHED, ""),
        ("collaborative", 0): (NOT_APPLICABLE, "no interactions.csv"),
    }


def test_a_job_that_failed_over_its_own_seed_does_not_stop_the_report(tmp_path):
    write_run(tmp_path, fold=0)
    write_run(tmp_path, fold=1, seed="abc", status="failed", error="UserError: seed is 'abc'")
    assert sorted((run.status, run.seed) for run in read_runs([tmp_path])) == [(FAILED, -1), (FINISHED, 0)]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("a\nb", "a"),
        ("", ""),
        ("OSError: /home/me/data/khan/corpus.jsonl: gone", "OSError: corpus.jsonl: gone"),
        ("cannot read '/srv/x y/z.csv'", "cannot read 'x y/z.csv'"),
        ("C:\\Users\\me\\runs\\a.json is corrupt", "a.json is corrupt"),
        ("k1/b must be above 0, see https://x.org/a/b", "k1/b must be above 0, see https://x.org/a/b"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_an_error_is_one_line_without_paths(error, shown):
    assert first_line(error) == shown


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match="is not a folder"):
        read_runs([tmp_path / "missing"])


def test_a_sweep_without_a_finished_run_is_refused_with_its_first_error(tmp_path):
    write_run(tmp_path, fold=0, status="half-written")
    write_run(tmp_path, fold=1, status="failed", error="ValueError: why")
    with pytest.raises(UserError, match=r"none of the 2 runs has finished.*ValueError: why"):
        read_runs([tmp_path])


@pytest.mark.parametrize("name", ["metrics.json", "provenance.json", "cost.json", "per_query.parquet", "config.yaml"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_file_of_a_finished_run_is_named(tmp_path, name, damage):
    path = write_run(tmp_path) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    word = "is missing" if damage == "missing" else "is corrupt"
    with pytest.raises(UserError, match=f"{name} {word}") as caught:
        read_runs([tmp_path])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["pairs.parquet", "history.csv", "tuning.json", "status.json"])
def test_a_corrupt_file_that_a_run_may_lack_is_named_too(tmp_path, name):
    (write_run(tmp_path, trials=2) / name).write_bytes(b"epoch,train/loss\n0,\xff\xfe{")
    with pytest.raises(UserError, match=f"{name} is corrupt"):
        read_runs([tmp_path])


def test_an_unknown_status_is_corrupt(tmp_path):
    (write_run(tmp_path) / "status.json").write_text(json.dumps({"status": "paused"}))
    with pytest.raises(UserError, match="its status is 'paused'"):
        read_runs([tmp_path])


def test_a_query_that_stands_twice_is_corrupt(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = write_run(tmp_path) / "per_query.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(UserError, match=r"per_query\.parquet is corrupt"):
        read_runs([tmp_path])


def test_units_are_read_and_a_unit_that_is_no_text_is_corrupt(tmp_path):
    folder = write_run(tmp_path, units=lambda query: "u" + query[-1])
    (run,) = read_runs([tmp_path])
    assert run.sides["test"].units == ["u" + name[-1] for name in run.sides["test"].ids]
    table = pq.read_table(folder / "per_query.parquet").drop_columns(["unit"])
    pq.write_table(table, folder / "per_query.parquet")  # as version 0.1 did
    (run,) = read_runs([tmp_path])
    assert run.sides["test"].units == []
    pq.write_table(table.append_column("unit", pa.nulls(len(table), pa.string())), folder / "per_query.parquet")
    with pytest.raises(UserError, match=r"per_query\.parquet is corrupt .*unit of a query"):
        read_runs([tmp_path])
