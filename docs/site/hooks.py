"""Hooks of the docs site: README is its first page, and files outside docs/ that pages link to have pages of their own.

Pages stay as they are in the repository, where their links work too; a link that leads nowhere fails a strict build.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
AT_THE_TOP = {"README.md": "index.md", "CHANGELOG.md": "changes.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:)[^)#\s]+")


def page_of(path: str) -> str:
    """The page of the site for a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return AT_THE_TOP.get(path) or f"source/{path.removesuffix('.md')}.md"


def links_of(path: str, text: str) -> dict[str, str]:
    """Files of the repository that a text links to, by their links."""
    return {link: os.path.normpath(Path(path).parent / link) for link in LINK.findall(text)}


def shown(path: str) -> str:
    """A file outside docs/ as Markdown."""
    text = (ROOT / path).read_text(encoding="utf-8")
    head = "---\nsearch: {exclude: true}\n---\n"
    return text if path.endswith(".md") else f"{head}# {path}\n\n````{Path(path).suffix[1:]}\n{text}````\n"


def on_config(config: MkDocsConfig) -> None:
    """Add the pages of measured results to their section of the navigation."""
    (section,) = [entry["Results"] for entry in config.nav if "Results" in entry]
    pages = {f"results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.md")}
    section += sorted(pages - set(section))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README, the changes, and the files outside docs/ that pages link to."""
    sources = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    waiting = [*AT_THE_TOP, *(target for path in sources for target in links_of(path, sources[path]).values())]
    while waiting:
        path = waiting.pop()
        page = page_of(path)
        if files.get_file_from_path(page) is None and (ROOT / path).is_file():
            text = shown(path)
            file = File.generated(config, page, content=text)
            file.original = path
            files.append(file)
            waiting += links_of(path, text).values() if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    path = getattr(page.file, "original", f"docs/{page.file.src_uri}")
    links = links_of(path, markdown)
    here = Path(page.file.src_uri).parent

    def renamed(match: re.Match[str]) -> str:
        target = page_of(links[match[0]])
        return match[0] if files.get_file_from_path(target) is None else os.path.relpath(target, here)

    return LINK.sub(renamed, markdown)
