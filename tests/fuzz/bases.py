"""What the fuzzing starts from: real files of the collections, cut short, and a run of a small model on them."""

import csv
import json
import os
import shutil
from itertools import islice
from pathlib import Path

from support import small_run

from dcdt.config import demo_collection

VIDEOS, QUERIES, WATCHES = 24, 40, 60


def real_folders():
    """The collection that comes with the project and, where $DCDT_COLLECTIONS names them, the public ones."""
    root = os.environ.get("DCDT_COLLECTIONS")
    others = sorted(Path(root).glob("*/corpus.jsonl")) if root else []
    return [demo_collection(), *(path.parent for path in others)]


def cut(source, folder):
    """The first videos of a collection with the queries and watches that are about them alone.

    Where nobody asks for one of these, the first that somebody asks for.
    """
    folder.mkdir(parents=True)
    lines = lines_of(source / "corpus.jsonl")
    judged = [line for path in sorted((source / "qrels").glob("*.tsv")) for line in lines_of(path)]
    answers = {line.split("\t")[1] for line in judged[:VIDEOS]}
    for videos in (lines[:VIDEOS], [line for line in lines if json.loads(line)["_id"] in answers]):
        names = {json.loads(line)["_id"] for line in videos}
        if not judged or any(line.split("\t")[1] in names for line in judged):
            break
    write(folder / "corpus.jsonl", videos)
    if (source / "collection.yaml").is_file():
        shutil.copy(source / "collection.yaml", folder)
    if (source / "interactions.csv").is_file():
        write(folder / "interactions.csv", watches_of(source / "interactions.csv", names))
    kept = [line for line in judged if line.split("\t")[1] in names][:QUERIES]
    if kept:
        asked = {line.split("\t")[0] for line in kept}
        queries = [line for line in lines_of(source / "queries.jsonl") if str(json.loads(line)["_id"]) in asked]
        write(folder / "queries.jsonl", queries)
        write(folder / "qrels" / "all.tsv", ["query-id\tcorpus-id\tscore", *kept])
        pairs = [line.split("\t")[:2] for line in kept]
        write(folder / "moments.tsv", ["query-id\tcorpus-id\tseconds", *(f"{q}\t{v}\t61.5" for q, v in pairs)])
    write(folder / "transcripts.jsonl", [json.dumps(spoken(json.loads(line))) for line in videos[1:]])
    return folder


def spoken(video):
    """The words of a video as a transcript: whole, or in segments with some ends."""
    words = f"{video.get('title', '')} {video.get('text', '')}".split()
    if len(words) % 3 == 0:
        return {"_id": video["_id"], "text": " ".join(words)}
    parts = [
        {"start": at / 2, "end": at / 2 + 3, "text": " ".join(words[at : at + 5])} for at in range(0, len(words), 5)
    ]
    return {"_id": video["_id"], "segments": [{"start": 0.0, "text": "So."}, *parts]}


def tables_of(folder, out):
    """The same as tables that somebody exported: CSV, TSV, JSON lines and Parquet under other names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True)
    videos = [json.loads(line) for line in lines_of(folder / "corpus.jsonl")]
    rows = [{"Clip": item["_id"], "Name": item.get("title", ""), "Blurb": item.get("text", "")} for item in videos]
    rows += [{"Clip": f"spoken{at}", "Name": "Spoken", "Blurb": ""} for at in range(3)]
    write_captions(out / "captions", f"{rows[0]['Name']} {rows[0]['Blurb']}".split()[:60])
    for name, separator in (("videos.csv", ","), ("videos.tsv", "\t")):
        with (out / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)
    write(out / "videos.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows])
    pq.write_table(pa.table({key: [row[key] for row in rows] for key in rows[0]}), out / "videos.parquet")
    texts = {str(item["_id"]): item["text"] for item in map(json.loads, lines_of(folder / "queries.jsonl"))}
    with (out / "queries.csv").open("w", encoding="utf-8", newline="") as file:
        judged = [line.split("\t") for line in lines_of(folder / "qrels" / "all.tsv")[1:]]
        csv.writer(file).writerows(
            [("question", "clip", "grade"), *((texts[query], video, grade) for query, video, grade in judged)]
        )
    watches = (folder / "interactions.csv").is_file()
    made = [f"u{at % 5},{row['Clip']},{1_700_000_000 + at}" for at, row in enumerate(rows)]
    shown = lines_of(folder / "interactions.csv")[1:] if watches else made
    write(out / "watches.csv", ["learner,clip,date", *shown])
    return out


def write_captions(folder, words):
    """The words as WebVTT whose lines repeat, as SRT, and as YouTube's json3."""
    lines = [" ".join(words[at : at + 6]) for at in range(0, len(words), 6)]
    times = [(f"00:00:{2 * at:02}", f"00:00:{2 * at + 2:02}") for at in range(len(lines))]
    pairs = list(zip(times, lines, strict=True))
    rolling = zip(pairs, ["<c>So</c>", *lines], strict=False)
    vtt = [f"\n{one}.000 --> {other}.000 align:start\n{before}\n{line}" for ((one, other), line), before in rolling]
    srt = [f"{at}\n{one},000 --> {other},500\n{line}\n" for at, ((one, other), line) in enumerate(pairs, 1)]
    segments = [{"tStartMs": 900 * at, "dDurationMs": 800, "segs": [{"utf8": line}]} for at, line in enumerate(lines)]
    write(folder / "spoken0.vtt", ["WEBVTT", *vtt])
    write(folder / "spoken1.en.srt", srt)
    write(folder / "spoken2.json3", [json.dumps({"events": segments})])


def finished_run(folder, *overrides):
    """A finished run on the cut of the collection that comes with the project, and its exported index."""
    from dcdt.serving.load import load

    collection = cut(demo_collection(), folder / "collection")
    (collection / "collection.yaml").write_text("positive_grade: 1\n")
    run = small_run(collection, folder / "tiny", folder / "run", "split.part=all", *overrides)
    load(run)
    return run


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def watches_of(path, names):
    """The header and the first watches of some videos."""
    with path.open(encoding="utf-8", newline="") as file:
        head, *_ = islice(csv.reader(file), 1)
        at = head.index("item_id")
        kept = list(islice((row for row in csv.reader(file) if row[at] in names), WATCHES))
    return [",".join(head), *(",".join(row) for row in kept)]
