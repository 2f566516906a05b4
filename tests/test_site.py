"""The docs site: built strictly, with every link checked, and nothing in it fetched from another site."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dcdt

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=[\"']?(?:https?:)?//"
)
FETCHED_STYLE = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` does; a warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", CONFIG, "-d", folder]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_of_the_documentation_is_there(site):
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 30
    for page in pages:
        name = page.with_name("index.html") if page.name == "README.md" else page.with_suffix(".html")
        assert (site / name).is_file(), page
    assert "Which teaching video answers" in (site / "index.html").read_text(), "README is the first page"
    assert not list(site.rglob("*.py")), "scripts are no pages"


def test_the_reference_has_the_whole_public_api(site):
    text = (site / "reference.html").read_text()
    functions = [getattr(dcdt, name) for name in dcdt.__all__ if callable(getattr(dcdt, name))]
    missing = [one.__name__ for one in functions if f'id="{one.__module__}.{one.__name__}"' not in text]
    assert len(functions) == 5 and not missing, missing
    for name in ("models.recommender.Recommender", "models.pairs.PairRecommender.match", "losses.base.Loss.compute"):
        assert f'id="dcdt.{name}"' in text, name
    assert "Recommend the best k videos for each question." in text


def test_a_link_to_code_leads_to_a_page_that_shows_it(site):
    page = site / "source" / "conf" / "model" / "dcdt_ridge.yaml.html"
    assert 'href="source/conf/model/dcdt_ridge.yaml.html"' in (site / "configuration.html").read_text()
    assert "penalty" in page.read_text()


def test_nothing_is_fetched_from_another_site(site):
    pages, styles = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert pages and styles
    for path in pages:
        text = path.read_text()
        assert not FETCHED.search(text), (path, FETCHED.search(text))
        assert 'class="mermaid"' not in text, f"{path}: the theme would fetch mermaid"
    for path in styles:
        assert not FETCHED_STYLE.search(path.read_text()), path
