import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcdt.models.whitening import catalogue_whitening, soft_whitening


def vectors(n, width, seed=0):
    drawn = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn * torch.linspace(0.1, 2, width), dim=-1)


def by_hand(x, strength, power):
    """The formula as printed, from the eigenvalues of the whole D x D matrix."""
    x = x.numpy()
    n, width = x.shape
    second = x.T @ x / n
    values, basis = np.linalg.eigh(second + strength * width / n * np.trace(second) / width * np.eye(width))
    matrix = basis @ np.diag(values**-power) @ basis.T
    return matrix / (np.trace(matrix) / width)


@pytest.mark.parametrize("n", [1, 5, 12, 13, 60])  # below, at and above the width
def test_equals_the_formula(n):
    x = vectors(n, 12)
    np.testing.assert_allclose(soft_whitening(x, 3.0, 0.4).numpy(), by_hand(x, 3.0, 0.4), atol=1e-9)


@given(st.integers(1, 30), st.floats(0.01, 100), st.floats(0, 1))
def test_symmetric_positive_and_of_mean_eigenvalue_one(n, strength, power):
    matrix = soft_whitening(vectors(n, 10), strength, power)
    torch.testing.assert_close(matrix, matrix.T)
    values = torch.linalg.eigvalsh(matrix)
    assert values.min() > 0 and float(values.mean()) == pytest.approx(1)


def test_power_0_changes_nothing_and_half_without_a_ridge_whitens():
    x = vectors(50, 8)
    torch.testing.assert_close(soft_whitening(x, 1.0, 0.0), torch.eye(8, dtype=x.dtype))
    second = (x @ soft_whitening(x, 1e-12, 0.5)).T @ (x @ soft_whitening(x, 1e-12, 0.5))
    torch.testing.assert_close(second / second.diagonal().mean(), torch.eye(8, dtype=x.dtype), atol=1e-6, rtol=0)


def test_few_vectors_change_less_than_many():
    x = vectors(400, 16)
    away = [float((soft_whitening(x[:n]) - torch.eye(16, dtype=x.dtype)).norm()) for n in (4, 40, 400)]
    assert away[0] < away[1] < away[2]


def test_videos_that_training_may_not_see_do_not_count():
    fields = vectors(20, 6).reshape(2, 10, 6)
    candidates = torch.tensor([True] * 7 + [False] * 3)
    expected = soft_whitening(torch.cat([fields[0, :7], fields[1, :7]]))
    torch.testing.assert_close(catalogue_whitening(fields, candidates), expected)
    fields[:, 7:] = 5.0
    torch.testing.assert_close(catalogue_whitening(fields, candidates), expected)
