"""Write docs/configuration.md from conf/: `python docs/generate.py`; a test says when it is out of date."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONF, PAGE = ROOT / "conf", ROOT / "docs" / "configuration.md"
GROUPS = {
    "model": "what is trained or compared ([models](models.md))",
    "loss": "what training minimises; models that are not trained read none",
    "sampler": "which videos are the negatives of a query in training",
    "data": "the collection and its vectors ([your data](your_data.md))",
    "split": "how queries are divided",
    "embedder": "what turns texts into vectors ([embeddings](embeddings.md))",
    "image_embedder": "what turns pictures into vectors; null by default ([embeddings](embeddings.md#pictures))",
    "optimizer": "how weights follow their gradients, and the schedule of the learning rate",
    "trainer": "the device and the length of training ([scaling](scaling.md))",
    "logger": "where curves and tables go, beside the files of the run ([runs](runs.md))",
    "callbacks": "early stopping, warnings and the progress bar",
    "experiment": "presets, each a small change of the above; null by default",
    "hydra/launcher": "where the jobs of a sweep run ([scaling](scaling.md)); one after the other by default",
}
HEAD = """# Configuration

Made from `conf/` by `python docs/generate.py`. Choose an option of a group as `group=option`, and set a value as
`group.key=value` or `key=value`. `python -m dcdt.run --help` prints the groups and all values, `--cfg job` the
configuration of a command without running it. Each option below links to its file, where every value has its default
and a comment. Options of your own: `--config-dir FOLDER`, with `FOLDER/model/mine.yaml` for `model=mine`. In a file
write a text that looks like a number, or yes or no, in quotes (`experiment_name: "2024_01"`); on the command line it is
taken as it is written.
"""


def option(path: Path) -> str:
    """One option as a row of its group: its file, what it means (the file's first comment), and the values it sets."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    meaning = lines[0].removeprefix("#").strip().replace("|", "\\|")
    keys = [key for key in re.findall(r"^(\w+):", "\n".join(lines), re.MULTILINE) if key not in ("defaults", "name")]
    row = f"| [{path.stem}](../{path.relative_to(ROOT)}) | {meaning} |"
    return row if path.parent.name == "experiment" else f"{row} {', '.join(f'`{key}`' for key in keys)} |"


def plain_keys() -> list[str]:
    """The keys of conf/config.yaml that belong to no group, with default and comment, a row each."""
    rows, parent = [], ""
    text = (CONF / "config.yaml").read_text(encoding="utf-8").split("experiment: null\n")[1]
    for indent, key, value, comment in re.findall(r"^( *)(\w+):[ ]*([^#\n]*?)[ ]*(?:# (.*))?$", text, re.MULTILINE):
        name = f"{parent}.{key}" if indent else key
        if value:
            rows.append(f"| `{name}` | `{value}` | {comment.replace('|', 'or')} |")
        else:
            parent = key
    return rows


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for group, words in GROUPS.items():
        head = (
            ["| option | what |", "|---|---|"]
            if group == "experiment"
            else ["| option | what | values |", "|---|---|---|"]
        )
        options = [option(path) for path in sorted((CONF / group).glob("*.yaml"))]
        parts.append("\n".join([f"## {group}: {words}\n", *head, *options, ""]))
    parts.append(
        "\n".join(["## Keys without a group\n", "| key | default | what |", "|---|---|---|", *plain_keys(), ""])
    )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
