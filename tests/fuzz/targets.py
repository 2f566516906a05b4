"""What strangers supply, and what may come of it: an error in words, or something that holds what it promises.

A target lays out real files, replaces the content of one of them by whatever it is given, and reads it as the product
does. Anything but an error in words is a defect: another exception, a promise that does not hold, or silence for too
long.
"""

import dataclasses
import json
import math
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from bases import cut, finished_run, real_folders, tables_of, write

from dcdt.data.importer import MAX_PROBLEMS
from dcdt.utils.errors import NotApplicable, UserError

SECONDS = 20  # of this process's work on one input; ours take milliseconds
WAITING = 300  # seconds by the clock, for what waits without working; a busy machine is no hang
SPLIT = b"\0\0"  # between the parts of an input that is no file


class Hang(Exception):
    """An input took too long."""


@dataclasses.dataclass
class Target:
    """One kind of input.

    Attributes:
        files: what can be replaced; an input is one byte that chooses, and the content.
        seeds: real contents of these files.
        check: given a name and a content, raises where something is wrong.
    """

    files: list[str]
    seeds: list[tuple[str, bytes]]
    check: Callable[[str, bytes], object]

    def run(self, data):
        """Try one input; True where it was accepted, False where it was refused in words."""
        if not data:
            return False
        try:
            self.check(self.files[data[0] % len(self.files)], data[1:])
        except (UserError, NotApplicable) as error:
            said, most = str(error), 3
            if all(re.match(r"/.*:\d+: ", line) for line in said.splitlines()[:3]):
                most = MAX_PROBLEMS + 1  # conflicts of a table, each with its row
            assert said.strip() and len(said.splitlines()) <= most, f"not in words: {said!r}"
            return False
        return True

    def corpus(self):
        """The seeds as inputs."""
        return [bytes([self.files.index(name)]) + content for name, content in self.seeds]


@contextmanager
def limited(seconds=SECONDS, waiting=WAITING):
    """Raise Hang where the block works, or waits, for longer."""

    def ring(number, _):
        said = f"worked {seconds} s" if number == signal.SIGPROF else f"waited {waiting} s"
        raise Hang(f"no answer: {said}")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, waiting)}
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextmanager
def replaced(module, **values):
    """Other values for names of a module while the block lasts."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def folder_target(base, names, read, more=()):
    """A target over some files of a folder: one is replaced, `read` looks at the folder, the file is put back."""
    kept = {name: (base / name).read_bytes() for name in names if (base / name).is_file()}

    def check(name, content):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content)
        try:
            read()
        finally:
            if name in kept:
                (base / name).write_bytes(kept[name])
            else:
                (base / name).unlink()

    return Target(list(names), [*kept.items(), *more], check)


def several(bases, names, read):
    """A target over the files of several folders; `read` is given the folder one of whose files was replaced."""
    chosen = SimpleNamespace(base=bases[0])
    listed = [f"{base.name}/{name}" for base in bases for name in names if (base / name).is_file()]
    target = folder_target(bases[0].parent, listed, lambda: read(chosen.base, chosen.name))

    def check(name, content):
        folder, _, chosen.name = name.partition("/")
        chosen.base = bases[0].parent / folder
        target.check(name, content)

    return dataclasses.replace(target, check=check)


def collection(place):
    """A BEIR folder: texts, judgments, settings, interactions."""
    from dcdt.data.beir import load_collection
    from dcdt.data.config import SplitConfig
    from dcdt.data.interactions import load_interactions
    from dcdt.data.passages import cut_passages
    from dcdt.data.splits import make_split
    from dcdt.data.summary import summarise_collection

    bases = [cut(source, place / str(at)) for at, source in enumerate(real_folders())]
    names = ["corpus.jsonl", "queries.jsonl", "qrels/all.tsv", "collection.yaml", "interactions.csv"]
    names += ["transcripts.jsonl", "moments.tsv"]

    def read(base, name):
        found = load_collection(base)
        for documents in (found.videos, found.queries):
            assert len(set(documents.ids)) == len(documents.ids) and all(documents.ids)
            "".join([*documents.ids, *documents.titles, *documents.texts]).encode()
        lines = [line for line in (base / "corpus.jsonl").read_bytes().split(b"\n") if line.strip()]
        assert len(found.videos) == len(lines), "a video was dropped without a word"
        assert np.isfinite(found.judgments.grade).all()
        assert len(found.fingerprint) == 16
        assert all(0 <= seconds < math.inf for _, _, seconds in found.moments)
        if found.transcripts:
            for segments in filter(None, found.transcripts.segments):
                cut_texts = "".join("".join(text.split()) for _, text in cut_passages(segments))
                assert len(cut_texts) >= sum(len("".join(segment.text.split())) for segment in segments)
            "".join(found.passages.texts).encode()
            assert len(found.passages.texts) == len(found.passages.starts) == found.passages.offsets[-1]
        summarise_collection(found)
        make_split(found, SplitConfig("query" if found.has_questions else "time", 0, 1, "all"))
        if (base / "interactions.csv").is_file():
            load_interactions(base / "interactions.csv", found.videos.row_of)

    return several(bases, names, read)


def tables(place):
    """Tables that become a collection by `dcdt.collection new`."""
    from dcdt.collection import make_parser, new_collection
    from dcdt.data.beir import load_collection
    from dcdt.data.table_reader import read_rows

    bases = [cut(source, place / "cut" / str(at)) for at, source in enumerate(real_folders())]
    asked = [folder for folder in bases if (folder / "queries.jsonl").is_file()]
    folders = [tables_of(folder, place / "tables" / str(at)) for at, folder in enumerate(asked)]
    out = place / "made"
    names = ["videos.csv", "videos.tsv", "videos.jsonl", "videos.parquet", "queries.csv", "watches.csv"]
    names += [f"captions/{name}" for name in ("spoken0.vtt", "spoken1.en.srt", "spoken2.json3")]
    columns = ["--id-column", "Clip", "--title-column", "Name", "--text-column", "Blurb", "--video-column", "clip"]
    columns += ["--query-column", "question", "--user-column", "learner", "--item-column", "clip"]
    columns += ["--time-column", "date"]

    def read(base, name):
        videos = base / (name if name.startswith("videos") else "videos.csv")
        files = ["--videos", videos, "--queries", base / "queries.csv", "--interactions", base / "watches.csv"]
        files += ["--captions", base / "captions"]
        given = make_parser().parse_args(["new", str(out), *map(str, files), *columns])
        shutil.rmtree(out, ignore_errors=True)
        try:
            new_collection(out, given)
        except BaseException:
            assert not out.exists(), "half a collection"
            raise
        rows = {json.dumps(row, sort_keys=True, default=str) for _, row in read_rows(videos)}  # repeats are one video
        assert len(load_collection(out).videos) == len(rows), "a video was dropped"
        assert [path for path in place.iterdir() if path.name.startswith(".made")] == []

    return several(folders, names, read)


def images(place):
    """Pictures of videos, one at a time, as the slides and the embedder of pictures read them."""
    from PIL import Image

    from dcdt.data.pictures import open_picture, read_pictures

    folder, seeds = place / "images", []
    picture = Image.linear_gradient("L").resize((24, 16)).convert("RGBA")
    for name in ("v0.png", "v0-95.5s.jpg", "v1.gif", "v1/2.bmp", "v2.webp"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        more = {"save_all": True, "append_images": [picture.rotate(90)]} if name.endswith("gif") else {}
        picture.convert("RGB" if name.endswith("jpg") else "RGBA").save(path, **more)
        seeds.append((name, path.read_bytes()))

    def decode(found):
        decoded = open_picture(found.path)
        assert decoded.mode == "RGB" and max(decoded.size) <= 8 * min(decoded.size)
        return found

    def check(name, content):
        shutil.rmtree(folder)
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
        [(video, second, key)], notes = read_pictures(place, {"v0", "v1", "v2"}, decode, progress=False)
        assert name.startswith(video) and (second == 95.5) == ("95.5s" in name) and len(key) == 64 and not notes

    return Target([name for name, _ in seeds], seeds, check)


def vectors(place):
    """An embedding cache, and vectors that are brought into one."""
    from dcdt.data.beir import load_collection
    from dcdt.embeddings.cache import Space, VectorCache
    from dcdt.embeddings.vector_import import import_vectors
    from dcdt.embeddings.verification import verify

    folder = cut(real_folders()[0], place / "c")
    found = load_collection(folder)
    space = Space("test", "model", 8, "l2")
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(len(found.videos), 8)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    texts = list(dict.fromkeys(found.videos.texts))
    VectorCache(place / "cache", space).add(texts, matrix[: len(texts)])
    home = place / "cache" / space.folder
    shard = next(home.glob("*.safetensors")).name
    names = [f"{space.folder}/manifest.json", f"{space.folder}/{shard}"]

    def read():
        cache = VectorCache(place / "cache", space)
        stored = cache.vectors(texts)
        assert np.allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-4)
        verify(VectorCache(place / "cache", space, lazy=True))

    target = folder_target(place / "cache", names, read)
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = place / "given"
    given.mkdir()
    np.save(given / "vectors.npy", matrix)
    write(given / "names.txt", found.videos.ids)
    write(given / "names.jsonl", [json.dumps({"_id": name}) for name in found.videos.ids])
    pq.write_table(pa.table({"_id": found.videos.ids, "vector": matrix.tolist()}), given / "vectors.parquet")

    def imported(name, content):
        shutil.rmtree(place / "other", ignore_errors=True)
        (given / name).write_bytes(content)
        cache = VectorCache(place / "other", space)
        parquet = name.endswith(".parquet")
        listed = None if parquet else given / (name if name.startswith("names") else "names.txt")
        added, _ = import_vectors(
            cache, given / ("vectors.parquet" if parquet else "vectors.npy"), listed, found, "text", False
        )
        assert len(cache) == added
        assert np.allclose(np.linalg.norm(cache.vectors(cache_texts(cache, found)), axis=1), 1, atol=1e-4)

    kept = {path.name: path.read_bytes() for path in sorted(given.iterdir())}

    def check(name, content):
        if name in kept:
            try:
                return imported(name, content)
            finally:
                (given / name).write_bytes(kept[name])
        return target.check(name, content)

    return Target([*names, *kept], [*target.seeds, *kept.items()], check)


def cache_texts(cache, found):
    return [text for text, at in zip(found.videos.texts, cache.find(found.videos.texts), strict=True) if at >= 0]


OVERRIDES = [
    ["model=dcdt", "loss.margin=1.2", "seed=3"],
    ["model=hybrid", "model.first.k1=1.2", "ks=[1,5]"],
    ["experiment=best", "split=folds", "split.index=3"],
    ["embedder=openai", "embedder.base_url=http://127.0.0.1:1/v1", "embedder.dimensions=64"],
    ["sampler=mixed", "sampler.hard_share=0.5", "trainer.max_epochs=10", "optimizer.lr=1e-4"],
    ["model=dcdt_ridge", "model.penalty=null", "callbacks.checkpoint_seconds=0.5", "+experiment_name=x"],
    ["data.cache=/tmp/x y", "logger.mode=offline", "primary_metric=val/ndcg@10"],
    ["model=two_stage_joint", "loss=margin_mse_bm25", "batch_size=8", "split.train_queries=20"],
]


def overrides(place):
    """What a user types behind `dcdt.run`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from dcdt.config import check_choices, config_folder, parse, register_resolvers

    register_resolvers()

    def check(name, content):
        given = [part for part in content.decode("utf-8", "replace").split("\n") if part][:8]
        check_choices(given)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            try:
                config = compose("config", overrides=given)
            except (HydraException, OmegaConfBaseException) as error:  # Hydra's own words, without a traceback
                raise UserError(str(error).splitlines()[0] or "?") from None
            settings = parse(config)
        for part in vars(settings).values():
            _finite(part)

    return Target(["overrides"], [("overrides", "\n".join(lines).encode()) for lines in OVERRIDES], check)


def _finite(value):
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _finite(getattr(value, field.name))
    elif isinstance(value, float):
        assert not math.isnan(value), f"{value} was taken for a number"
    elif isinstance(value, list):
        for item in value:
            _finite(item)


QUERIES = [
    b"/search?q=what+is+a+basis&k=3",
    b"/search?q=rank&filter=level%3Dintro,duration_s%3C600&explain=true",
    b"/search?q=%E7%89%B9%E5%BE%81%E5%80%BC&k=100&model=1",
    b"/search?q=a&filter=series~%22Strang%22%7CMIT",
    b"/healthz",
    b"/openapi.json",
    b"/?q=x&both=1",
]


def http(place):
    """Requests to the service."""
    from fastapi.testclient import TestClient

    from dcdt.serving.app import make_app
    from dcdt.serving.hot_reload import ReloadingRecommender

    app = make_app([ReloadingRecommender(finished_run(place, "model=bm25"))])
    client = TestClient(app)

    def check(name, content):
        path, _, body = content.partition(SPLIT)
        method = name.upper()
        url = "http://testserver/" + path.decode("latin-1").lstrip("/").replace("\r", "").replace("\n", "")
        try:
            found = client.request(method, url, content=body)
        except (ValueError, UnicodeError) as error:  # the client's: it cannot be sent
            raise UserError(f"not a request: {error}") from None
        except Exception as error:
            if type(error).__module__.startswith("httpx"):
                raise UserError(f"not a request: {error}") from None
            raise
        assert found.status_code < 500 or found.status_code == 503, found.text[:200]
        if found.status_code == 422:
            raise UserError(str(found.json()["detail"])[:200].replace("\n", " "))
        if method == "GET" and found.status_code == 200 and found.url.path == "/search":  # /search/../ is the page
            answer = found.json()
            assert len(answer["videos"]) <= 100
            assert all(math.isfinite(video["score"]) for video in answer["videos"])

    return Target(["GET", "POST", "HEAD"], [("GET", path) for path in QUERIES], check)


def report(place):
    """Folders of runs that are compared."""
    from reporting.run_folders import write_run

    from dcdt.reporting import page as pages
    from dcdt.reporting import render
    from dcdt.reporting.figures import make_figures
    from dcdt.reporting.tables import make_report
    from dcdt.runs.reader import read_runs

    sweep = place / "sweep"
    for fold in (0, 1):
        write_run(sweep, "zero_shot", fold)
        write_run(sweep, "bm25", fold, skill=0.4)
    base = write_run(sweep, "dcdt", 0, skill=2.0, trials=2)
    names = ["config.yaml", "status.json", "metrics.json", "provenance.json", "cost.json", "per_query.parquet"]
    names += ["pairs.parquet", "history.csv", "tuning.json", "run.trec"]
    state = SimpleNamespace(seen=0)
    none = lambda found: {}  # noqa: E731

    def read():
        found = make_report(read_runs([sweep]))
        for table in (*found.tables, found.cost):
            render.markdown([table])
            render.latex([table])
            render.csv_wide(table)
        json.loads(render.report_json(found))
        pair = (found.best, found.reference) if found.reference and found.best is not found.reference else None
        state.seen += 1
        if state.seen % 50 == 1:  # figures take a hundred times as long
            make_figures(found)
            pages.page(found, place, pair)
        else:
            with replaced(pages, make_figures=none, score_panels=none):
                pages.page(found, place, pair)

    return folder_target(base, names, read)


def restore(place):
    """A run's folder as `recommend`, `serve` and `resume` take it up."""

    from dcdt.config import parse
    from dcdt.embeddings import fill
    from dcdt.runs.folder import RunFolder
    from dcdt.training import resume
    from dcdt.training.checkpoint import read_state
    from dcdt.training.checkpoint import restore as take_up

    run = finished_run(place, "model=dcdt", "model.width=4")
    shutil.copy(run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt")
    (run / "tuning.json").write_text(json.dumps({"trials": [], "chosen": {}}))
    names = ["config.yaml", "status.json", "provenance.json", "tuning.json", "checkpoints/best.ckpt"]
    names += ["checkpoints/last.ckpt"]

    def none_here(config):
        raise UserError("another embedder is asked for, whose model would have to be exported first")

    def read():
        with replaced(fill, make_embedder=none_here):
            model = take_up(run).model
        assert all(part.isfinite().all() for part in model.parameters()), "weights that are not finite"
        config = resume.resumed_config(RunFolder(run), str(run), [f"resume={run}"], False)
        settings = parse(config)
        resume.should_resume(RunFolder(run), config, settings, True, False)
        read_state(run / "checkpoints" / "last.ckpt")

    return folder_target(run, names, read)


def index(place):
    """An exported run: its description, snapshot, graphs and embedder."""
    from dcdt.serving.layout import read_pointer
    from dcdt.serving.load import load

    run = finished_run(place, "model=hybrid_towers")
    build = f"serving/{read_pointer(run).build}"
    (run / build / "checksums.json").unlink()  # as whoever changes a file on purpose would
    files = sorted(path.relative_to(run).as_posix() for path in (run / build).iterdir() if path.is_file())
    inside = sorted(path.relative_to(run).as_posix() for path in (run / build / "embedder").iterdir())
    names = ["serving/current.json", *files, *inside]

    def read():
        served = load(run)
        answer = served.recommend("what is the rank of a basis", 5, explained=True)[0]
        assert all(math.isfinite(item.score) for item in answer)
        json.dumps([item.as_dict() for item in answer], allow_nan=False)

    return folder_target(run, names, read)


def approximate(place):
    """The approximate index of a large catalogue."""
    from dcdt.serving.catalogue.approximate import ApproximateIndex

    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(300, 16)).astype(np.float32)
    place.mkdir(parents=True, exist_ok=True)
    ApproximateIndex.build(matrix).save(place / "vectors.faiss")
    names = sorted(path.name for path in place.iterdir())

    def read():
        index = ApproximateIndex.load(place / "vectors.faiss", matrix)
        rows, scores = index.search(matrix[0], 5)
        assert ((rows >= 0) & (rows < 300)).all() and np.isfinite(scores).all()
        assert all(map(math.isfinite, index.spread(matrix[0])))

    return folder_target(place, names, read)


def catalogue(place):
    """The durable catalogue of an exported run."""
    from dcdt.data.types import Documents
    from dcdt.serving.layout import read_pointer
    from dcdt.serving.recommender import ServedRecommender

    source = finished_run(place / "source", "model=bm25")
    base = f"serving/{read_pointer(source).build}/catalogue"
    names = sorted(path.relative_to(source).as_posix() for path in (source / base).rglob("*") if path.is_file())
    run = place / "run"

    def check(name, content):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(source, run)
        (run / name).write_bytes(content)
        served = ServedRecommender(run)
        served.add(Documents(["new"], ["A basis"], ["of a plane"], [{}]))
        assert len(ServedRecommender(run)) == len(served)

    return Target(names, [(name, (source / name).read_bytes()) for name in names], check)


def changes(place):
    """Videos that are added to an index, questions of a batch, filters."""
    from dcdt.recommend import batch_lines, read_questions
    from dcdt.serving.catalogue.filters import matching_rows, parse_filter, to_sql
    from dcdt.serving.load import load
    from dcdt.serving.videos import read_file

    served = load(finished_run(place, "model=bm25"))
    base = tables_of(place / "collection", place / "tables")
    table = served.catalogue.snapshot.table
    filters = [b"level=intro,duration_s<600", b'series~"MIT 18.06"|Strang', b"id!=x|y", b"duration_s>=1e3"]
    seeds = [
        ("new.jsonl", (place / "collection" / "corpus.jsonl").read_bytes()),
        ("new.csv", (base / "videos.csv").read_bytes().replace(b"Clip,Name,Blurb", b"id,title,text")),
        ("batch.csv", (base / "queries.csv").read_bytes()),
        *(("filter", text) for text in filters),
    ]
    given = SimpleNamespace(json=False, k=2, filter="", explain=False, abstain=False, user=None)

    def check(name, content):
        if name == "filter":
            conditions = parse_filter(content.decode("utf-8", "replace"), served.kinds)
            matching_rows(conditions, table)
            to_sql(conditions)
            return
        (place / name).write_bytes(content)
        if name == "batch.csv":
            lines = list(batch_lines(served, read_questions(place / name)[:5], given))
            assert not any(line.startswith(("=", "+", "-", "@", '"=', '"+', '"-', '"@')) for line in lines)
            return
        served.rows(read_file(place / name))

    return Target(["new.jsonl", "new.csv", "batch.csv", "filter"], seeds, check)


def messages(place):
    """What the schools of a federation send, as the hub reads and merges it."""
    import torch
    from support import make_collection, prepare

    from baselines.config import BM25Config, HybridConfig
    from baselines.hybrid import Hybrid
    from dcdt.data.config import SplitConfig
    from dcdt.data.datamodule import RankingDataModule
    from dcdt.federation.messages import Expected, Header, Message, pair_messages
    from dcdt.models.config import RidgeConfig

    fields = ["title", "text"]
    lexical = BM25Config("bm25", fields, "rank_bm25", "plus", 1.5, 0.75, None, False, True)
    towers = RidgeConfig("dcdt_ridge", fields, "soft", 3, 0.2, "judged", None)
    config = HybridConfig("hybrid", "convex", "judged", 60, lexical, towers)
    folder = make_collection(place / "school")
    parts = prepare(folder, SplitConfig("query", 0, 10, "all"), pairs=False, width=8)
    data = RankingDataModule(parts.collection, parts.split, {}, None, 16, 0)
    model = Hybrid(config, parts.tables)
    sums = model.fitted_part.sum_training(data)
    header = Header(1, "statistics", "{}", "0" * 64, "space", sums.n)
    statistics = Message(header, sums.tensors)
    sums = model.sum_losses(data, statistics.tensors)
    losses = dataclasses.replace(header, kind="losses", queries=sums.n, statistics=statistics.digest)
    names = ["school.safetensors", "losses.safetensors"]
    statistics.write(place / names[0])
    Message(losses, sums.tensors).write(place / names[1])
    expected = Expected(
        header,
        {"statistics": model.fitted_part.sum_shapes(), "losses": model.loss_shapes()},
        model.fitted_part.check_sums,
    )

    def read():
        found = pair_messages([expected.read(place / name) for name in names], expected)
        model.fit_sums(data, found[0].tensors, found[1].tensors, False)
        assert bool(torch.isfinite(model.second.query_map).all()), "weights that are not finite"

    return folder_target(place, names, read)


TARGETS = {
    made.__name__: made
    for made in (
        collection, tables, images, vectors, overrides, http, report, restore, index, approximate, catalogue, changes,
        messages,
    )
}  # fmt: skip


def make(name, place):
    """A target, laid out in an empty folder."""
    return TARGETS[name](Path(place))
