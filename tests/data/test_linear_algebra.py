"""Every promise that data/linear_algebra/DATASHEET.md makes about the files beside it."""

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from dcdt.data.beir import load_collection
from dcdt.data.types import normalise_text

FOLDER = Path(__file__).resolve().parents[2] / "data" / "linear_algebra"
KINDS = {"keyword", "question", "beginner", "notation", "misconception", "typo", "applied"}
LEVELS = {"intuition", "computation", "theory", "application"}
COURSES = {"MIT 18.06": "18.06-spring-2010", "Essence of linear algebra": "essence-of-linear-algebra"}
HAN = re.compile(r"[\u4e00-\u9fff]")


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def bare(title):
    return re.sub(r"^Lecture \d+: ", "", title)


def squeezed(text):
    """Letters and digits only."""
    return "".join(char for char in normalise_text(text) if char.isalnum())


@pytest.fixture(scope="module")
def videos():
    return read_jsonl(FOLDER / "corpus.jsonl")


@pytest.fixture(scope="module")
def queries():
    return read_jsonl(FOLDER / "queries.jsonl")


@pytest.fixture(scope="module")
def english(queries):
    return [query for query in queries if query["metadata"]["lang"] == "en"]


@pytest.fixture(scope="module")
def judgments():
    header, *lines = (FOLDER / "qrels" / "all.tsv").read_text("utf-8").splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    return [tuple(line.split("\t")) for line in lines]


@pytest.fixture(scope="module")
def positives(judgments):
    """Grade-2 videos of each query."""
    found = {}
    for query, video, grade in judgments:
        if grade == "2":
            found.setdefault(query, set()).add(video)
    return found


@pytest.fixture(scope="module")
def watches():
    """(timestamp, learner, video), in file order."""
    header, *lines = (FOLDER / "interactions.csv").read_text("utf-8").splitlines()
    assert header == "user_id,item_id,timestamp"
    return [(int(time), user, video) for user, video, time in (line.split(",") for line in lines)]


@pytest.fixture(scope="module")
def freeze():
    spec = importlib.util.spec_from_file_location("linear_algebra_freeze", FOLDER / "freeze.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    """A copy of what the simulation reads and writes."""
    for name in ("corpus.jsonl", "queries.jsonl", "interactions.csv", "qrels/all.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(FOLDER / name, tmp_path / name)
    return tmp_path


def simulate(folder, hash_seed="0"):
    command = [sys.executable, str(FOLDER / "simulate.py"), "--folder", str(folder)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def assert_as_committed(folder):
    for name in ("interactions.csv", "queries.jsonl"):
        assert (folder / name).read_bytes() == (FOLDER / name).read_bytes(), f"{name} differs: run simulate.py"


def test_the_framework_reads_it():
    collection = load_collection(FOLDER)
    assert collection.name == "linear_algebra"
    assert collection.positive_grade == 2
    assert collection.languages == ["en"]
    assert list(collection.slice_rows()) == ["zh"]


def test_the_settings_say_what_is_simulated():
    simulated = " ".join(load_collection(FOLDER).simulated)
    assert "interactions" in simulated and "user" in simulated and "time" in simulated


# Videos


def test_number_of_videos(videos):
    assert len(videos) == 46
    assert Counter(video["metadata"]["series"] for video in videos) == {
        "MIT 18.06": 31,
        "Essence of linear algebra": 15,
    }


@pytest.mark.parametrize("key", ["_id", "title", "text"])
def test_videos_differ(videos, key):
    assert len({video[key] for video in videos}) == len(videos)


@pytest.mark.parametrize("key", ["youtube_id", "url"])
def test_video_facts_differ(videos, key):
    assert len({video["metadata"][key] for video in videos}) == len(videos)


def test_series_numbers_differ(videos):
    assert len({(video["metadata"]["series"], video["metadata"]["number"]) for video in videos}) == len(videos)


def test_urls_lead_to_the_video(videos):
    for video in videos:
        about = video["metadata"]
        assert re.fullmatch(r"[\w-]{11}", about["youtube_id"])
        assert about["url"] == f"https://www.youtube.com/watch?v={about['youtube_id']}"


def test_lecture_numbers_are_those_of_the_titles(videos):
    for video in videos:
        if video["metadata"]["series"] == "MIT 18.06":
            assert video["title"].startswith(f"Lecture {video['metadata']['number']}: ")


def test_facts_are_those_of_the_listing(videos):
    folder = os.environ.get("DCDT_COLLECTIONS")
    listing = Path(folder) / "linear_algebra_videos.csv" if folder else None
    if listing is None or not listing.is_file():
        pytest.skip("needs linear_algebra_videos.csv in the folder named by $DCDT_COLLECTIONS")
    with listing.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if "review" not in row["title"].lower()]
    for series, course in COURSES.items():
        facts = {(row["title"], row["youtube_id"], row["url"]) for row in rows if row["course"] == course}
        ours = [video for video in videos if video["metadata"]["series"] == series]
        assert {(v["title"], v["metadata"]["youtube_id"], v["metadata"]["url"]) for v in ours} == facts


def test_descriptions_have_40_to_90_words(videos):
    assert {
        video["_id"]: len(video["text"].split()) for video in videos if not 40 <= len(video["text"].split()) <= 90
    } == {}


def test_tags(videos):
    for video in videos:
        tags = video["metadata"]["tags"]
        assert tags and len(set(tags)) == len(tags)
        assert all(isinstance(tag, str) and tag == tag.strip().lower() and tag for tag in tags), video["_id"]


def test_levels(videos):
    assert {video["metadata"]["level"] for video in videos} == LEVELS


def test_prerequisites_exist(videos):
    known = {video["_id"] for video in videos}
    for video in videos:
        assert known.issuperset(video["metadata"]["prerequisites"]), video["_id"]


def test_prerequisites_have_no_cycle(videos):
    TopologicalSorter({video["_id"]: video["metadata"]["prerequisites"] for video in videos}).prepare()


# Queries


def test_number_of_queries(queries, english):
    assert len(english) >= 460
    assert Counter(query["metadata"]["lang"] for query in queries) == {"en": len(english), "zh": 40}


def test_kinds(english):
    number = Counter(query["metadata"]["kind"] for query in english)
    assert set(number) == KINDS
    assert min(number.values()) >= 40, number


def test_chinese_queries_are_of_the_same_kinds(queries):
    assert {query["metadata"]["kind"] for query in queries if query["metadata"]["lang"] == "zh"} <= KINDS


def test_languages_are_what_they_say(queries):
    for query in queries:
        assert bool(HAN.search(query["text"])) == (query["metadata"]["lang"] == "zh"), query["_id"]


def test_query_ids_differ(queries):
    assert len({query["_id"] for query in queries}) == len(queries)


@pytest.mark.parametrize("form", [normalise_text, squeezed], ids=["normalised", "squeezed"])
def test_query_texts_differ(queries, form):
    number = Counter(form(query["text"]) for query in queries)
    assert [text for text, count in number.items() if count > 1] == []


@pytest.mark.parametrize("form", [str.casefold, normalise_text, squeezed], ids=["case", "normalised", "squeezed"])
def test_no_query_contains_a_title(videos, queries, form):
    titles = {form(title) for video in videos for title in (video["title"], bare(video["title"]))}
    assert [(q["_id"], title) for q in queries for title in titles if title in form(q["text"])] == []


def test_bare_titles_lose_their_prefix():
    assert bare("Lecture 1: The geometry of linear equations") == "The geometry of linear equations"
    assert squeezed("Cramer's  Rule, again!") == "cramersruleagain"


def test_one_canonical_query_a_video(videos, queries, positives):
    canonical = [query for query in queries if "canonical_for" in query["metadata"]]
    assert sorted(q["metadata"]["canonical_for"] for q in canonical) == sorted(video["_id"] for video in videos)
    for query in canonical:
        assert query["metadata"]["lang"] == "en"
        assert query["metadata"]["canonical_for"] in positives[query["_id"]], query["_id"]


# Judgments


def test_grades(judgments):
    assert {grade for *_, grade in judgments} == {"1", "2"}


def test_judged_ids_exist(videos, queries, judgments):
    assert {query for query, *_ in judgments} <= {query["_id"] for query in queries}
    assert {video for _, video, _ in judgments} <= {video["_id"] for video in videos}


def test_no_pair_is_judged_twice(judgments):
    number = Counter((query, video) for query, video, _ in judgments)
    assert [pair for pair, count in number.items() if count > 1] == []


def test_every_query_has_a_positive(queries, positives):
    assert [query["_id"] for query in queries if query["_id"] not in positives] == []


def test_every_video_has_english_positives(videos, english, positives):
    wanted = {video for query in english for video in positives.get(query["_id"], ())}
    assert wanted == {video["_id"] for video in videos}


# Simulation


def test_number_of_learners_and_their_watches(watches):
    number = Counter(user for _, user, _ in watches)
    assert len(number) >= 200
    assert min(number.values()) >= 3 and max(number.values()) <= 40


def test_learners_start_in_2024(watches):
    start = {}
    for time, user, _ in watches:
        start.setdefault(user, datetime.fromtimestamp(time, UTC).year)
    assert set(start.values()) == {2024}


def test_watches_are_sorted_and_of_known_videos(videos, watches):
    assert [row[:2] for row in watches] == sorted(row[:2] for row in watches)
    assert {video for *_, video in watches} == {video["_id"] for video in videos}


def test_every_query_has_a_known_user_and_a_time(queries, watches):
    users = {user for _, user, _ in watches}
    for query in queries:
        assert query["metadata"]["user_id"] in users, query["_id"]
        assert type(query["metadata"]["timestamp"]) is int, query["_id"]


def test_the_users_do_not_give_the_answer_away(queries, positives, watches):
    later = following = 0
    history = {}
    for time, user, video in watches:
        history.setdefault(user, []).append((time, video))
    for query in queries:
        about = query["metadata"]
        rest = [video for time, video in history[about["user_id"]] if time >= about["timestamp"]]
        later += not positives[query["_id"]].isdisjoint(rest)
        following += not positives[query["_id"]].isdisjoint(rest[:1])
    assert 0.3 < later / len(queries) < 0.7
    assert following / len(queries) < 0.4


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_simulation_reproduces_the_files(copy, hash_seed):
    (copy / "interactions.csv").unlink()
    result = simulate(copy, hash_seed)
    assert result.returncode == 0, result.stderr
    assert_as_committed(copy)


def test_simulation_needs_no_earlier_simulation(copy):
    queries = read_jsonl(copy / "queries.jsonl")
    for query in queries:
        del query["metadata"]["user_id"], query["metadata"]["timestamp"]
    lines = [json.dumps(query, ensure_ascii=False) + "\n" for query in queries]
    (copy / "queries.jsonl").write_text("".join(lines), encoding="utf-8")
    result = simulate(copy)
    assert result.returncode == 0, result.stderr
    assert_as_committed(copy)


def test_a_failed_simulation_changes_nothing(copy):
    with (copy / "qrels" / "all.tsv").open("a", encoding="utf-8") as lines:
        lines.write("q001\tno-such-video\t2\n")
    assert simulate(copy).returncode != 0
    assert_as_committed(copy)
    assert {path.name for path in copy.iterdir()} == {"corpus.jsonl", "queries.jsonl", "interactions.csv", "qrels"}


# Datasheet


def test_hashes_of_the_datasheet(freeze):
    sheet = (FOLDER / "DATASHEET.md").read_text("utf-8").splitlines()
    lines = [line for line in sheet if re.fullmatch(r".+  sha256 [0-9a-f]{64}", line)]
    assert lines == freeze.hash_lines(FOLDER), "texts or judgments changed; if that is meant: freeze.py --write"


def test_hashes_ignore_the_simulation_and_nothing_else(freeze, copy):
    corpus, qrels, texts = freeze.hash_lines(copy)
    queries = read_jsonl(copy / "queries.jsonl")
    queries[0]["metadata"]["user_id"], queries[0]["metadata"]["timestamp"] = "somebody", 0
    (copy / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries), encoding="utf-8")
    assert freeze.hash_lines(copy) == [corpus, qrels, texts]
    queries[0]["text"] += "?"
    (copy / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries), encoding="utf-8")
    assert freeze.hash_lines(copy)[:2] == [corpus, qrels]
    assert freeze.hash_lines(copy)[2] != texts


def test_counts_of_the_datasheet(freeze):
    sheet = (FOLDER / "DATASHEET.md").read_text("utf-8")
    assert freeze.filled(sheet, FOLDER) == sheet, "run freeze.py --write"


def test_the_datasheet_is_complete():
    assert re.findall(r"\{\{\w+\}\}", (FOLDER / "DATASHEET.md").read_text("utf-8")) == []
