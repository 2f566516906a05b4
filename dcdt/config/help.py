"""The words of `--help`: every option of every group, and every key, with the comments of conf/."""

import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dcdt.config.paths import config_folder


def option_list() -> str:
    """List the options of every group, each with the first comment of its file."""
    lines = []
    for group in sorted(path for path in config_folder().iterdir() if path.is_dir() and path.name != "hydra"):
        texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(group.glob("*.yaml"))}
        meanings = {
            name: re.sub("^# @package.*\n", "", text).split("\n")[0].lstrip("# ") for name, text in texts.items()
        }
        width = max(map(len, texts))
        lines += [f"{group.name}:", *(f"  {name:<{width}}  {meaning}" for name, meaning in meanings.items()), ""]
    return _escape(lines)


def commented_config(root: DictConfig) -> str:
    """Write the configuration as YAML, each key with the comment that it has in conf/."""
    text = OmegaConf.to_yaml(OmegaConf.masked_copy(root, [str(key) for key in root if key != "hydra"]))
    comments, lines = {"": _comments(config_folder() / "config.yaml")}, []
    group = ""
    for line in text.splitlines():
        indent, key = re.findall(r"^( *)(\w*)", line)[0]
        if key and not indent:
            group = key
            option = root.hydra.runtime.choices.get(group)
            comments[group] = _comments(config_folder() / group / f"{option}.yaml")
        words = comments[group if indent else ""].get(key) if len(indent) in (0, 2) else None
        lines.append(f"{line}  # {words}" if words else line)
    return _escape([*lines, ""])


def _comments(path: Path) -> dict[str, str]:
    """Return the comments of the keys of a file and of the one that it starts from, by key."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    inherited: dict[str, str] = {}
    for name in re.findall(r"^(?:defaults: \[|  - )(\w+)\]?$", text, re.MULTILINE):
        inherited |= _comments(path.with_name(f"{name}.yaml"))
    return inherited | dict(re.findall(r"^(\w+):[^#\n]*# (.*)$", text, re.MULTILINE))


def _escape(lines: list[str]) -> str:
    return "\n".join(lines).replace("$", "$$")  # Hydra fills in a template
