"""Simulate learners who watch the videos and ask the queries. No person stands behind any line this script writes.

Writes interactions.csv and puts `user_id` and `timestamp` (unix seconds) into the metadata of every query. The watches
depend on corpus.jsonl alone. Who asks a query, and when, also depends on its judgments (qrels/all.tsv): learners who
come near one of its grade-2 videos are preferred. So a model that uses users or times measures this simulator.
Every learner and every query has its own random stream, which keeps the effect of an edit local.
"""

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

SEED = 20240101
LEARNERS, FEWEST, MOST, TYPICAL = 240, 3, 40, 8  # watches a learner: at least, at most, most often
MINUTE, HOUR, DAY = 60, 3600, 86400
START, SPAN = 1_704_067_200, 366 * DAY  # learners begin in 2024
LEVELS = ("intuition", "computation", "theory", "application")
ASKED_BY = {"beginner": "intuition", "notation": "computation", "misconception": "theory", "applied": "application"}
BACKGROUND, REWATCH, JUMP, DROP_OUT, BINGE = 0.4, 0.06, 0.05, 0.015, 0.3
MOMENTS = {"before": 0.35, "stuck": 0.3, "after": 0.15, "any": 0.2}  # when a query is asked, see `moments`

Record = dict[str, Any]


class Learner(NamedTuple):
    """A simulated person; `watches` are (time, video id) in order of time."""

    name: str
    lang: str
    taste: dict[str, float]
    interests: set[str]
    home: str
    known: set[str]
    pace: float
    watches: list[tuple[int, str]]


def new_learner(number: int, videos: dict[str, Record]) -> Learner:
    """Draw a learner and let them watch. Every tenth writes Chinese; some come with the start of a series known."""
    rng = random.Random(f"{SEED} learner {number}")
    favourite, shelf = rng.choice(LEVELS), list(videos.values())
    taste = {level: 0.3 + rng.random() + 1.5 * (level == favourite) for level in LEVELS}
    goals = rng.choices(shelf, [taste[video["level"]] for video in shelf], k=rng.randint(2, 4))
    start, series = goals[0]["number"], goals[0]["series"]
    known = {name for name, video in videos.items() if video["series"] == series and video["number"] < start}
    who = Learner(
        name=f"u{number:03d}",
        lang="zh" if number % 10 == 0 else "en",
        taste=taste,
        interests={tag for video in goals for tag in video["tags"]},
        home=rng.choice(sorted({video["series"] for video in shelf})),
        known=known if rng.random() < BACKGROUND else set(),
        pace=rng.triangular(6 * HOUR, 7 * DAY, DAY),
        watches=[],
    )
    walk(who, videos, rng)
    return who


def walk(who: Learner, videos: dict[str, Record], rng: random.Random) -> None:
    """Fill in the watches: prerequisites first as a rule, with rewatches, jumps, sittings of several and drop-outs."""
    length = int(rng.triangular(FEWEST, MOST + 1, TYPICAL))
    time, last, seen = START + int(SPAN * rng.random()), "", set[str]()
    while len(who.watches) < length:
        roll, fresh = rng.random(), [name for name in videos if name not in seen]
        if roll < REWATCH and seen:
            last = rng.choice(sorted(seen))
        elif roll < REWATCH + JUMP:
            last = rng.choice(fresh)
        else:
            last = rng.choices(fresh, [pull(who, name, videos, seen, last) for name in fresh])[0]
        seen.add(last)
        who.watches.append((time, last))
        if len(who.watches) >= FEWEST and rng.random() < DROP_OUT:
            break
        time += int(MINUTE * rng.uniform(20, 90) if rng.random() < BINGE else who.pace * rng.uniform(0.3, 1.7))


def pull(who: Learner, name: str, videos: dict[str, Record], seen: set[str], last: str) -> float:
    """How much the unseen video `name` attracts a learner who has just watched `last`."""
    video = videos[name]
    weight = who.taste[video["level"]] * (1 + len(who.interests.intersection(video["tags"])))
    weight *= (3 if video["series"] == who.home else 1) * (0.2 if name in who.known else 1)
    if last:
        weight *= 1 + 2 * len(set(videos[last]["tags"]).intersection(video["tags"]))  # often in the other series
        follows = video["series"] == videos[last]["series"] and 0 < video["number"] - videos[last]["number"] <= 2
        weight *= 4 if follows else 1
    return weight if who.known.union(seen).issuperset(video["prerequisites"]) else weight * 0.01


def moments(who: Learner, moment: str, positives: set[str], prerequisites: set[str]) -> list[int]:
    """Watches near which to ask: a positive's first, the last prerequisite with no positive seen (`stuck`), or any."""
    first = next((time for time, name in who.watches if name in positives), None)
    if moment == "stuck":
        return [time for time, name in who.watches if name in prerequisites and (first is None or time < first)][-1:]
    if moment == "any":
        return [time for time, _ in who.watches]
    return [] if first is None else [first]


def ask(query: Record, positives: set[str], videos: dict[str, Record], crowd: list[Learner]) -> tuple[str, int]:
    """Choose who asks a query and when. Not every asker watches a positive, before or after."""
    rng = random.Random(f"{SEED} query {query['_id']}")
    tags = {tag for name in positives for tag in videos[name]["tags"]}
    prerequisites = {other for name in positives for other in videos[name]["prerequisites"]}
    level = ASKED_BY.get(query["metadata"]["kind"])
    speakers = [who for who in crowd if who.lang == query["metadata"]["lang"]]
    for moment in (rng.choices(list(MOMENTS), list(MOMENTS.values()))[0], "before", "any"):
        pool = [(who, time) for who in speakers for time in moments(who, moment, positives, prerequisites)]
        if pool:
            break
    fit = [(who.taste[level] if level else 1.0) * (1 + len(who.interests & tags)) for who, _ in pool]
    who, time = rng.choices(pool, fit)[0]
    distance = 10 * MINUTE + int(rng.random() * rng.random() * 3 * who.pace)
    return who.name, time - distance if moment == "before" else time + distance


def read_jsonl(path: Path) -> list[Record]:
    """Records of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def simulate(folder: Path) -> dict[str, str]:
    """The new contents of interactions.csv and queries.jsonl."""
    videos: dict[str, Record] = {video["_id"]: video["metadata"] for video in read_jsonl(folder / "corpus.jsonl")}
    crowd = [new_learner(number, videos) for number in range(1, LEARNERS + 1)]
    queries = read_jsonl(folder / "queries.jsonl")
    positives: dict[str, set[str]] = {query["_id"]: set() for query in queries}
    for line in (folder / "qrels" / "all.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query_id, name, grade = line.split("\t")
        positives[query_id] |= {name} if grade == "2" else set()
    for query in queries:
        user, time = ask(query, positives[query["_id"]], videos, crowd)
        kept = {key: value for key, value in query["metadata"].items() if key not in ("user_id", "timestamp")}
        query["metadata"] = {**kept, "user_id": user, "timestamp": time}
    watches = sorted((time, who.name, name) for who in crowd for time, name in who.watches)
    lines = ["user_id,item_id,timestamp", *(f"{user},{name},{time}" for time, user, name in watches)]
    return {
        "interactions.csv": "".join(line + "\n" for line in lines),
        "queries.jsonl": "".join(json.dumps(query, ensure_ascii=False) + "\n" for query in queries),
    }


def main() -> None:
    """Write both files, each whole or not at all."""
    parser = argparse.ArgumentParser(description="Simulate learners for a collection in BEIR layout.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent)
    folder: Path = parser.parse_args().folder
    contents = simulate(folder)
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in contents}
    try:
        for name, path in temporary.items():
            path.write_bytes(contents[name].encode())
        for name, path in temporary.items():
            path.replace(folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
