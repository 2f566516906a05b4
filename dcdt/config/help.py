"""The words of `--help`: every option of every group, and every key, with the comments of conf/."""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dcdt.config.paths import config_folder

_KEY = re.compile(r"^( *)(\w+):(?: |$)")


def option_list() -> str:
    """List the options of every group, each with the first comment of its file."""
    lines = []
    for group in sorted(path for path in config_folder().iterdir() if path.is_dir() and path.name != "hydra"):
        options = {path.stem: path for path in sorted(group.glob("*.yaml"))}
        width = max(map(len, options))
        lines += [f"{group.name}:", *(f"  {name:<{width}}  {_meaning(path)}" for name, path in options.items()), ""]
    return _escape("\n".join(lines))


def _meaning(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("#").strip() for line in lines if not line.startswith("# @package")), "")


def commented_config(root: DictConfig) -> str:
    """The configuration as YAML, each key with the comment that it has in conf/."""
    plain: Any = OmegaConf.masked_copy(root, [str(key) for key in root if key != "hydra"])
    comments, lines, group = _comments(config_folder() / "config.yaml"), [], ""
    for line in OmegaConf.to_yaml(plain).splitlines():
        match = _KEY.match(line)
        if match and not match[1]:
            group = match[2]
            option = OmegaConf.select(root, "hydra.runtime.choices").get(group)
            of_group = _comments(config_folder() / group / f"{option}.yaml")
        depth = len(match[1]) if match else -1
        words = (
            comments.get(match[2]) if match and not depth else of_group.get(match[2]) if match and depth == 2 else ""
        )
        lines.append(f"{line}  # {words}" if words else line)
    return _escape("\n".join(lines) + "\n")


def _comments(path: Path) -> dict[str, str]:
    """Comments of the keys of a file and of the one that it starts from, by key."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    parents = re.findall(r"^defaults: \[(\w+)\]|^  - (\w+)$", text, re.MULTILINE)
    inherited = [_comments(path.with_name(f"{one or other}.yaml")) for one, other in parents]
    own = dict(re.findall(r"^(\w+):[^#\n]*# (.*)$", text, re.MULTILINE))
    return {key: words for part in [*inherited, own] for key, words in part.items()}


def _escape(text: str) -> str:
    return text.replace("$", "$$")  # Hydra fills in a template
