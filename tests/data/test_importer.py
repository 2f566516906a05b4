from datetime import UTC, datetime

import pytest

from dcdt.data.importer import ImportedRecords, add_interactions, add_queries, add_videos, parse_time
from dcdt.data.weak_queries import add_weak_queries
from dcdt.utils.errors import UserError

VIDEOS = "id;name;description;Minutes;series\n7;Basis;What a basis is;12;LA\n007;Rank of a matrix;;4.5;\n"


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.fixture
def found(tmp_path):
    result = ImportedRecords()
    add_videos(result, written(tmp_path, "videos.csv", VIDEOS), {})
    return result


def test_videos_keep_ids_as_they_are_written_and_other_columns_as_metadata(found):
    assert found.videos == {
        "7": {"_id": "7", "title": "Basis", "text": "What a basis is", "metadata": {"Minutes": 12, "series": "LA"}},
        "007": {"_id": "007", "title": "Rank of a matrix", "text": "", "metadata": {"Minutes": 4.5}},
    }


def test_only_the_columns_to_keep_are_kept(tmp_path):
    result = ImportedRecords()
    add_videos(result, written(tmp_path, "videos.csv", VIDEOS), {"title": "description", "text": "name"}, ["series"])
    assert result.videos["7"] == {"_id": "7", "title": "What a basis is", "text": "Basis", "metadata": {"series": "LA"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nr,title\n1,a\n", r"no column 'id' or 'text' among nr, title.\nName the columns: --id-column NAME --text"),
        ("id,clip\n1,a\n", r"no column 'title' or 'text' among id, clip"),
        ("id,title\n1,a\n1,b\n", r"videos.csv:3: the id '1' is already used at .*videos.csv:2"),
        ("id,title\n,a\n", r"videos.csv:2: the id in column 'id' is empty"),
        ("id,title\n1,\n", r"videos.csv:2: the video '1' has neither title nor description"),
        ("id,title\n", r"holds no row below its header"),
    ],
)
def test_videos_that_cannot_work_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        add_videos(ImportedRecords(), written(tmp_path, "videos.csv", text), {})


def test_rows_of_the_same_text_are_one_query_and_the_highest_grade_stays(tmp_path, found):
    rows = "question,video_id,grade,learner,time\nwhat is a basis,7,1,ann,2024-01-01\nwhat is a basis,007,0,ann,\n"
    rows += "what is a basis,7,2,ann,\nhow long,,,bob,\n"
    add_queries(found, written(tmp_path, "asked.csv", rows), {})
    assert found.queries == {
        "q1": {"_id": "q1", "text": "what is a basis", "metadata": {"user_id": "ann", "timestamp": 1704067200}},
        "q2": {"_id": "q2", "text": "how long", "metadata": {"user_id": "bob"}},
    }
    assert found.grades == {("q1", "7"): 2.0, ("q1", "007"): 0.0}
    assert [warning.split(": ", 1)[1] for warning in found.warnings] == [
        "pairs judged more than once: 1; the highest grade is kept."
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("words,video_id\na,7\n", r"no column 'query' among words, video_id."),
        ("query,video_id\n,7\n", r"asked.csv:2: the query in column 'query' is empty"),
        ("query,video_id\na,8\n", r"asked.csv:2: the video '8' is not among the 2 videos"),
        ("query,video_id,grade\na,7,high\n", r"asked.csv:2: the grade 'high' is not a finite number"),
        ("query,video_id,grade\na,7,nan\n", r"asked.csv:2: the grade 'nan' is not a finite number"),
        ("query_id,query,video_id\n1,a,7\n1,b,7\n", r"asked.csv:3: the query id '1' is used above with another text"),
        ("query,video_id,time\na,7,yesterday\n", r"asked.csv:2: the time 'yesterday' is neither"),
    ],
)
def test_queries_that_cannot_work_are_refused(tmp_path, found, text, message):
    with pytest.raises(UserError, match=message):
        add_queries(found, written(tmp_path, "asked.csv", text), {})


def test_watches_of_unknown_videos_are_left_out_and_counted(tmp_path, found):
    path = written(tmp_path, "clicks.csv", "user,item,timestamp\nann,7,10\nann,99,11\nbob,007,12.5\n")
    add_interactions(found, path, {})
    assert found.watches == [("ann", "7", 10), ("bob", "007", 12.5)]
    assert found.warnings == [f"{path}: watches of unknown videos left out: 1, first '99' at {path}:3."]


def test_watches_of_no_known_video_are_refused(tmp_path, found):
    with pytest.raises(UserError, match=r"none of its 1 rows is about a known video; is --item-column right"):
        add_interactions(found, written(tmp_path, "clicks.csv", "user,item,time\nann,99,11\n"), {})


def test_dates_are_seconds():
    moment = datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert parse_time(moment, "") == parse_time("2024-05-01T12:00:00", "") == parse_time(str(moment.timestamp()), "")
    with pytest.raises(UserError, match=r"row 3: the time inf is out of range"):
        parse_time("inf", "row 3")


def test_the_language_of_a_query_is_kept_so_that_languages_can_tell_it_apart(tmp_path, found):
    add_queries(found, written(tmp_path, "asked.csv", "question,video_id,lang\nwhat,7,no\nwhy,007,\n"), {})
    assert [query.get("metadata") for query in found.queries.values()] == [{"lang": "no"}, None]


def test_titles_become_weak_queries_but_no_real_query_is_repeated(tmp_path):
    result = ImportedRecords()
    rows = "id,title,text\n1,rank of a matrix,a\n2,The rank of a matrix!,b\n3,what a basis is,c\n4,too short,d\n"
    rows += "5,no words at all,\n"
    add_videos(result, written(tmp_path, "videos.csv", rows), {})
    add_queries(result, written(tmp_path, "asked.csv", "query,video_id\nWhat a basis is?,3\n"), {})
    assert add_weak_queries(result, "titles", 2.0) == 2
    assert [query for query in result.queries if query.startswith("weak")] == ["weak-titles-1", "weak-titles-2"]
    assert result.queries["weak-titles-1"]["metadata"] == {"weak": "titles"}
    assert result.grades["weak-titles-2", "2"] == 2.0


def test_companions_are_what_the_same_learners_watched(tmp_path):
    result = ImportedRecords()
    add_videos(
        result, written(tmp_path, "videos.csv", "id,title\n" + "".join(f"{n},title of {n}\n" for n in "abcd")), {}
    )
    watches = {"ann": "ab", "bob": "abc", "eve": "bc", "tim": "d"}
    lines = [f"{user},{item},{at}\n" for user, items in watches.items() for at, item in enumerate(items)]
    add_interactions(result, written(tmp_path, "clicks.csv", "user,item,time\n" + "".join(lines)), {})
    assert add_weak_queries(result, "cowatched", 1.0) == 3
    answers = {}
    for query, video in result.grades:
        answers.setdefault(query[-1], set()).add(video)
    assert answers == {"a": {"a", "b"}, "b": {"b", "a", "c"}, "c": {"c", "b"}}  # a and c share bob alone


def test_weak_queries_need_something_to_be_made_of(tmp_path, found):
    with pytest.raises(UserError, match=r"titles of three words and descriptions"):
        add_weak_queries(found, "titles", 1.0)
    with pytest.raises(UserError, match=r"--interactions FILE"):
        add_weak_queries(found, "cowatched", 1.0)


EXPORT = """Video ID,NAME,Description,Watch URL,Length,View Count,Channel Title,Playlist,Tags,Language,stars
a,One,what a basis is,https://youtu.be/a,5:06,"1,193",Ann,LA,"bases, rank",en,4.5
b,Two,NaN,https://youtu.be/b,PT1H5M6S,87,Bob,,,de,
c,Three,words,N/A,soon,7,Ann,LA,rank,,3
"""


def test_the_usual_columns_are_recognised_whatever_their_case_and_read_so_that_filters_work(tmp_path):
    result = ImportedRecords()
    add_videos(result, written(tmp_path, "v.csv", EXPORT), {})
    assert result.videos["a"]["metadata"] == {
        "url": "https://youtu.be/a",
        "duration_s": 306,
        "views": 1193,
        "channel": "Ann",
        "playlist": "LA",
        "tags": ["bases", "rank"],
        "language": "en",
        "stars": 4.5,
    }
    assert result.videos["b"]["text"] == "" and result.videos["b"]["metadata"] == {
        "url": "https://youtu.be/b", "duration_s": 3906, "views": 87, "channel": "Bob", "language": "de",
    }  # fmt: skip
    assert result.videos["c"]["metadata"] == {
        "views": 7, "channel": "Ann", "playlist": "LA", "tags": ["rank"], "stars": 3,
    }  # fmt: skip
    [warning] = result.warnings
    assert warning.startswith("1 duration is no length of time") and warning.endswith("v.csv:4.")
    [mapping] = result.mappings
    for words in ("id from 'Video ID'", "title from 'NAME'", "url from 'Watch URL'", "duration_s from 'Length'"):
        assert words in mapping
    assert mapping.endswith("; kept under their names: stars")


def test_every_role_of_metadata_can_be_named(tmp_path):
    table = "id,title,Where,Minutes,Seen,Who\n1,a,http://x,2.5,3,Ann\n"
    names = {"url": "Where", "duration": "Minutes", "views": "Seen", "channel": "Who"}
    result = ImportedRecords()
    add_videos(result, written(tmp_path, "v.csv", table), names)
    assert result.videos["1"]["metadata"] == {"url": "http://x", "duration_s": 150, "views": 3, "channel": "Ann"}
    with pytest.raises(UserError, match="--url-column 'Here': there is no such column"):
        add_videos(ImportedRecords(), written(tmp_path, "v.csv", table), {"url": "Here"})


def test_texts_with_commas_between_digits_stay_texts_where_a_column_has_others(tmp_path):
    result = ImportedRecords()
    add_videos(result, written(tmp_path, "v.csv", 'id,title,rooms\n1,a,"101,202"\n2,b,"A,B"\n'), {})
    assert result.videos["1"]["metadata"] == {"rooms": "101,202"}


def test_rows_that_repeat_another_word_for_word_are_left_out_and_counted(tmp_path):
    result = ImportedRecords()
    add_videos(result, written(tmp_path, "v.csv", "id,title\n1,a\n2,b\n1,a\n1,a\n"), {})
    assert list(result.videos) == ["1", "2"]
    assert result.warnings == [f"{tmp_path}/v.csv: rows that repeat another word for word: 2; they are left out."]


def test_all_conflicts_are_listed_at_once(tmp_path, found):
    rows = "".join(f"{n},title\n{n},other\n" for n in range(30))
    with pytest.raises(UserError) as caught:
        add_videos(ImportedRecords(), written(tmp_path, "v.csv", f"id,title\n{rows},none\n"), {})
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "and 11 more like these"
    assert lines[0].endswith("v.csv:3: the id '0' is already used at " + f"{tmp_path}/v.csv:2; ids are unique.")
    with pytest.raises(UserError, match=r"(?s):2: the query in column.*:3: the video '8' is not among the 2 videos"):
        add_queries(found, written(tmp_path, "q.csv", "query,video_id\n,7\na,8\n"), {})


@pytest.mark.parametrize("cell", ['"7;007"', '"7, 007"', "\"['7', '007']\"", '"[""7"", ""007""]"', "7|007"])
def test_a_cell_may_hold_several_ids(tmp_path, found, cell):
    add_queries(found, written(tmp_path, "q.csv", f"query,video_id\nwhat is a basis,{cell}\n"), {})
    assert found.grades == {("q1", "7"): 1.0, ("q1", "007"): 1.0}
