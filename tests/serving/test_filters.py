"""Filters: what they say, what they refuse, and that both engines understand them alike."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdt.serving.catalogue.filters import matching_rows, parse_filter, to_sql
from dcdt.utils.errors import UserError

KINDS = {"level": "text", "duration_s": "number", "tags": "list"}
TRAPS = ["intro", "it's", 'a"b', "x' OR 1=1 --", "%", "_", "back\\slash", "Ünïcode", "a,b", "a|b", "", "INTRO"]
rows = st.lists(
    st.fixed_dictionaries(
        {
            "level": st.one_of(st.none(), st.sampled_from(TRAPS)),
            "duration_s": st.one_of(st.none(), st.integers(-3, 3).map(float)),
            "tags": st.one_of(st.none(), st.lists(st.sampled_from(TRAPS), max_size=3)),
        }
    ),
    min_size=1,
    max_size=6,
)
SCHEMA = pa.schema({"level": pa.string(), "duration_s": pa.float64(), "tags": pa.list_(pa.string())})


def written(value):
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def filters(draw):
    parts = []
    for _ in range(draw(st.integers(1, 2))):
        field = draw(st.sampled_from(list(KINDS)))
        operator = draw(st.sampled_from(["=", "!=", "<", ">=", ">"] if field == "duration_s" else ["=", "!=", "~"]))
        values = draw(
            st.lists(st.integers(-3, 3).map(str) if field == "duration_s" else st.sampled_from(TRAPS), min_size=1)
        )
        parts.append((field, operator, values[:2]))
    return parts


def holds(row, field, operator, values):
    """Brute force, one row."""
    value = row[field]
    if value is None:
        return False
    if field == "duration_s":
        tests = {"=": value.__eq__, "<": value.__lt__, ">=": value.__ge__, ">": value.__gt__, "!=": value.__eq__}
        hit = any(tests[operator](float(other)) for other in values)
    else:
        items = value if isinstance(value, list) else [value]
        contains = operator == "~"
        hit = any(other.lower() in item.lower() if contains else item == other for item in items for other in values)
    return hit if operator != "!=" else not hit


@given(rows=rows, parts=filters())
def test_a_filter_keeps_what_brute_force_keeps(rows, parts):
    table = pa.Table.from_pylist(rows, SCHEMA)
    text = ",".join(
        f"{field}{operator}{'|'.join(values if field == 'duration_s' else map(written, values))}"
        for field, operator, values in parts
    )
    expected = [all(holds(row, *part) for part in parts) for row in rows]
    assert matching_rows(parse_filter(text, KINDS), table).tolist() == expected


@pytest.fixture(scope="module")
def lance(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = [
        {
            "level": rng.choice(TRAPS) if rng.random() < 0.8 else None,
            "duration_s": float(rng.integers(-3, 4)) if rng.random() < 0.8 else None,
            "tags": list(rng.choice(TRAPS, rng.integers(0, 3))) if rng.random() < 0.8 else None,
        }
        for _ in range(80)
    ]
    table = pa.Table.from_pylist(rows, SCHEMA).append_column("row", pa.array(range(80)))
    import lancedb  # two seconds, for every worker that collects

    return table, lancedb.connect(tmp_path_factory.mktemp("lance")).create_table("rows", table)


@pytest.mark.parametrize("operator", ["=", "!=", "~"])
@pytest.mark.parametrize("field", ["level", "tags"])
@pytest.mark.parametrize("value", [value for value in TRAPS if value])
def test_sql_keeps_the_same_rows_and_runs_nothing_a_value_says(lance, field, operator, value):
    table, engine = lance
    conditions = parse_filter(f"{field}{operator}{written(value)}", KINDS)
    found = engine.search().where(to_sql(conditions)).select(["row"]).limit(100).to_arrow()["row"].to_pylist()
    assert sorted(found) == np.flatnonzero(matching_rows(conditions, table)).tolist()


@pytest.mark.parametrize("text", ["duration_s<1", "duration_s>=-1,level=intro|INTRO", "duration_s!=2"])
def test_sql_compares_numbers_alike(lance, text):
    table, engine = lance
    conditions = parse_filter(text, KINDS)
    found = engine.search().where(to_sql(conditions)).select(["row"]).limit(100).to_arrow()["row"].to_pylist()
    assert sorted(found) == np.flatnonzero(matching_rows(conditions, table)).tolist()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour=red", "field 'colour'; fields here are duration_s, level, tags"),
        ("level", "write FIELD=VALUE"),
        ("level=", "write FIELD=VALUE"),
        ('level="open', "cannot be read"),
        ("duration_s<long", "a number, with 'long'"),
        ("duration_s<nan", "a number, with 'nan'"),
        ("duration_s~1", "of kind number takes"),
        ("level<b", "of kind text takes"),
        ("level=a; DROP TABLE videos,1=1", "write FIELD=VALUE"),
        ("level=" + "a" * 1000, "1,006 characters; at most 1000"),
        (",".join(["level=a"] * 21), "21 conditions; at most 20"),
    ],
)
def test_what_is_no_filter_is_refused_in_words(text, said):
    with pytest.raises(UserError) as error:
        parse_filter(text, KINDS)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_an_empty_filter_keeps_all():
    assert parse_filter("  ", KINDS) == []
