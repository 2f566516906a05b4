"""Formulas read aloud, for the study that measures what this is worth to an embedder."""

import runpy
from pathlib import Path

import pytest
from hypothesis import given
from test_formulas import PARITY, PROSE, texts

STUDY = Path(__file__).parents[2] / "benchmarks" / "studies" / "spoken.py"
speak_formulas = runpy.run_path(str(STUDY))["speak_formulas"]
SPOKEN = [
    "A transpose A x equals A transpose b",
    "A transpose A",
    "determinant of A minus lambda I equals 0",
    "x squared is at most y 1",
    "A B is not equal to B A",
    "A inverse A equals I",
    "sum of i x i equals 1",
    "R squared to R cubed",
    "A equals U Sigma V transpose",
    "square root of x squared plus 1",
]


@pytest.mark.parametrize(("notations", "spoken"), zip(PARITY, SPOKEN, strict=True))
def test_three_notations_are_read_alike(notations, spoken):
    assert [speak_formulas(text) for text in notations] == [spoken] * 3


@pytest.mark.parametrize("text", PROSE)
def test_what_is_not_maths_is_read_as_it_is(text):
    assert speak_formulas(text) == text


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        (r"$p = \frac{a^T b}{a^T a}$?", "p equals a transpose b over a transpose a?"),
        (r"$\frac{d}{dx} f(x) > 0$", "derivative by x of f of x is greater than 0"),
        (r"\begin{bmatrix} a & b \\ c & d \end{bmatrix}", "matrix a, b; c, d"),
        (r"$\hat{x}$ and $\vec v$", "x hat and vector v"),
        (r"$\text{if } x \in S$", "if x in S"),
        (r"angle $90^{\circ}$, $x^n$, $\unknown{y}$", "angle 90 degrees, x to the n, unknown y"),
        ("为什么det(A)=0吗", "为什么 determinant of A equals 0 吗"),
        ("a $^{broken", "a $^{broken"),
    ],
)
def test_formulas_are_read_aloud(text, spoken):
    assert speak_formulas(text) == spoken


@given(text=texts)
def test_any_text_is_read(text):
    assert isinstance(speak_formulas(text), str)
