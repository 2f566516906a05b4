"""Formulas: the three notations are one, and what is not maths stays."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdt.data.formulas import formula_tokens, split_formulas
from dcdt.data.tokens import tokenizer

PARITY = [  # LaTeX, Unicode, plain
    ("$A^T A x = A^T b$", "AᵀA x = Aᵀb", "A^T A x = A^T b"),
    (r"$A^{\top}A$", "AᵀA", "A^TA"),
    (r"\(\det(A-\lambda I)=0\)", "det(A\u2212λI)=0", "det(A - lambda I) = 0"),
    (r"$x^{2} \leq y_1$", "x² ≤ y₁", "x^2 <= y_1"),
    (r"$$AB \neq BA$$", "AB ≠ BA", "AB != BA"),
    (r"\[A^{-1}A=I\]", "A⁻¹A = I", "A^-1 A = I"),
    (r"$\sum_i x_i = 1$", "∑_i x_i = 1", "sum_i x_i = 1"),
    (r"$\mathbb{R}^2 \rightarrow \mathbb{R}^3$", "ℝ² → ℝ³", "R^2 -> R^3"),
    (r"$A = U\Sigma V^{\mathsf{T}}$", "A = UΣVᵀ", "A = U Sigma V^T"),
    (r"$\sqrt{x^2+1}$", "$√{x²+1}$", "sqrt(x^2 + 1)"),
]
PROSE = [
    "costs $5 and $6, or $7-8",
    "from 2024-01-05 to 12/05/2024 at 10:30",
    "see x_train.csv, my_file_2.py and a_1.tar.gz",
    "mail a_b@c_d.org, see https://a.b/c?x=1&y=2^3",
    "C++ code, C# and a++",
    "std::vector<int> v; for (int i = 0; i < n; i++) { v[i] = x^2; }",
    "int x = 5;\nif (a == b) return x_1;",
    "use `x = y^2` here",
    "I am a 3 x 4 person, plan B - or I/O, 24/7, and/or R&D",
    "a snake_case name, __init__, key=value and <b>bold</b>",
    r"C:\Users\alpha or \d+\w",
    "\u03bf Σωκράτης και η αρετή",
    "1º and 2ª, a(n) apple(s), it's = mine",
    "特征值 和 特征向量",
]


def normalise(text):
    return "".join(rf"\({part}\)" if is_formula else part for is_formula, part in split_formulas(text))


@pytest.mark.parametrize(("latex", "unicode", "plain"), PARITY)
def test_three_notations_are_one_formula(latex, unicode, plain):
    assert split_formulas(latex) == split_formulas(unicode) == split_formulas(plain)
    assert formula_tokens(latex) == formula_tokens(unicode) == formula_tokens(plain)


@pytest.mark.parametrize("text", PROSE)
def test_what_is_not_maths_stays(text):
    assert normalise(text) == text
    assert formula_tokens(text) == []


def test_tokens_keep_scripts_and_relations_beside_the_words():
    words = tokenizer(stop_words=True)("Is the A^T A x = A^T b of $A=QR$")
    assert words == tokenizer(stop_words=True)("Is the A^T A x = A^T b of $A=QR$")
    with_formulas = tokenizer(stop_words=True, formulas=True)("Is the A^T A x = A^T b of $A=QR$")
    assert with_formulas == [*words, "$A^{T}", "$A^{T}", "$A^{T}Ax=A^{T}b", "$A=QR"]


COMMANDS = r"\frac|\sqrt|\hat|\text{|\begin{bmatrix}|\end{bmatrix}|\\|\(|\)|\[|$$|det|sin|rank "
pieces = st.sampled_from([*"abxAI012=+-^_{}()[]|$\\<>.,;'&*/! \nλΣ²ᵀ₁≤∑√é特", *COMMANDS.split("|"), " the "])
texts = st.one_of(st.text(max_size=30), st.lists(pieces, max_size=25).map("".join))


@given(text=texts)
def test_any_text_is_read_and_reading_twice_is_reading_once(text):
    once = normalise(text)
    assert normalise(once) == once
    assert isinstance(formula_tokens(text), list)
    if not re.search(r"\W", text):
        assert once == text or "_" in text or not text.isascii()


@given(before=st.sampled_from(PROSE[:2]), formula=st.sampled_from([row[0] for row in PARITY]))
def test_prose_around_a_formula_stays(before, formula):
    parts = split_formulas(f"{before} {formula} of it")
    assert [part for is_formula, part in parts if not is_formula and part] == [f"{before} ", " of it"]
