import numpy as np
import pytest
import torch

from dcdt.reporting.run_figures import confusion_map, loss_curve, projection, run_figures, score_distribution

HISTORY = [{"epoch": 0, "train/loss": 0.5}, {"epoch": 1, "train/loss": 0.25, "val/mrr": 0.75}]
PAIRS = np.array([[0.9, 1], [0.4, 0], [0.3, 0], [0.2, 0], [0.8, 1]])


def test_a_run_has_the_figures_it_has_data_for():
    assert set(run_figures(HISTORY, torch.from_numpy(PAIRS), "dcdt")) == {"loss", "scores"}
    assert set(run_figures([], torch.from_numpy(PAIRS), "zero_shot")) == {"scores"}
    assert run_figures([], None, "zero_shot") == {}


def test_the_loss_curve_shows_epochs_from_one_and_validations_where_they_were():
    loss, validation = loss_curve(HISTORY, "dcdt").axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.25]]
    assert validation.lines[0].get_xydata().tolist() == [[2, 0.75]]
    assert len(loss_curve(HISTORY[:1], "dcdt").axes) == 1
    _, validation = loss_curve(HISTORY, "dcdt", 0.6).axes
    assert list(validation.lines[1].get_ydata()) == [0.6, 0.6]


def test_the_loss_curve_shows_the_loss_of_the_validation_side():
    history = [HISTORY[0], {**HISTORY[1], "val/loss": 0.375}, {"epoch": 2, "train/loss": 0.2, "val/loss": 0.5}]
    figure = loss_curve(history, "dcdt")
    loss, [legend] = figure.axes[0], figure.legends
    assert [line.get_xydata().tolist() for line in loss.lines] == [
        [[1, 0.5], [2, 0.25], [3, 0.2]],
        [[2, 0.375], [3, 0.5]],
    ]
    assert [text.get_text() for text in legend.get_texts()] == ["training loss", "validation loss"]
    assert loss_curve(HISTORY, "dcdt").legends == []


def test_a_validation_before_the_last_epoch_is_shown():
    _, validation = loss_curve([*HISTORY, {"epoch": 2, "train/loss": 0.1}], "dcdt").axes
    assert validation.lines[0].get_xydata().tolist() == [[2, 0.75]]


def test_scores_are_shares_of_their_class():
    [axes] = score_distribution(PAIRS, "dcdt").axes
    negatives, positives = axes.containers
    assert sum(bar.get_height() for bar in negatives) == pytest.approx(1)
    assert sum(bar.get_height() for bar in positives) == pytest.approx(1)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["negatives (3)", "positives (2)"]


def test_videos_stand_on_their_principal_components_by_topic():
    vectors = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3, 0.1, 0.1, 0.1])
    figure = projection(vectors, ["b", "a"] * 6, "dcdt")
    [axes], [legend] = figure.axes, figure.legends  # beside the points, not over them
    assert [text.get_text() for text in legend.get_texts()] == ["a (6)", "b (6)"]
    points = np.concatenate([part.get_offsets() for part in axes.collections])
    assert np.asarray(points).var(axis=0, ddof=1).tolist() == pytest.approx(
        np.linalg.eigvalsh(np.cov(vectors.double().numpy().T))[::-1][:2].tolist(), rel=1e-3
    )
    assert len(projection(torch.ones(2, 3), ["a", "a"], "dcdt").axes) == 1


@pytest.mark.parametrize("n", [11, 23])
def test_no_two_topics_look_alike(n):
    topics = [f"topic {at}" for at in range(n - 1)] + ["other"]
    [axes] = projection(torch.randn(n, 4), topics, "dcdt").axes
    looks = {(part.get_facecolor().tobytes(), part.get_paths()[0].vertices.tobytes()) for part in axes.collections}
    assert len(looks) == n


def test_confusion_names_shares_and_numbers_of_the_videos_that_answer():
    share, number = np.array([[np.nan, 0.5], [np.nan, np.nan]]), np.array([[0, 4], [0, 0]])
    [axes] = confusion_map(share, number, ["one", "two"], "dcdt").axes
    assert [text.get_text() for text in axes.texts] == ["2/4"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["one"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["two"]


def test_a_row_in_which_nothing_is_confused_is_left_out_of_the_grid():
    share = np.array([[np.nan, 0.5, 0.0], [0.0, np.nan, 0.0], [0.0, 0.25, np.nan]])
    [axes] = confusion_map(share, np.full((3, 3), 4), ["one", "two", "three"], "dcdt").axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["one", "three"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["two"]


def test_no_two_lines_of_a_loss_curve_look_alike():
    history = [{"epoch": epoch, "train/loss": 0.5, "val/loss": 0.4, "val/mrr": 0.7} for epoch in range(3)]
    lines = [line for axes in loss_curve(history, "dcdt", 0.6).axes for line in axes.lines]
    assert len({line.get_color() for line in lines}) == len(lines) == 4


def test_no_grid_is_drawn_where_nothing_is_confused():
    assert (
        confusion_map(np.array([[np.nan, 0.0], [np.nan, np.nan]]), np.array([[0, 4], [0, 0]]), ["a", "b"], "x") is None
    )
