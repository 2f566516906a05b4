"""What sweeps and single runs leave for Weights & Biases, read back from the offline files."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import FAST, clean_environment, dcdt_process, on
from support import make_collection
from test_resume import LONG, killed
from test_run import leet_all

WANDB = [*(text for text in FAST if text != "logger=csv"), "logger=wandb"]
# One job of the sweep breaks while it trains, for a reason that is neither in its configuration nor in the code.
BROKEN = """
import dcdt.training.fit as setup
train = setup.train
def breaking(settings, *arguments):
    if (settings.model.name, settings.split.index, settings.seed) == ("dcdt", 2, 1):
        raise RuntimeError("no space left on the disk")
    return train(settings, *arguments)
setup.train = breaking
from dcdt.run import main
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection") / "small", n_videos=20, n_queries=60)


def records(folder, kind):
    """The records of a kind of every offline run of a folder, by the id of the run."""
    found = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        shown = [json.loads(line) for line in lines]
        found[file.parent.name] = [record[kind] for record in shown if kind in record]
    return found


@pytest.mark.slow
def test_a_sweep_of_twelve_jobs_one_of_which_fails_leaves_its_table(tmp_path):
    sweep = ["-m", f"outputs={tmp_path}", *WANDB, "split=folds", "split.index=0,1,2", "seed=0,1"]
    sweep += ["model=zero_shot,dcdt", f"hydra.sweep.dir={tmp_path}/sweep"]
    environment = clean_environment(HOME=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", BROKEN, *sweep], capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert "1 failed, 11 finished" in done.stderr and "no space left on the disk" in done.stderr
    place = tmp_path / "sweep"
    assert "linear_algebra, MRR:\nzero_shot " in done.stdout and f"report: {place}/report/index.html" in done.stdout
    found = leet_all(place)
    rows = {name: found.pop(name)["summary"] for name in ("zero_shot", "dcdt")}
    sent = found.pop("report_sweep")["summary"]
    names = {
        f"split.index={index}, seed={seed}, model={model}"
        for index in range(3)
        for seed in range(2)
        for model in ("zero_shot", "dcdt")
    }
    broken = "split.index=2, seed=1, model=dcdt"
    assert set(found) == names
    assert {name: shown["exit_code"] for name, shown in found.items()} == {name: int(name == broken) for name in names}
    assert found[broken]["summary"]["error"] == "RuntimeError: no space left on the disk"
    for name, shown in found.items():
        assert len([key for key in shown["summary"] if not key.startswith("_")]) <= 40
        assert shown["config"]["variant"] == name.split("model=")[1] and f"index={shown['config']['fold']}," in name
    runs = [shown[0] for shown in records(place, "run").values()]
    assert {run["run_group"] for run in runs} == {"sweep"} and len(runs) == 15
    jobs = [run for run in runs if run["job_type"] not in ("report", "variant")]
    assert all(run["job_type"] == run["display_name"].split("model=")[1] for run in jobs)
    assert all(run["tags"] == ["linear_algebra"] for run in jobs)
    curves = [
        [row["item"]["epoch"] for row in rows if "val/mrr" in row["item"]]
        for rows in records(place, "history").values()
    ]
    assert curves.count([0, 2]) == 6  # level lines of zero_shot, over the epochs of the others
    main = json.loads(next((place / "wandb").rglob("tables/main_*.table.json")).read_text())
    with (place / "report" / "table.csv").open() as file:
        written = list(csv.DictReader(file))
    mrr = main["columns"].index("mrr")
    assert [(row[0], row[mrr]) for row in main["data"]] == [(row["model"], float(row["mrr"])) for row in written]
    for row in written:
        assert sent[f"{row['model']}/mrr"] == pytest.approx(float(row["mrr"]), abs=1e-6)
        assert rows[row["model"]]["mrr_low"] == pytest.approx(float(row["mrr_low"]), abs=1e-6)
    assert sent["dcdt/p"] == rows["dcdt"]["p"] and "dcdt/difference" in sent
    for path in place.glob("*/wandb.json"):
        record = json.loads(path.read_text())
        assert found[record["name"]]["run_id"] == record["id"]
        assert found[record["name"]]["config"]["folder"] == str(path.parent)
        assert Path(record["files"]).parent == place / "wandb"
    table = (place / "report" / "table.md").read_text()
    assert (
        table.count("| failed |")
        == table.count("| failed | 1 | 2 | 1 | RuntimeError: no space left on the disk |")
        == 1
    )

    again = dcdt_process("run", *sweep, HOME=str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("done already") == 11 and "12 finished" in again.stderr
    assert "\nreport: " in again.stdout
    found = records(place, "run")
    assert len(found) == 15 + 1 + 3 and [shown[0]["display_name"] for shown in found.values()].count(broken) == 2
    assert "no space left" not in (place / "report" / "table.md").read_text()


@pytest.mark.slow
def test_a_job_that_was_refused_has_no_run_and_one_that_cannot_run_a_finished_one(folder, tmp_path):
    sweep = ["-m", *on(folder, tmp_path), *WANDB, "model=collaborative,dcdt", "seed=0,-1"]
    done = dcdt_process("run", *sweep, f"hydra.sweep.dir={tmp_path}/sweep", HOME=str(tmp_path))
    assert done.returncode == 1
    runs = {name: shown for name, shown in leet_all(tmp_path / "sweep").items() if name.startswith("model=")}
    reasons = {name: shown["summary"].get("error") for name, shown in runs.items() if name.endswith("seed=0")}
    lacking = "the collection has no interactions.csv"
    assert reasons == {"model=collaborative, seed=0": lacking, "model=dcdt, seed=0": None}
    found = {name: (shown["exit_code"], shown["summary"]["status"]) for name, shown in runs.items()}
    assert found == {
        "model=collaborative, seed=0": (0, "not_applicable"),
        "model=dcdt, seed=0": (0, "finished"),
    }  # none for seed=-1, which was refused


@pytest.mark.slow
def test_what_a_run_shows_while_it_trains_and_at_its_end(folder, tmp_path):
    extra = ["trainer.max_epochs=4", "logger.samples=3", "logger.samples_every=2", "logger.artifacts=true"]
    extra += ["logger.watch=gradients", "logger.watch_steps=1", f"hydra.run.dir={tmp_path}/run"]
    extra += ["callbacks.progress=true"]
    done = dcdt_process("run", *on(folder, tmp_path), *WANDB, *extra, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    [shown] = records(tmp_path, "history").values()
    epochs = [row["item"] for row in shown if "train/loss" in row["item"]]
    assert [row["epoch"] for row in epochs] == [0, 1, 2, 3]
    assert ["samples/val" in str(row) for row in epochs] == [False, True, False, True]
    for row in epochs:
        assert row["scores/positives._type"] == "histogram" and sum(row["scores/positives.values"]) > 0
        assert row["speed/samples_per_second"] > 0 and row["speed/epoch_seconds"] > 0
    assert [row["lr"] for row in epochs] == sorted((row["lr"] for row in epochs), reverse=True)
    assert any(key.startswith("gradients/") for row in epochs for key in row)
    assert all(records(tmp_path, "stats").values())  # of the machine
    [summary] = leet_all(tmp_path).values()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    best = json.loads((tmp_path / "run" / "cost.json").read_text())["best_epoch"]
    assert summary["summary"]["best_epoch"] == best
    for name in ("val/mrr", "val/ndcg@10", "test/mrr"):
        assert summary["summary"][name] == pytest.approx(metrics[name])
    assert summary["summary"]["train/loss"] == pytest.approx(float(epochs[best]["train/loss"]))
    assert not any("test/mrr" in row["item"] for row in shown)  # once, in the summary
    assert {"figures/videos", "samples/best", "figures/val_mrr_table"} <= summary["summary"].keys()
    assert summary["summary"]["test/mrr_minus_zero_shot"] == pytest.approx(
        metrics["test/mrr"] - metrics["zero_shot/test/mrr"]
    )
    [lines] = (tmp_path / "wandb").rglob("figures/val_mrr_table_*.table.json")
    drawn = {(name, value) for _, name, value in json.loads(lines.read_text())["data"]}
    assert [value for name, value in drawn if name == "zero_shot"] == [pytest.approx(metrics["zero_shot/val/mrr"])]
    assert any(line["line"].startswith("run folder: ") for line in summary["console"])
    tables = sorted((tmp_path / "wandb").rglob("samples/val_*.table.json"))
    table = json.loads(tables[-1].read_text())
    assert table["columns"] == ["epoch", "query", "rank", "title", "link", "score", "relevant"]
    assert [row[2] for row in table["data"]] == [1, 2, 3, 4, 5] * 3
    logged = [artifact["type"] for part in records(tmp_path, "artifact").values() for artifact in part]
    kinds = ["checkpoint", "collection", "embeddings", "run"]
    assert sorted(kind for kind in logged if kind != "run_table") == kinds  # W&B's own of a table


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run_and_whole(folder, tmp_path):
    arguments = [*on(folder, tmp_path), *LONG[:1], *LONG[2:], "trainer.max_epochs=12", "logger=wandb"]
    killed(6, *arguments, "logger.mode=offline", "callbacks.checkpoint_seconds=0", f"hydra.run.dir={tmp_path}/run")
    identity = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    done = dcdt_process("run", f"resume={tmp_path}/run", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "wandb.json").read_text())["id"] == identity
    first, second = records(tmp_path, "history").values()
    assert [row["item"]["epoch"] for row in second if "train/loss" in row["item"]] == list(range(12))
    assert len(first) < 12
