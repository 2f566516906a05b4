"""Benchmark scripts import, run at toy size and write what docs/performance.md reads."""

import ast
import importlib
import importlib.util
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dcdt.utils.files import read_json

FOLDER = Path(__file__).parent.parent / "benchmarks"
STUDIES = FOLDER / "studies"
KEYS = {"question", "value", "unit", "against", "ratio", "target", "holds"}
TOY = {
    "training": "--queries 40 --videos 30 --width 16 --batch 16 --repeats 1 --every 1",
    "mining": "--queries 20 --videos 40 --width 16 --pool 5 --square 64 --repeats 1",
    "evaluation": "--queries 12 --videos 60 --width 16 --portions 1",
    "metrics": "--queries 30 --videos 20 --repeats 1",
    "bm25": "--videos 200 --queries 4 --slow-queries 2 --repeats 1",
    "passages": "--videos 60 --passages 4 --width 8 --repeats 1",
    "growth": "--sizes 20 40 --width 16 --repeats 1 --no-index",
}
PROCESSES = {"mining"}  # scripts that start a process, which a fast test replaces


def import_from_benchmarks(monkeypatch):
    """Make the scripts and the studies importable by their names."""
    monkeypatch.syspath_prepend(str(STUDIES))
    monkeypatch.syspath_prepend(str(FOLDER))


def run(name, arguments, monkeypatch):
    """Call a script's main in this process."""
    import_from_benchmarks(monkeypatch)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    threads = torch.get_num_threads()
    try:
        importlib.import_module(name).main()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TOY)
def test_a_script_writes_its_rows(name, tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    monkeypatch.setenv("DCDT_OUTPUTS", str(tmp_path / "outputs"))
    extra = ["--image", str(tmp_path / "growth.png")] if name == "growth" else []
    if name in PROCESSES:
        monkeypatch.setattr("subprocess.run", lambda *_, **__: type("Done", (), {"stdout": "1.0"}))
    run(name, [*TOY[name].split(), *extra, "--out", str(out)], monkeypatch)
    result = read_json(out)
    assert result.keys() == {"rows", "date", "machine", "n"}
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", result["date"])
    assert isinstance(result["n"], int) and "torch" in result["machine"]
    assert result["rows"]
    for row in result["rows"]:
        assert row.keys() == KEYS
        assert row["value"] >= 0 or name == "growth"
        assert row["holds"] in (True, False, None)
        assert (row["holds"] is None) == (row["target"] == "stated" or row["target"].startswith("report"))
    assert name != "growth" or (tmp_path / "growth.png").stat().st_size > 1000


def test_without_a_gpu_nothing_is_measured_on_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run("gpu", ["--out", str(tmp_path / "gpu.json")], monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_operations_of_a_step_are_counted_without_a_gpu(monkeypatch):
    import_from_benchmarks(monkeypatch)
    gpu = importlib.import_module("gpu")
    gpu.register()
    counting, on_cpu = gpu.Counting(), torch.ones(4, 2, dtype=torch.float64)
    with gpu.separate() as device, counting:
        a = on_cpu.to(device)  # not counted
        counting.on = True
        float((a.T @ a).view(4).sum())  # a product and a sum; a view starts no kernel; one value is read
        on_cpu @ on_cpu.T  # not on the device
    assert counting.operations == {"mm": 1, "sum": 1} and counting.reads == 1
    assert counting.bytes == 8 * (8 + 8 + 4 + 4 + 1)
    rows = gpu.count_rows([8], 40, 16)
    assert 50 < rows[0]["value"] <= 63 and rows[2]["value"] == 0


def test_the_peer_on_a_gpu_computes_in_the_precision_of_the_trainer(monkeypatch):
    import_from_benchmarks(monkeypatch)
    gpu, synthetic, training = (importlib.import_module(name) for name in ("gpu", "synthetic", "training"))
    seen, towers = [], []
    for trainer in ("gpu", "cpu"):
        settings = synthetic.settings_of(f"trainer={trainer}", "sampler=random", "batch_size=4")
        tables = synthetic.tables_of(16, 12, 8)
        model, optimizer, schedule = training.fresh(settings, tables)
        match = model.match
        monkeypatch.setattr(model, "match", lambda *given, match=match: seen.append(match(*given)) or seen[-1])
        model.query_tower.linear.register_forward_hook(lambda _, given, output: towers.append(output.dtype))
        rows = torch.arange(8).reshape(8, 1).repeat(1, 3)
        held = next(training.item_batches(settings, tables, rows))
        training.step(model, optimizer, schedule, held, gpu.autocast(settings, torch.device("cpu")))
        assert all(bool(value.grad.isfinite().all()) for value in model.parameters() if value.grad is not None)
    assert towers == [torch.bfloat16, torch.float32]
    assert [scores.dtype for scores in seen] == [torch.float32, torch.float32]  # bf16 is too coarse for similarities


def test_shares_of_a_gpu_are_of_what_was_measured(monkeypatch):
    import_from_benchmarks(monkeypatch)
    gpu = importlib.import_module("gpu")
    operations, moved = gpu.needs(distinct=10.0, batch=4, width=8)
    assert moved == 2 * 2 * (4 + gpu.FIELDS * 10) * 8  # read and written, two bytes each
    rows = gpu.shares("a step", 2.0, (operations, moved), rate=operations, bandwidth=2 * moved)
    assert [row["ratio"] for row in rows] == [0.5, 0.25]


def test_overlapping_positives_lie_between_queries_and_units(monkeypatch):
    """Disjoint sets are single queries; equal sets covary fully; others by shared over all, by a double loop."""
    import_from_benchmarks(monkeypatch)
    error = importlib.import_module("detectable").jaccard_error
    values = np.array([0.1, 0.5, 0.2, 0.9])
    assert error(values, [[0], [1], [2], [3]]) == pytest.approx(values.std(ddof=1) / 2)
    sets = [[0, 1], [1, 0], [1, 2], [3]]
    rest = values - values.mean()
    total = sum(
        len({*one} & {*other}) / len({*one} | {*other}) * rest[i] * rest[j]
        for i, one in enumerate(sets)
        for j, other in enumerate(sets)
    )
    assert error(values, sets) == pytest.approx((total / 12) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("startup", "--repeats 1"),
        ("small_run", "--epochs 1 --repeats 1"),
        ("memory", "--videos 300 --queries 200 --width 16"),
        ("mining", "--queries 20 --videos 40 --width 16 --pool 5 --square 64 --repeats 1"),
    ],
)
def test_scripts_that_take_longer(name, arguments, tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    run(name, [*arguments.split(), "--out", str(out)], monkeypatch)
    assert len(read_json(out)["rows"]) >= 2
    assert all(row.keys() == KEYS for row in read_json(out)["rows"])


@pytest.mark.parametrize("script", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_a_benchmark_finds_all_that_it_imports(script, monkeypatch):
    if script.stem == "flower":
        pytest.importorskip("flwr", reason="needs an environment of its own (docs/federation.md)")
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script), run_name="imported")


@pytest.mark.parametrize("script", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_what_a_benchmark_imports_of_the_package_exists(script):
    """Also where a function imports it."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("dcdt", "baselines"):
            module = importlib.import_module(node.module)
            for name in (part.name for part in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), (node.module, name)


def test_the_top_of_the_folder_stays_small():
    scripts = [path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".sh")]
    assert len(scripts) <= 14, "what is measured once goes to benchmarks/studies"
