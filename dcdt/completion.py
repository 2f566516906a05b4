"""Complete commands, options and keys with the tab key: `eval "$(python -m dcdt.completion bash)"`."""

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
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
        if len(words) == 3:
            return _starting(words[2], (f"dcdt.{name}" for name in COMMANDS))
        words = ["dcdt", words[2].removeprefix("dcdt."), *words[3:]]
    name, word = words[1], words[-1]
    if len(words) == 2:
        return _starting(word, COMMANDS)
    if name in ("run", "embed"):
        return _override(word)
    runs = sorted(path.parent.name for path in outputs_root().glob("*/status.json"))
    return _starting(word, ["latest", *runs]) if name in ("recommend", "index", "serve", "report", "runs") else []


def _override(word: str) -> list[str]:
    """Complete an override: the option of a group, a key of a group, or a group or a key without one."""
    files = {path.name: sorted(path.glob("*.yaml")) for path in sorted(config_folder().iterdir()) if path.is_dir()}
    group, is_option, _ = word.partition("=")
    if is_option:
        return _starting(word, (f"{group}={path.stem}" for path in files.get(group, [])))
    group, is_key, _ = word.partition(".")
    if is_key:
        return _starting(word, sorted({f"{group}.{key}=" for path in files.get(group, []) for key in _keys(path)}))
    return _starting(word, [f"{name}{end}" for name in files for end in "=."] + [f"{key}=" for key in _keys()])


def _keys(path: Path | None = None) -> list[str]:
    text = (path or config_folder() / "config.yaml").read_text(encoding="utf-8")
    return [key for key in re.findall(r"^(\w+):", text, re.MULTILINE) if key not in ("defaults", "name")]


def _starting(start: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(start)]


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
