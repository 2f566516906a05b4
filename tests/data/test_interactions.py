import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdt.data.interactions import load_interactions
from dcdt.utils.errors import NotApplicable, UserError

ITEMS = {"a": 0, "b": 1, "c": 2}
HEADER = "user_id,item_id,timestamp\n"


def write(folder, text, encoding="utf-8"):
    path = folder / "interactions.csv"
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def listed(watches):
    columns = zip(watches.user.tolist(), watches.item.tolist(), watches.time.tolist(), strict=True)
    return [(watches.users[user], item, time) for user, item, time in columns]


def test_watches_are_read_by_learner_and_time(tmp_path):
    path = write(tmp_path, HEADER + "u2,b,5\nu1,c,30\nu1,a,2.5\n\nu1,a,40\n")
    watches = load_interactions(path, ITEMS)
    assert listed(watches) == [("u1", 0, 2.5), ("u1", 2, 30.0), ("u1", 0, 40.0), ("u2", 1, 5.0)]
    assert len(watches) == 4


def test_columns_may_stand_in_any_order_among_others_with_a_byte_order_mark(tmp_path):
    path = write(tmp_path, 'rating,timestamp,item_id,user_id\n5,7,"b"," Ann, B. "\n', "utf-8-sig")
    assert listed(load_interactions(path, ITEMS)) == [("Ann, B.", 1, 7.0)]


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("abc"), st.integers(0, 3)), min_size=1), st.randoms())
def test_the_order_of_the_file_does_not_matter(tmp_path_factory, rows, random):
    folder = tmp_path_factory.mktemp("order")
    lines = [f"{user},{item},{time}\n" for user, item, time in rows]
    first = listed(load_interactions(write(folder, HEADER + "".join(lines)), ITEMS))
    random.shuffle(lines)
    assert listed(load_interactions(write(folder, HEADER + "".join(lines)), ITEMS)) == first
    assert first == sorted(first, key=lambda watch: (watch[0], watch[2], watch[1]))


def test_no_file_is_not_applicable(tmp_path):
    with pytest.raises(NotApplicable, match=r"the collection has no interactions\.csv"):
        load_interactions(tmp_path / "interactions.csv", ITEMS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"csv:1: the first line must name the columns"),
        ("u1,a,3\nu1,b,4\n", r"csv:2: no column user_id, item_id, timestamp"),
        ("user_id,item_id\nu1,a\n", r"csv:2: no column timestamp"),
        (HEADER, "holds no interaction"),
        (HEADER + "u1,a,3\nu1,d,4\n", r"csv:3: the item id 'd' is not in corpus\.jsonl"),
        (HEADER + 'u1,"d\n\u2028\ne",3\n', r"csv:2: the item id 'd e' is not in corpus\.jsonl\.$"),
        (HEADER + "u1,a,3\nu1,b\n", r"csv:3: 2 columns; the header names 3"),
        (HEADER + ",a,3\n", r"csv:2: the user_id is empty"),
        (HEADER + "u1,a,yesterday\n", r"csv:2: the timestamp 'yesterday' is not a finite number"),
        (HEADER + "u1,a,nan\n", r"csv:2: the timestamp 'nan'"),
        (HEADER + "u1,a,\n", r"csv:2: the timestamp ''"),
        (HEADER + '"u\n1",a,3\n', r"csv:2: the user_id 'u 1' has several lines"),
        (HEADER + "u1,a,3\n\nu1,a,inf\n", r"csv:4: the timestamp 'inf'"),
        (HEADER + 'u1,"a"b,3\n', "csv:2: a quote in this row is not closed"),
        ((HEADER + "u1,a,3\n").encode() + b"\xff,a,3\n", "not UTF-8"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, text, said):
    with pytest.raises(UserError, match=said) as caught:
        load_interactions(write(tmp_path, text), ITEMS)
    assert len(str(caught.value).splitlines()) <= 2
