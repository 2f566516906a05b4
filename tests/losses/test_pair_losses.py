"""The losses over (positive, negative) pairs: triplet and margin-MSE."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcdt.losses.config import MarginMSEConfig, TripletConfig
from dcdt.losses.margin_mse import MarginMSELoss
from dcdt.losses.triplet import TripletLoss


def triplet(margin=0.3):
    return TripletLoss(TripletConfig("triplet", margin))


def margin_mse():
    return MarginMSELoss(MarginMSEConfig("margin_mse", None))


def cells(seed, rows=4, columns=6):
    made = torch.Generator().manual_seed(seed)
    measured, teacher = (2 * torch.rand(2, rows, columns, generator=made, dtype=torch.float64)).unbind()
    label = (torch.rand(rows, columns, generator=made) < 0.3).double()
    label[torch.arange(rows), torch.randint(columns, (rows,), generator=made)] = 1
    weight = torch.randint(3, (rows, columns), generator=made).double()
    return measured, label, torch.where(label > 0, 1.0, weight), teacher


def double_loop(row, label, weight, value):
    """Weighted mean over the pairs of one query of `value(positive, negative)`."""
    total, sum_of_weights = 0.0, 0.0
    for positive in range(len(label[row])):
        for negative in range(len(label[row])):
            if label[row, positive] and not label[row, negative]:
                counts = 1.0 if weight is None else weight[row, negative].item()
                total += counts * value(positive, negative)
                sum_of_weights += counts
    return total / sum_of_weights if sum_of_weights else 0.0


@given(st.integers(0, 500), st.sampled_from([0.1, 0.3, 1.5]), st.booleans())
def test_triplet_by_a_double_loop(seed, margin, weighted):
    d, label, weight, _ = cells(seed)
    weight = weight if weighted else None
    found = triplet(margin)(d, label, weight)
    assert found.shape == (4,)
    for row in range(4):
        wanted = double_loop(row, label, weight, lambda p, n: max(margin + d[row, p].item() - d[row, n].item(), 0))  # noqa: B023
        assert found[row].item() == pytest.approx(wanted, abs=1e-9)


@given(st.integers(0, 500), st.booleans())
def test_margin_mse_by_a_double_loop(seed, weighted):
    s, label, weight, t = cells(seed)
    weight = weight if weighted else None
    found = margin_mse()(s, label, weight, t)
    assert found.shape == (4,)
    for row in range(4):
        gap, taught = s[row], t[row]
        wanted = double_loop(
            row,
            label,
            weight,
            lambda p, n: ((gap[p] - gap[n]) - (taught[p] - taught[n])).item() ** 2,  # noqa: B023
        )
        assert found[row].item() == pytest.approx(wanted, abs=1e-9)


def test_a_triplet_rests_once_the_positive_leads_by_the_margin():
    distance, label = torch.tensor([[0.5, 0.79, 0.81]], requires_grad=True), torch.tensor([[1.0, 0.0, 0.0]])
    triplet(0.3)(distance, label).sum().backward()
    assert distance.grad[0, 0] > 0 > distance.grad[0, 1]
    assert distance.grad[0, 2] == 0


def test_a_student_that_leads_as_its_teacher_does_costs_nothing():
    similarity, label = torch.rand(3, 5), torch.eye(5)[:3]
    torch.testing.assert_close(margin_mse()(similarity, label, None, similarity + 0.4), torch.zeros(3))
    assert (margin_mse()(similarity, label, None, 2 * similarity) > 0).all()


@pytest.mark.parametrize("make", [triplet, margin_mse])
def test_without_a_negative_the_loss_is_zero_and_its_gradient_finite(make):
    measured, label = torch.rand(2, 3, requires_grad=True), torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    weight = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    found = make()(measured, label, weight, torch.rand(2, 3))
    found.sum().backward()
    assert found.tolist() == [0, 0]
    assert measured.grad.isfinite().all()


@pytest.mark.parametrize("make", [triplet, margin_mse])
def test_a_cell_that_does_not_count_changes_nothing(make):
    measured, teacher = torch.rand(2, 4), torch.rand(2, 4)
    label, weight = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]]), torch.tensor([[1.0, 1, 0, 1], [1, 1, 0, 1]])
    kept = [0, 1, 3]
    wanted = make()(measured[:, kept], label[:, kept], None, teacher[:, kept])
    torch.testing.assert_close(make()(measured, label, weight, teacher), wanted)
