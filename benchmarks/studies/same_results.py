"""Do two commits compute the same? Every kind of run, export and answer, by id; then what each costs, in turns.

    python benchmarks/studies/same_results.py OLD NEW [--only dcdt serve ...] [--speed [mining serving ...]]

Both commits are checked out as worktrees and run by one environment, with one thread, on one machine. Per-query values,
ranks and order are compared exactly; scores, metrics and checkpoint tensors bit by bit. Names that changed on purpose
stand in renames.json: `overrides` (old text to new text of a command line), `metrics` and `tensors` (old name to new
name), `columns` (that NEW adds), and `replaced` (a case to the commit that replaced an operation on purpose: a
difference of 1e-6 is allowed). Cases over learners need $DCDT_COLLECTIONS. Exit code 1 where anything differs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

STUDIES = Path(__file__).resolve().parent
ROOT = STUDIES.parents[1]
RENAMES = json.loads((STUDIES / "renames.json").read_text())
FAST = ["trainer=cpu", "trainer.threads=1", "logger=none", "callbacks.progress=false", "trainer.max_epochs=4"]
QUESTIONS = ["why do eigenvectors matter", "what is the rank of a matrix", "how do I project onto a plane", "zebra"]
VOLATILE = ("version", "seconds", "ms", "folder", "catalogue", "built")  # of an answer or of a run's facts
TOLERANCE = 1e-6
SPEED = {  # scripts of either commit, whose CPU seconds are set against each other
    "training.py": ["--queries", "20000", "--videos", "20000", "--repeats", "1"],
    "small_run.py": ["--epochs", "50", "--repeats", "2"],
    "mining.py": ["--queries", "2000", "--repeats", "1"],
}
SERVING = ["--only", "question", "--videos", "1000000", "--threads", "1"]
SLOWER = 1.1
ROUNDS = 3

Side = dict[str, Path]  # "code": the worktree, "out": what it writes


def run_cases(conf: Path) -> dict[str, list[str]]:
    """Overrides of a run for every file of the groups, each at least once, and for what is no file."""
    options = {group: sorted(path.stem for path in (conf / group).glob("*.yaml")) for group in ("model", "loss")}
    cases = {f"model={name}": [f"model={name}"] for name in options["model"]}
    cases |= {f"loss={name}": [f"loss={name}", "sampler=in_batch"] for name in options["loss"]}
    for path in sorted((conf / "sampler").glob("*.yaml")):
        extra = ["sampler.warm_up=1", "sampler.every=1"] if path.stem == "dynamic_hard" else []
        cases[f"sampler={path.stem}"] = [f"sampler={path.stem}", *extra]
    for path in sorted((conf / "split").glob("*.yaml")):
        small = ["ks=[1,2]"] if path.stem in ("video", "paper") else []
        cases[f"split={path.stem}"] = ["model=dcdt_residual", f"split={path.stem}", *small]
    cases["trials"] = ["model=dcdt_residual", "trials=3"]
    cases["halves"] = ["model=dcdt_residual", "trainer.tables=float16"]
    cases["ddp"] = ["model=dcdt", "trainer=ddp", "trainer.accelerator=cpu"]
    return cases


def learner_cases(collections: Path) -> dict[str, list[str]]:
    """Models of histories on real interactions, whose texts are embedded once for both commits."""
    data = ["data=files", f"data.path={collections / 'udemy_interactions'}", "split=time"]
    models = ("dcdt_history", "zero_shot_history", "collaborative", "hybrid_history")
    return {f"udemy, {model}": [*data, f"model={model}"] for model in models}


def renamed(overrides: list[str]) -> list[str]:
    """A command line of OLD as NEW takes it."""
    known = RENAMES["overrides"]
    return [
        next((text.replace(old, new, 1) for old, new in known.items() if text.lstrip("+").startswith(old)), text)
        for text in overrides
    ]


def command(side: Side, module: str, *arguments: str, script: bool = False, needs: int | None = 0) -> str:
    """Run a command of a worktree with one thread; what it printed.

    Raises:
        RuntimeError: it ended otherwise than `needs`, if that is a number.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DCDT_OUT", "WANDB"))}
    environment |= {"PYTHONPATH": str(side["code"]), "OMP_NUM_THREADS": "1", "DCDT_OUTPUTS": str(side["out"])}
    start = [sys.executable, module] if script else [sys.executable, "-m", module]
    done = subprocess.run([*start, *arguments], cwd=side["code"], env=environment, capture_output=True, text=True)
    if needs is not None and done.returncode != needs:
        raise RuntimeError(
            f"{side['code'].name}: {module} {' '.join(arguments)}: {done.returncode}\n{done.stderr[-800:]}"
        )
    return done.stdout


def train(side: Side, name: str, overrides: list[str]) -> Path:
    """A run of a case; its folder."""
    folder = side["out"] / "".join(char if char.isalnum() else "_" for char in name)
    own = renamed([*FAST, *overrides]) if side["code"].name == "new" else [*FAST, *overrides]
    given = [text for text in own if "ddp" not in name or not text.startswith("trainer=cpu")]
    command(side, "dcdt.run", *given, f"hydra.run.dir={folder}")
    return folder


def differences(old: Path, new: Path, atol: float) -> Iterator[str]:
    """What differs between two runs, each in a line."""
    for name, keys in (("per_query.parquet", 6), ("scores.parquet", 2), ("pairs.parquet", 2)):
        if (old / name).is_file() or (new / name).is_file():
            yield from (f"{name}: {what}" for what in tables_differ(old / name, new / name, keys, atol))
    first, second = ((path / "run.trec").read_text().splitlines() for path in (old, new))
    order = [[line.split()[:4] for line in lines] for lines in (first, second)]
    if order[0] != order[1]:
        yield f"run.trec: {sum(one != other for one, other in zip(*order, strict=False))} ranks differ"
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (old, new)]
    expected = {RENAMES["metrics"].get(name, name): value for name, value in metrics[0].items()}
    yield from (f"metrics.json: {name}" for name in sorted(expected.keys() ^ metrics[1].keys()))
    for name in sorted(expected.keys() & metrics[1].keys()):
        if not same(expected[name], metrics[1][name], atol):
            yield f"metrics.json: {name} was {expected[name]}, is {metrics[1][name]}"
    yield from checkpoints_differ(*(path / "checkpoints" / "best.ckpt" for path in (old, new)), atol)


def tables_differ(old: Path, new: Path, keys: int, atol: float) -> Iterator[str]:
    """Columns of a table whose values differ once rows are sorted by the first columns, which are its ids."""
    frames = [pq.read_table(path).to_pandas() for path in (old, new)]
    frames[1] = frames[1].drop(columns=set(RENAMES["columns"]) - set(frames[0].columns), errors="ignore")
    if list(frames[0].columns) != list(frames[1].columns) or len(frames[0]) != len(frames[1]):
        yield f"{[(len(frame), list(frame.columns)) for frame in frames]}"
        return
    ids = [column for column in frames[0].columns if column not in ("value", "score", "warm")][:keys]
    first, second = (frame.sort_values(ids, kind="stable").reset_index(drop=True) for frame in frames)
    for column in first.columns:
        wrong = [at for at, pair in enumerate(zip(first[column], second[column], strict=True)) if not same(*pair, atol)]
        if wrong:
            at = wrong[0]
            yield f"{column}: {len(wrong)} of {len(first)}, first {first[column][at]} and {second[column][at]}"


def checkpoints_differ(old: Path, new: Path, atol: float) -> Iterator[str]:
    """Tensors of a checkpoint that differ, by the name that they have now."""
    states = [torch.load(path, weights_only=True, map_location="cpu")["state_dict"] for path in (old, new)]
    expected = {RENAMES["tensors"].get(name, name): value for name, value in states[0].items()}
    yield from (f"best.ckpt: {name}" for name in sorted(expected.keys() ^ states[1].keys()))
    for name in sorted(expected.keys() & states[1].keys()):
        if not same(expected[name], states[1][name], atol):
            yield f"best.ckpt: {name} differs"


def same(old: Any, new: Any, atol: float) -> bool:  # noqa: ANN401 - numbers, texts, tensors and what holds them
    """Whether two values are equal, numbers to `atol`; NaN equals NaN."""
    if torch.is_tensor(old) and torch.is_tensor(new):
        close = old.shape == new.shape and old.dtype == new.dtype
        return close and bool(torch.isclose(old.double(), new.double(), atol=atol, rtol=0, equal_nan=True).all())
    if isinstance(old, float) and isinstance(new, float):
        return abs(old - new) <= atol or old == new or (old != old and new != new)
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(same(old[key], new[key], atol) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(same(*pair, atol) for pair in zip(old, new, strict=True))
    return bool(old == new)


def serve(side: Side, name: str, overrides: list[str]) -> list[Any]:
    """Train, export, ask, and ask again after an addition, an update and a removal."""
    folder = str(train(side, name, overrides))
    command(side, "dcdt.index", folder, "build")
    answers = (
        ask(side, folder, "--explain") + ask(side, folder, "--abstain") + ask(side, folder, "--filter", "series=MIT")
    )
    video = [
        "--id",
        "added",
        "--title",
        "Eigenvectors of a projection",
        "--text",
        "Why eigenvectors of a projection stay",
    ]
    command(side, "dcdt.index", folder, "add", *video, "--meta", "series=MIT")
    answers += ask(side, folder)
    command(side, "dcdt.index", folder, "update", "--id", "added", "--title", "The rank of a matrix")
    answers += ask(side, folder, "--explain")
    command(side, "dcdt.index", folder, "delete", "added")
    return answers + ask(side, folder)


def ask(side: Side, folder: str, *options: str) -> list[Any]:
    """The answers to all questions, without what is never the same twice."""
    found = []
    for question in QUESTIONS:
        text = command(side, "dcdt.recommend", folder, question, "-k", "10", "--json", *options, needs=None)
        found.append([steady(json.loads(line)) for line in text.splitlines() if line.startswith("{")])
    return found


def steady(value: Any) -> Any:  # noqa: ANN401 - JSON
    """JSON without facts that are never the same twice."""
    if isinstance(value, dict):
        return {key: steady(part) for key, part in value.items() if key not in VOLATILE}
    return [steady(part) for part in value] if isinstance(value, list) else value


def resumed(side: Side, name: str, overrides: list[str]) -> Path:
    """A run that was cut off after its first epochs and goes on."""
    folder = side["out"] / "resumed"
    kill = (
        "import os; import lightning as L\n"
        "def cut(self, trainer, module):\n    os._exit(9) if trainer.current_epoch == 3 else None\n"
        "L.Callback.on_train_epoch_start = cut\nfrom dcdt.run import main; main()"
    )
    given = renamed([*FAST, *overrides]) if side["code"].name == "new" else [*FAST, *overrides]
    script = side["out"] / "cut.py"
    script.write_text(kill)
    command(side, str(script), *given, f"hydra.run.dir={folder}", script=True, needs=9)
    command(side, "dcdt.run", f"resume={folder}")
    return folder


def approximate(sides: dict[str, Side]) -> Iterator[str]:
    """Recall and overlap of the first ten videos over an approximate index of 20,000 noisy copies of real vectors."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support import make_collection

    data = sides["old"]["out"].parent / "twenty_thousand"
    make_collection(data, n_videos=20_000, n_queries=300)
    copy_real_vectors(data)
    tops = []
    for name, side in sides.items():
        folder = train(side, "approximate", ["data=files", f"data.path={data}", "model=zero_shot"])
        command(side, "dcdt.index", str(folder), "build")
        info = command(side, "dcdt.index", str(folder), "info")
        print(f"  {name}: {' '.join(line.strip() for line in info.splitlines() if 'recall' in line)}")
        tops.append([[video["id"] for video in answer[0]["answer"]] for answer in ask(side, str(folder)) if answer])
    overlap = statistics.mean(len(set(one) & set(other)) / 10 for one, other in zip(*tops, strict=True))
    print(f"  overlap of the first ten: {overlap:.3f}")
    if overlap < 0.95:
        yield f"overlap of the first ten is {overlap:.3f}"


def copy_real_vectors(data: Path) -> None:
    """Give each text of a collection the vector of a text of the lectures, with noise of half its length."""
    from support import EMBEDDER

    from dcdt.data.beir import load_collection
    from dcdt.embeddings.cache import VectorCache
    from dcdt.embeddings.providers import space_of

    def texts_of(path: Path) -> list[str]:
        collection = load_collection(path)
        fields = (collection.field_texts(name) for name in collection.fields)
        return list(dict.fromkeys([*collection.queries.texts, *(text for texts in fields for text in texts)]))

    lectures, texts, rng = ROOT / "data" / "linear_algebra", texts_of(data), np.random.default_rng(0)
    space = space_of(EMBEDDER)
    cache, embedded = VectorCache(lectures / "embeddings", space), texts_of(lectures)
    real = cache.vectors([text for text, row in zip(embedded, cache.find(embedded), strict=True) if row >= 0])
    noise = rng.normal(size=(len(texts), space.dimensions))
    copies = real[rng.integers(len(real), size=len(texts))] + 0.5 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    shutil.rmtree(data / "embeddings")
    VectorCache(data / "embeddings", space).add(texts, copies / np.linalg.norm(copies, axis=1, keepdims=True))


def check(name: str, found: Iterator[str] | list[str]) -> bool:
    """Print what differs in a case; whether nothing does."""
    lines = list(found)
    print(f"{'same     ' if not lines else 'DIFFERENT'} {name}", flush=True)
    for line in lines[:8]:
        print(f"    {line}", flush=True)
    return not lines


def compare(
    sides: dict[str, Side], name: str, act: Callable[[Side, str, list[str]], Any], overrides: list[str]
) -> bool:
    """One case on both commits."""
    atol = TOLERANCE if name in RENAMES["replaced"] else 0.0
    try:
        old, new = (act(side, name, overrides) for side in sides.values())
    except RuntimeError as error:
        return check(name, [str(error)])
    if isinstance(old, Path):
        return check(name, differences(old, new, atol))
    return check(name, [] if same(old, new, atol) else [f"{question}" for question in unequal(old, new, atol)])


def unequal(old: list[Any], new: list[Any], atol: float) -> Iterator[str]:
    """Answers that differ, cut short."""
    for at, (one, other) in enumerate(zip(old, new, strict=True)):
        if not same(one, other, atol):
            yield f"answer {at}: {json.dumps(one)[:160]} ... {json.dumps(other)[:160]}"


def speed(sides: dict[str, Side], parts: list[str]) -> bool:
    """CPU seconds of each commit's own benchmarks in turns: median of the rounds, NEW over OLD.

    CPU seconds of one thread, not seconds of a clock: other work on the machine changes them little. Answers over a
    million videos are compared by the CPU milliseconds that serving.py reports, of towers and of a hybrid.
    """
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    for _ in range(ROUNDS):
        for script, arguments in SPEED.items():
            if parts and script.removesuffix(".py") not in parts:
                continue
            for name, side in sides.items():
                before = children_seconds()
                out = side["out"] / f"{script}.json"
                command(side, str(side["code"] / "benchmarks" / script), *arguments, "--out", str(out), script=True)
                seconds[name].setdefault(script, []).append(children_seconds() - before)
    for name, side in sides.items() if not parts or "serving" in parts else ():
        towers, hybrid = (
            train(side, f"speed {model}", [f"model={model}"]) for model in ("dcdt_residual", "hybrid_towers")
        )
        out, script = side["out"] / "serving.json", str(side["code"] / "benchmarks" / "serving.py")
        command(side, script, str(towers), "--hybrid", str(hybrid), *SERVING, "--out", str(out), script=True)
        for row in json.loads(out.read_text())["rows"]:
            if "answer out" in row["question"] and "CPU p50" in row["question"]:
                seconds[name][row["question"]] = [row["value"]]
    good = True
    for row in seconds["old"].keys() & seconds["new"].keys():
        ratio = statistics.median(seconds["new"][row]) / statistics.median(seconds["old"][row])
        good &= ratio <= SLOWER
        print(f"{ratio:6.2f} {'' if ratio <= SLOWER else 'SLOWER '}{row}", flush=True)
    return good


def children_seconds() -> float:
    """CPU seconds of the processes that have ended so far."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    """Run all cases, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the names of cases")
    parser.add_argument(
        "--speed", nargs="*", help="also what each commit costs, in turns: all, or training, small_run, mining, serving"
    )
    given = parser.parse_args()
    place, good, started = Path(tempfile.mkdtemp(prefix="same_results_")), True, time.monotonic()
    sides = {name: {"code": place / name, "out": place / f"out_{name}"} for name in ("old", "new")}
    try:
        for name, commit in (("old", given.old), ("new", given.new)):
            subprocess.run(
                ["git", "worktree", "add", "-q", "--detach", sides[name]["code"], commit], cwd=ROOT, check=True
            )
            sides[name]["out"].mkdir()
        cases: dict[str, tuple[Any, list[str]]] = {}
        cases |= {name: (train, overrides) for name, overrides in run_cases(sides["old"]["code"] / "conf").items()}
        cases["resumed"] = (resumed, ["model=dcdt_residual", "callbacks.checkpoint_seconds=0", "trainer.max_epochs=6"])
        for model in ("dcdt", "dcdt_ridge", "hybrid", "hybrid_towers", "two_stage", "bm25"):
            cases[f"serve {model}"] = (serve, [f"model={model}"])
        if collections := os.environ.get("DCDT_COLLECTIONS"):
            cases |= {name: (train, overrides) for name, overrides in learner_cases(Path(collections)).items()}
        chosen = {name: case for name, case in cases.items() if not given.only or name.startswith(tuple(given.only))}
        for name, (act, overrides) in chosen.items():
            good &= compare(sides, name, act, overrides)
        if not given.only or "approximate" in given.only:
            good &= check("approximate", approximate(sides))
        if given.speed is not None:
            good &= speed(sides, given.speed)
    finally:
        for side in sides.values():
            subprocess.run(["git", "worktree", "remove", "--force", side["code"]], cwd=ROOT, check=False)
        shutil.rmtree(place, ignore_errors=True)
    print(f"{'the same' if good else 'not the same'}, {time.monotonic() - started:.0f} s")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
