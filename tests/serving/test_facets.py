"""What of a catalogue can be clicked: fields with few values, ranges of lengths, and filters that find their videos."""

import numpy as np
import pytest

from dcdt.data.types import Documents
from dcdt.serving.catalogue.facets import find_facets
from dcdt.serving.catalogue.filters import matching_rows, parse_filter
from dcdt.serving.videos import filter_kinds, metadata_columns, table_of

METADATA = [
    {
        "course": course,
        "level": level,
        "duration_s": length,
        "grade": grade,
        "tags": tags,
        "url": f"https://e.org/{row}",
    }
    for row, (course, level, length, grade, tags) in enumerate(
        [
            ('A "quoted" | a, b', "easy", 60, 5, ["x"]),
            ('A "quoted" | a, b', "easy", 299, 5, ["x", "y"]),
            ("back\\slash", "hard", 300, 6, []),
            ("back\\slash", "hard", 4000, 6, ["y"]),
            ("مصفوفات", "hard", None, 6, ["y"]),
            ("مصفوفات", None, 3600, 5, ["x"]),
        ]
    )
]


@pytest.fixture
def catalogue():
    ids = [f"v{row}" for row in range(len(METADATA))]
    videos = Documents(ids, [f"title {name}" for name in ids], ["text"] * len(ids), METADATA)
    columns = metadata_columns(videos)
    return table_of(videos, columns), filter_kinds(columns)


def test_fields_with_few_values_come_with_counts_and_a_series_only_once(catalogue):
    facets = {facet["name"]: facet["values"] for facet in find_facets(*catalogue)}
    assert list(facets) == ["series", "level", "grade", "tags", "length"]  # no course again, no addresses, no ids
    assert [(value["label"], value["n"]) for value in facets["level"]] == [("hard", 3), ("easy", 2)]
    assert [(value["label"], value["n"]) for value in facets["length"]] == [
        ("under 5 min", 2),
        ("5 to 15 min", 1),
        ("over 1 h", 2),
    ]
    assert {value["label"]: value["n"] for value in facets["tags"]} == {"x": 3, "y": 3}


def test_each_filter_finds_as_many_videos_as_it_says_whatever_its_value_holds(catalogue):
    table, kinds = catalogue
    for facet in find_facets(table, kinds):
        for value in facet["values"]:
            found = matching_rows(parse_filter(value["filter"], kinds), table)
            assert np.count_nonzero(found) == value["n"], value


def test_many_values_and_few_videos_make_no_facet(catalogue):
    table, kinds = catalogue
    assert find_facets(table.slice(0, 2), kinds) == [] == find_facets(table.slice(0, 0), kinds)
