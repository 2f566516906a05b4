import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from dcdt.evaluation.pairs import best_f1_threshold, pair_metrics


def random_pairs(seed, ties):
    rng = np.random.default_rng(seed)
    labels = np.append(rng.random(199) < 0.2, True)
    scores = rng.normal(size=200) + labels
    return np.round(scores, 1) if ties else scores, labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_equals_scikit_learn(seed, ties):
    scores, labels = random_pairs(seed, ties)
    for threshold in (best_f1_threshold(scores, labels), float(scores[7]), -100.0, 100.0):
        predicted = scores >= threshold
        expected = {
            "accuracy": accuracy_score(labels, predicted),
            "precision": precision_score(labels, predicted, zero_division=0),
            "recall": recall_score(labels, predicted, zero_division=0),
            "f1": f1_score(labels, predicted, zero_division=0),
            "auroc": roc_auc_score(labels, scores),
        }
        assert pair_metrics(scores, labels, threshold) == pytest.approx(expected, abs=1e-12)


scored_labels = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=25)


@settings(max_examples=100, deadline=None)
@given(scored_labels.filter(lambda pairs: any(label for _, label in pairs)))
def test_no_threshold_has_a_better_f1_and_none_as_good_predicts_fewer(pairs):
    scores, labels = np.array(pairs).T
    threshold = best_f1_threshold(scores / 4, labels)
    best = pair_metrics(scores / 4, labels, threshold)["f1"]
    for other in np.unique(scores / 4):
        f1 = pair_metrics(scores / 4, labels, other)["f1"]
        assert f1 <= best
        assert f1 < best or (scores / 4 >= threshold).sum() <= (scores / 4 >= other).sum()
    distinct = np.unique(scores / 4)
    assert threshold in (distinct[1:] + distinct[:-1]) / 2 or threshold == distinct[0]


def test_auroc_equals_a_double_loop_with_ties_counted_half():
    scores, labels = random_pairs(3, ties=True)
    wins = [1.0 if own > other else 0.5 if own == other else 0.0 for own in scores[labels] for other in scores[~labels]]
    assert pair_metrics(scores, labels, 0.0)["auroc"] == pytest.approx(sum(wins) / len(wins), abs=1e-12)


def test_equal_f1_chooses_the_fewest_predicted_positives():
    # 1 of 1 with recall 1/2 and 2 of 4 with recall 1 both have an F1 of 2/3
    assert best_f1_threshold([4, 3, 2, 1], [1, 0, 0, 1]) == 3.5


def test_everything_positive_has_the_lowest_score_as_its_threshold():
    assert best_f1_threshold([0.2, 0.1, 0.3], [0, 1, 1]) == 0.1
    assert best_f1_threshold([0.5, 0.5], [1, 0]) == 0.5


@pytest.mark.parametrize("upper", [1.0, 5e-324, 1.7e308])
def test_the_threshold_separates_neighbouring_floats(upper):
    lower = float(np.nextafter(upper, -math.inf))
    threshold = best_f1_threshold([lower, upper], [0, 1])
    assert lower < threshold <= upper


def test_row_order_does_not_matter():
    scores, labels = random_pairs(1, ties=True)
    order = np.random.default_rng(0).permutation(len(scores))
    assert best_f1_threshold(scores, labels) == best_f1_threshold(scores[order], labels[order])


def test_a_missing_class_has_no_auroc():
    assert math.isnan(pair_metrics([0.1, 0.2], [0, 0], 0.15)["auroc"])
    only_positives = pair_metrics([0.1, 0.2], [1, 1], 0.15)
    assert math.isnan(only_positives["auroc"])
    assert only_positives["recall"] == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "P at least 1"),
        ([0.1, 0.2], [1], "must both be"),
        ([0.1, math.nan], [1, 0], "1 of 2 scores are not finite"),
        ([0.1, math.inf], [1, 0], "not finite"),
        ([0.1, 0.2], [1, 2], r"found \[2\]"),
    ],
)
def test_refuses_what_is_no_pair_file(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        best_f1_threshold(scores, labels)
    with pytest.raises(ValueError, match=message):
        pair_metrics(scores, labels, 0.5)


def test_refuses_no_positive_and_no_threshold():
    with pytest.raises(ValueError, match="0 of 2 pairs are positive"):
        best_f1_threshold([0.1, 0.2], [0, 0])
    with pytest.raises(ValueError, match="threshold is NaN"):
        pair_metrics([0.1], [1], math.nan)
