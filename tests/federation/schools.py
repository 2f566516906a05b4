"""A collection that is divided among schools: the catalogue is of all, queries and watches are of one."""

import json
import shutil
from pathlib import Path


def divide(source, folder, n=3):
    """Write `pooled` and `school0` to `school<n - 1>`; queries of equal text are of one school and one side.

    Seven learners of each school ask its queries, and watch videos before and between.

    Args:
        source: a collection of `make_collection`.
        folder: to write to.
        n: number of schools.

    Returns:
        The folder of the pooled collection, and those of the schools.
    """
    queries = [json.loads(line) for line in (source / "queries.jsonl").read_text().splitlines()]
    judged = (source / "qrels" / "qrels.tsv").read_text().splitlines()[1:]
    texts = list(dict.fromkeys(key_of(query) for query in queries))
    place = {query["_id"]: texts.index(key_of(query)) for query in queries}
    for query in queries:
        query["metadata"]["user_id"] = f"s{place[query['_id']] % n}u{place[query['_id']] % 7}"
    watches = [(f"s{at % n}u{at % 7}", f"v{at * at % 17}", at - 100) for at in range(60 * n)]
    folders = {"pooled": None, **{f"school{number}": number for number in range(n)}}
    for name, number in folders.items():
        out = folder / name
        (out / "qrels").mkdir(parents=True)
        shutil.copy(source / "corpus.jsonl", out)
        shutil.copy(source / "collection.yaml", out)
        if (source / "embeddings").is_dir():
            (out / "embeddings").symlink_to((source / "embeddings").resolve())
        own = [query for query in queries if number is None or place[query["_id"]] % n == number]
        (out / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in own))
        rows = [f"{user},{video},{time}\n" for user, video, time in watches if number is None or user[1] == str(number)]
        (out / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
        names = {query["_id"] for query in own}
        lines = {"train": [], "dev": [], "test": []}
        for line in judged:
            query = line.split("\t")[0]
            if query in names:
                lines[("train", "train", "train", "dev", "test")[place[query] // n % 5]].append(line)
        for side, of_side in lines.items():
            text = "".join(f"{line}\n" for line in ["query-id\tcorpus-id\tscore", *of_side])
            (out / "qrels" / f"{side}.tsv").write_text(text)
    return folder / "pooled", [folder / f"school{number}" for number in range(n)]


def key_of(query):
    return query["text"].strip().strip("?").lower()


def catalogue_of(source, folder):
    """The catalogue alone, as a hub without queries has it."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    shutil.copy(source / "corpus.jsonl", folder)
    shutil.copy(source / "collection.yaml", folder)
    return folder
