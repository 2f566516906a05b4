"""Write docs/configuration.md from conf/: `python docs/generate.py`; a test says when it is out of date."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONF, PAGE = ROOT / "conf", ROOT / "docs" / "configuration.md"
GROUPS = {
    "model": "what is trained or compared",
    "loss": "what training minimises; models that are not trained read none",
    "sampler": "which videos a query is held against in training",
    "data": "the collection and its vectors",
    "split": "how queries are divided",
    "embedder": "what turns texts into vectors",
    "trainer": "the device and the length of training",
    "logger": "where curves and tables are shown, beside the files of the run",
    "callbacks": "what happens around training",
    "experiment": "presets, each a small change of the above; null by default",
}
HEAD = """# Configuration

Made from `conf/` by `python docs/generate.py`. A group is chosen as `group=option`, a value as `group.key=value`, a key
of its own as `key=value`. `python -m dcdt.run --help` lists the groups, `--cfg job` prints the whole configuration
without running it. Options of your own: `--config-dir FOLDER`, with `FOLDER/model/mine.yaml` for `model=mine`.
"""


def option(path: Path) -> str:
    """One option: what choosing it means (the file's first comment), and the file."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    meaning = lines[0].removeprefix("#").strip()
    return "\n".join([f"### {path.parent.name}={path.stem}", "", meaning, "", "```yaml", *lines[1:], "```", ""])


def page() -> str:
    """The whole page."""
    root = (CONF / "config.yaml").read_text(encoding="utf-8").splitlines()
    parts = [HEAD, "## Defaults and keys of their own\n", "\n".join(["```yaml", *root[1:], "```", ""])]
    for group, words in GROUPS.items():
        parts.append(f"## {group}: {words}\n")
        parts += [option(path) for path in sorted((CONF / group).glob("*.yaml"))]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
