"""What a shell does: commands as a user can paste them, and ~ in paths."""

import os
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path

_PLAIN = re.compile(
    r"(?!(true|false|null|nan|inf)$)[a-z/][\w/.+-]*", re.IGNORECASE | re.ASCII
)  # Hydra reads it as text


def user_path(text: str | Path) -> Path:
    """A path with ~ expanded, which shells do not do in --out=~/x, in overrides and in variables."""
    return Path(os.path.expanduser(text))


def expand_overrides(arguments: list[str]) -> list[str]:
    """Expand ~ in the values of overrides.

    >>> expand_overrides(["data.path=a~/b", "~data.path", "x=~"])[:2]
    ['data.path=a~/b', '~data.path']
    """
    home = re.compile(r"""(?<=[=,\[])(["']?)~(?=[/,\]"']|$)""")
    return [home.sub(lambda match: match[1] + os.path.expanduser("~"), text) for text in arguments]


def program(command: str) -> str:
    """The name of a command as the user has typed this one: `dcdt run`, or `.venv/bin/python -m dcdt.run`."""
    if sys.argv[0].startswith("dcdt "):
        return f"dcdt {command}"
    typed = any(flag == "-m" and name.startswith("dcdt.") for flag, name in pairwise(sys.orig_argv))
    return f"{shlex.quote(sys.orig_argv[0]) if typed else 'python'} -m dcdt.{command}"


def shell_command(command: str, *arguments: object) -> str:
    """A command with its arguments, quoted for a shell.

    >>> shell_command("index", "my run", "build")
    "python -m dcdt.index 'my run' build"
    """
    return " ".join([program(command), *(shlex.quote(str(one)) for one in arguments)])


def override(key: str, value: object) -> str:
    r"""An override of the configuration, quoted for Hydra where its value would be more than a text.

    >>> override("data.path", "outputs/run"), override("data.path", "my videos (1)"), override("name", "2024_01")
    ('data.path=outputs/run', 'data.path="my videos (1)"', 'name="2024_01"')
    """
    if _PLAIN.fullmatch(str(value)):
        return f"{key}={value}"
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + match[2].replace('"', r"\""), str(value))
    return f'{key}="{escaped}"'
