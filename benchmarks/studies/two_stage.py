"""What does a rank head cost a question, and its parts?

    python benchmarks/studies/two_stage.py [FOLDER] [--rounds 5] [--models two_stage,two_stage_joint]

Prepares each model on the first fold of a collection in BEIR layout (without FOLDER: linear_algebra), then answers
every open test and validation query alone, as a service would: recall alone, and recall with the head, turn by turn in
one process with one thread. Prints the median and the 99th percentile of the milliseconds a query, without embedding
the question, the ratio of the medians, and the seconds that recall and head took to fit.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from dcdt.config import Settings, config_folder, parse, register_resolvers
from dcdt.data.beir import load_collection
from dcdt.data.splits import make_split
from dcdt.models.query_batch import QueryBatch, query_batch
from dcdt.models.recommender import Recommender
from dcdt.models.two_stage import TwoStage
from dcdt.training import build


def settings_of(folder: Path | None, model: str) -> Settings:
    """The configuration of a model on the first of ten folds."""
    wanted = [f"model={model}", "split=folds", "callbacks.progress=false", "trainer=cpu", "trainer.threads=1"]
    wanted += ["loss=infonce", "sampler=catalogue"]
    if folder is not None:
        wanted += ["data=files", f"data.path={folder.resolve()}"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return parse(compose("config", overrides=wanted))


def prepared(settings: Settings) -> tuple[TwoStage, list[QueryBatch], float, float]:
    """The fitted model, its questions one by one, seconds of fitting the recall alone and the whole."""
    build.prepare(settings)
    torch.set_num_threads(1)
    collection = load_collection(settings.data.path)
    tables = build.load_tables(settings, collection)
    data = build.make_datamodule(settings, collection, make_split(collection, settings.split), tables)
    model = build.make_model(settings, tables)
    assert isinstance(model, TwoStage)
    seconds = []
    for part in (model.recall, model):
        started = time.perf_counter()
        part.prepare(data)
        seconds.append(time.perf_counter() - started)
    sides = [data.sides["val"], data.sides["test"]]
    questions = [query_batch(collection, tables, row, side) for side in sides for row in side.queries.split(1)]
    return model.eval(), questions, seconds[0], seconds[1]


@torch.no_grad()
def milliseconds(model: Recommender, questions: list[QueryBatch]) -> list[float]:
    """Of each question, scored alone."""
    found = []
    for question in questions:
        started = time.perf_counter()
        model.score(question)
        found.append(1000 * (time.perf_counter() - started))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="two_stage,two_stage_ridge,two_stage_joint")
    options = parser.parse_args()
    register_resolvers()
    print("| model | videos | questions | recall alone, ms p50, p99 | with the head, ms p50, p99 | ratio | fit, s |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models.split(","):
        model, questions, recall_seconds, seconds = prepared(settings_of(options.folder, name))
        times: dict[str, list[float]] = {"recall": [], "both": []}
        for turn in range(-1, options.rounds):  # the first warms up
            for part, of in (("recall", model.recall), ("both", model)):
                found = milliseconds(of, questions)
                times[part] += found if turn >= 0 else []
        median = {part: statistics.median(found) for part, found in times.items()}
        shown = [f"{median[part]:.2f}, {statistics.quantiles(found, n=100)[98]:.2f}" for part, found in times.items()]
        ratio, fit = median["both"] / median["recall"], f"{recall_seconds:.1f} recall, {seconds:.1f} both"
        n_videos = model.tables.videos.shape[1]
        print(f"| {name} | {n_videos} | {len(questions)} | {shown[0]} | {shown[1]} | {ratio:.2f} | {fit} |", flush=True)


if __name__ == "__main__":
    main()
