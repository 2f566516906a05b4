"""Noise has the size that the accountant asks for, and hides the number of queries."""

import math

import pytest
import torch

from dcdt.models.noise import add_noise, noise_multiplier
from dcdt.models.sums import Sums


def test_noise_is_of_the_size_of_the_sensitivity():
    sums = Sums({"gram": torch.zeros(300, 300), "cross": torch.zeros(300, 300)}, 100, 3.0)
    noised = add_noise(sums, 2.0)
    assert float(noised["cross"].std()) == pytest.approx(6.0, rel=0.03)
    assert float(noised["gram"].std()) == pytest.approx(6.0, rel=0.03)
    assert torch.equal(noised["gram"], noised["gram"].T)
    assert not torch.equal(add_noise(sums, 2.0)["cross"], noised["cross"])  # no seed: who knew it could subtract it


def test_the_accountant_of_opacus_is_asked():
    pytest.importorskip("opacus")
    for epsilon in (0.5, 1.0, 3.0, 8.0):
        one, two = (noise_multiplier(epsilon, 1e-5, n_messages) for n_messages in (1, 2))
        assert two == pytest.approx(one * 2**0.5, rel=0.03)  # two messages share one budget
        assert spent(one, 1e-5) <= epsilon * 1.02 and spent(one * 0.9, 1e-5) > epsilon


def spent(sigma, delta):
    """Epsilon of the Gaussian mechanism by Renyi divergence, converted as Balle et al. (2020)."""
    orders = [1 + step / 100 for step in range(1, 20_000)]
    return min(
        order / (2 * sigma**2) + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order in orders
    )


def test_without_opacus_the_extra_is_named(monkeypatch):
    import sys

    from dcdt.utils.errors import UserError

    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.setitem(sys.modules, "opacus.accountants.utils", None)
    with pytest.raises(UserError, match=r"pip install 'dcdt\[federated\]'"):
        noise_multiplier(1.0, 1e-5, 1)
