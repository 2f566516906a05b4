"""The documentation says what the code does."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_configuration_reference_is_that_of_conf():
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert (ROOT / "docs" / "configuration.md").read_text() == made["page"](), "run: python docs/generate.py"
    folders = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra"}
    assert folders == set(made["GROUPS"])


def test_the_tables_of_performance_are_those_of_the_results():
    made = runpy.run_path(str(ROOT / "docs" / "performance.py"))
    text = (ROOT / "docs" / "performance.md").read_text()
    assert made["page"](text) == text, "run: python docs/performance.py"
    assert text.count("<!-- results: ") == text.count("<!-- end -->") >= 10
