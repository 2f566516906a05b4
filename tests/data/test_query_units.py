"""The unit of a query is its best positive in the collection, or the learner where there are no questions."""

import numpy as np
from data.test_next_video import make_watches
from support import write_folder

from dcdt.data.beir import load_collection
from dcdt.data.units import query_units
from dcdt.evaluation.ties import tie_positions


def units_of(folder):
    collection = load_collection(folder)
    units = query_units(collection, tie_positions(collection.videos.ids))
    return collection, dict(zip(collection.queries.ids, units, strict=True))


def test_the_unit_is_the_positive_of_the_highest_grade_and_of_equal_ones_the_first_in_the_order_of_ties(tmp_path):
    rng = np.random.default_rng(0)
    videos = [{"_id": f"v{at}", "title": f"Lecture {at}", "text": "x"} for at in range(8)]
    queries = [{"_id": f"q{at}", "text": f"Question {at}"} for at in range(40)]
    judged = {
        f"q{at}": {f"v{row}": int(rng.integers(0, 4)) for row in rng.choice(8, 4, replace=False)} for at in range(40)
    }
    lines = [f"{query}\t{video}\t{grade}" for query, grades in judged.items() for video, grade in grades.items()]
    collection, units = units_of(write_folder(tmp_path / "toy", videos, queries, all=lines))
    position = dict(zip(collection.videos.ids, tie_positions(collection.videos.ids).tolist(), strict=True))
    expected = {}
    for query, grades in judged.items():
        positives = [video for video, grade in grades.items() if grade >= 1]
        expected[query] = min(positives, key=lambda video, grades=grades: (-grades[video], position[video]), default="")
    assert units == expected and len(set(units.values())) > 4


def test_without_questions_the_unit_is_the_learner(tmp_path):
    collection, units = units_of(make_watches(tmp_path / "watches"))
    assert not collection.has_questions
    assert units == {name: name for name in collection.queries.ids}
