"""What does a federation of schools reach beside pooled questions and a school alone, and what does privacy cost?

    python benchmarks/studies/federated.py [FOLDER] [--model dcdt_ridge] [--schools subject | --schools 5 --mix iid]
        [--folds 0,1,...] [--epsilons 8,3,1] [--delta 1e-5] [--out federated.md]

Divides the queries of a collection (without FOLDER: linear_algebra) among schools: by `metadata.subject`, or into so
many of equal size, at random (`--mix iid`) or by subject and video (`--mix subject`). On each fold it fits zero_shot,
the model on the pooled queries, on the sums of the schools (exact), on sums with noise at each epsilon (the extra
`federated`), and at each school alone, and ranks the test queries; queries of equal text are of one school. Prints
MRR and nDCG@10 with 95 % intervals over units, the difference to zero_shot in MRR, MRR of each school and of the worst,
the bytes that a school sends, and how well a test of membership tells fitted questions from test questions (AUC; 0.5 is
chance) by the leverage in a school's message, and by the best score of the merged model. `local` ranks each question by
its own school's model; a school with fewer than 5 training or no validation queries has zero_shot.
"""

import argparse
import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from scipy.stats import rankdata

from dcdt.config import Settings, config_folder, parse, register_resolvers
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import Positions, RankingDataModule
from dcdt.data.splits import Side, Split, make_split
from dcdt.data.tables import Tables
from dcdt.data.types import Collection, normalise_text
from dcdt.evaluation.statistics import mean_interval
from dcdt.federation.messages import Message, add_messages
from dcdt.federation.noise import add_noise, noise_multiplier
from dcdt.federation.schools import Member
from dcdt.models.query_batch import query_batch
from dcdt.models.ranking import rank_side
from dcdt.models.recommender import Recommender
from dcdt.training import build

MIN_LOCAL = 5  # training queries of a school that is fitted alone
METRICS = ("mrr", "ndcg@10")


def settings_of(folder: Path | None, model: str, fold: int) -> Settings:
    """The configuration of a model on a fold."""
    wanted = [f"model={model}", "split=folds", f"split.index={fold}", "callbacks.progress=false", "trainer=cpu"]
    if folder is not None:
        wanted += ["data=files", f"data.path={folder.resolve()}"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return parse(compose("config", overrides=[*wanted, "logger=none"]))


def divide(collection: Collection, schools: str, mix: str) -> list[str]:
    """The school of each query row, the same for queries of equal text."""
    texts = [normalise_text(text) for text in collection.queries.texts]
    subject = dict(zip(texts, (str(row.get("subject", "")) for row in collection.queries.metadata), strict=True))
    if schools == "subject":
        return [subject[text] or "none" for text in texts]
    video = {
        texts[query]: row for query, row in zip(collection.positives.query, collection.positives.video, strict=True)
    }
    drawn = {text: hashlib.sha256(text.encode()).hexdigest() for text in texts}
    order = sorted(drawn, key=lambda text: drawn[text] if mix == "iid" else (subject[text], int(video.get(text, -1))))
    school = {text: f"{at * int(schools) // len(order):02}" for at, text in enumerate(order)}
    return [school[text] for text in texts]


def restrict(data: RankingDataModule, is_own: np.ndarray) -> RankingDataModule:
    """The same division with the queries of one school alone."""

    def part(side: Side) -> Side:
        return Side(
            side.queries[is_own[side.queries]], side.candidates, side.judgments.where(is_own[side.judgments.query])
        )

    split = data.split
    own = Split(
        split.name,
        split.index,
        split.pairs[is_own[split.pairs[:, 0]]],
        part(split.train),
        part(split.val),
        part(split.test),
    )
    return RankingDataModule(data.collection, own, {}, None, 1, data.seed, data.ks)


@torch.no_grad()
def test(model: Recommender, data: RankingDataModule) -> dict[int, list[float]]:
    """The metrics of each test query, by row."""
    side, found = data.sides["test"], {}
    for positions in Positions(side):
        rows = side.queries[positions]
        scores = model.score(query_batch(data.collection, model.tables, rows, side)).float()
        ties = data.ties.on(scores.device)
        _, metrics, _ = rank_side(side, positions, scores, ties, data.collection.positive_grade, data.ks)
        found |= dict(zip(rows.tolist(), zip(*(metrics[name].tolist() for name in METRICS), strict=True), strict=True))
    return found


def fresh(settings: Settings, data: RankingDataModule, tables: Tables) -> Member:
    """A member of the federation with a model that is not fitted."""
    return Member(settings, data, tables, build.make_model(settings, tables))


def federate(
    settings: Settings,
    data: RankingDataModule,
    tables: Tables,
    schools: Sequence[RankingDataModule],
    epsilon: float | None,
    delta: float,
) -> tuple[Recommender, int, list[Message]]:
    """The model of the schools' sums, the bytes that one school sends, and the statistics of each."""
    members = [fresh(settings, school, tables) for school in schools]
    has_losses = bool(members[0].model.loss_shapes())
    sigma = None if epsilon is None else noise_multiplier(epsilon, delta, 1 + has_losses)
    clip = None if sigma is None else 1

    def messages(sums: Sequence, **changes: object) -> list[Message]:  # type: ignore[type-arg]
        header = replace(members[0].expected.header, **changes)  # type: ignore[arg-type]
        return [
            Message(replace(header, queries=part.n), part.tensors if sigma is None else add_noise(part, sigma))
            for part in sums
        ]

    statistics = messages([member.model.fitted_part.sum_training(member.data, clip) for member in members])
    total, losses = add_messages(statistics), list[Message]()
    if has_losses:
        of_schools = [member.model.sum_losses(member.data, total.tensors, clip) for member in members]
        losses = messages(of_schools, kind="losses", statistics=total.digest)
    hub = fresh(settings, data, tables).model
    hub.fit_sums(data, total.tensors, add_messages(losses).tensors if losses else {}, False)
    with tempfile.TemporaryDirectory() as folder:
        n_bytes = sum(parts[0].write(Path(folder) / "m") for parts in (statistics, losses) if parts)
    return hub, n_bytes, statistics


def membership(model: Recommender, schools: Sequence[RankingDataModule], statistics: Sequence[Message]) -> list[float]:
    """AUC of telling fitted from test questions: by the leverage in a school's sums, by the model's best score."""
    by_message, by_model, is_member = list[float](), list[float](), list[bool]()
    towers = next(part for part in model.components if hasattr(part, "whitening"))
    for school, message in zip(schools, statistics, strict=True):
        gram = message.tensors["gram"]
        shift = 0.1 - torch.linalg.eigvalsh(gram)[0].clamp(max=0)  # noise makes eigenvalues negative
        inverse = torch.linalg.inv(gram + shift * torch.eye(len(gram), dtype=gram.dtype))
        for name in ("train", "val", "test"):
            rows = torch.from_numpy(getattr(school.split, name).queries)
            if not len(rows):
                continue
            x = torch.nn.functional.normalize(model.tables.queries[rows] @ towers.whitening, dim=-1).double()
            leverage = (x @ inverse * x).sum(1)
            by_message += (-leverage).tolist()
            by_model += model.score(query_batch(school.collection, model.tables, rows)).amax(1).tolist()
            is_member += [name != "test"] * len(rows)
    return [auc(np.array(scores), np.array(is_member)) for scores in (by_message, by_model)]


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve."""
    n = int(labels.sum())
    return float((rankdata(scores)[labels].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))


def one_fold(options: argparse.Namespace, fold: int) -> Iterator[tuple[str, dict[int, list[float]], int, list[float]]]:
    """Name, metrics by query row, bytes and membership AUCs of each way to fit, on one fold."""
    settings = settings_of(options.folder, options.model, fold)
    collection = load_collection(settings.data.path)
    build.prepare(settings)
    tables = build.load_tables(settings, collection)
    data = RankingDataModule(collection, make_split(collection, settings.split), {}, None, 1, 0, settings.ks)
    school_of = np.array(divide(collection, options.schools, options.mix))
    schools = [restrict(data, school_of == name) for name in sorted(set(school_of.tolist()))]
    schools = [school for school in schools if len(school.split.train.queries)]

    base = settings_of(options.folder, "zero_shot", fold)
    zero_shot = build.make_model(base, tables)
    zero_shot.prepare(data)
    reference = test(zero_shot, data)
    yield "zero_shot", reference, 0, []

    local = dict(reference)
    for school in schools:
        if len(school.split.train.queries) >= MIN_LOCAL and len(school.split.val.queries):
            model = fresh(settings, school, tables).model
            model.prepare(school)
            local |= test(model, school)
    yield "local only", local, 0, []

    pooled = fresh(settings, data, tables).model
    pooled.prepare(data)
    yield "pooled", test(pooled, data), 0, []

    with_opacus = find_spec("opacus") is not None
    for epsilon in [None, *(options.epsilons if with_opacus else [])]:
        hub, n_bytes, statistics = federate(settings, data, tables, schools, epsilon, options.delta)
        name = "federated, exact" if epsilon is None else f"federated, epsilon {epsilon:g}"
        yield name, test(hub, data), n_bytes, membership(hub, schools, statistics)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", default="dcdt_ridge", help="or hybrid_towers")
    parser.add_argument("--schools", default="subject", help="or a number")
    parser.add_argument("--mix", choices=("iid", "subject"), default="iid")
    parser.add_argument("--folds", default="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument(
        "--epsilons", type=lambda text: [float(one) for one in text.split(",")], default=[8.0, 3.0, 1.0]
    )
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    register_resolvers()
    values: dict[str, dict[int, list[float]]] = defaultdict(dict)
    n_bytes, aucs = dict[str, int](), dict[str, list[list[float]]]()
    for fold in map(int, options.folds.split(",")):
        for name, metrics, size, membership_aucs in one_fold(options, fold):
            values[name] |= metrics
            n_bytes[name] = max(n_bytes.get(name, 0), size)
            aucs.setdefault(name, []).append(membership_aucs)
    lines = table(options, values, n_bytes, aucs)
    print(*lines, sep="\n")
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


def table(
    options: argparse.Namespace,
    values: dict[str, dict[int, list[float]]],
    n_bytes: dict[str, int],
    aucs: dict[str, list[list[float]]],
) -> list[str]:
    """The lines of the table."""
    settings = settings_of(options.folder, options.model, 0)
    collection = load_collection(settings.data.path)
    split = make_split(collection, settings.split)
    units = RankingDataModule(collection, split, {}, None, 1, 0, settings.ks).units
    school_of = divide(collection, options.schools, options.mix)
    rows = sorted(values["zero_shot"])
    names = sorted({school_of[row] for row in rows})
    counts = {name: sum(school_of[row] == name for row in rows) for name in names}
    head = ["", "MRR", "nDCG@10", "difference to zero_shot in MRR", *(f"{name} ({counts[name]})" for name in names)]
    head += ["worst school", "bytes a school", "AUC of messages", "AUC of the model"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    base = np.array([values["zero_shot"][row] for row in rows])
    for way, by_row in values.items():
        found = np.array([by_row[row] for row in rows])  # (n, 2)
        own = [units[row] for row in rows]
        cells = [f"{found[:, at].mean():.3f} {interval(found[:, at], own)}" for at in range(2)]
        difference = found[:, 0] - base[:, 0]
        cells.append(f"{difference.mean():+.3f} {interval(difference, own)}" if way != "zero_shot" else "")
        by_school = [float(found[[school_of[row] == name for row in rows], 0].mean()) for name in names]
        means = np.array([pair for pair in aucs[way] if pair]).mean(0) if n_bytes[way] else []
        cells += [*(f"{value:.3f}" for value in by_school), f"{min(by_school):.3f}", f"{n_bytes[way]:,}"]
        cells += [f"{value:.2f}" for value in means] if len(means) else ["", ""]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    caption = f"{collection.name}, {options.model}, {len(names)} schools ({options.schools}, {options.mix}), "
    n_units = len({units[row] for row in rows})
    caption += f"folds {options.folds}, {len(rows)} queries, {n_units} units, delta {options.delta:g}"
    return [caption, "", *lines]


def interval(values: np.ndarray, units: Sequence[str]) -> str:
    """The 95 % interval of a mean over units."""
    low, high = mean_interval(values, units)
    return f"[{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
