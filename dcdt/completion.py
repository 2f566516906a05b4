"""Complete commands, options and keys with the tab key: `eval "$(python -m dcdt.completion bash)"`."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dcdt.cli import COMMANDS, Parser, command
from dcdt.config.paths import config_folder, outputs_root

SCRIPT = """_dcdt() {{
  COMPREPLY=()
  [[ "${{COMP_WORDS[0]##*/}}" != python* || "${{COMP_WORDS[*]:1:2}}" == "-m dcdt"* ]] || return
  mapfile -t COMPREPLY < <({python} -m dcdt.completion words "${{COMP_WORDS[@]:0:COMP_CWORD+1}}" 2>/dev/null)
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o bashdefault -o default -F _dcdt dcdt python python3
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def complete(words: Sequence[str]) -> list[str]:
    """Complete the last of the words of a command line; where nothing fits, the shell completes names of files.

    >>> complete(["dcdt", "rec"]), complete(["python", "-m", "dcdt.run", "model=zero_shot_w"])
    (['recommend'], ['model=zero_shot_whitened'])
    """
    if words[1:2] == ["-m"]:
        words = [words[2], *words[2:]]
    start = "dcdt." if words[0].startswith("dcdt.") else ""
    name, word, names = words[1].removeprefix(start), words[-1], list[str]()
    if len(words) == 2:
        names = [f"{start}{one}" for one in COMMANDS]
    elif name in ("run", "embed"):
        names = _overrides(word)
    elif name in ("recommend", "index", "serve", "report", "runs", "export"):
        names = ["latest", *sorted(path.parent.name for path in outputs_root().glob("*/status.json"))]
    return [one for one in names if one.startswith(word)]


def _overrides(word: str) -> list[str]:
    """List the options of a group before `=`, the keys of a group before a dot, else all groups and other keys."""
    files = {path.name: sorted(path.glob("*.yaml")) for path in sorted(config_folder().iterdir()) if path.is_dir()}
    group, end, _ = word.partition("=" if "=" in word else ".")
    if end == "=":
        return [f"{group}={path.stem}" for path in files.get(group, [])]
    if end == ".":
        return sorted({f"{group}.{key}=" for path in files.get(group, []) for key in _keys(path)})
    return [f"{name}{end}" for name in files for end in "=."] + [
        f"{key}=" for key in _keys(config_folder() / "config.yaml")
    ]


def _keys(path: Path) -> list[str]:
    keys = re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [key for key in keys if key not in ("defaults", "name")]


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["words"]:  # of the script; they may be options of another command
        print("\n".join(complete(given[1:])))  # noqa: T201
        return
    parser = Parser("completion", description='Print a script for a shell: eval "$(dcdt completion bash)"')
    parser.add_argument("shell", choices=("bash", "zsh"), help="whose ~/.bashrc or ~/.zshrc holds that line")
    shell = parser.parse_args(given).shell
    print((ZSH if shell == "zsh" else "") + SCRIPT.format(python=shlex.quote(sys.executable)))  # noqa: T201


if __name__ == "__main__":
    main()
