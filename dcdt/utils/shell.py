"""Commands of the package as a user can paste them into a shell."""

import re
import shlex
import sys

_PLAIN = re.compile(
    r"(?!(true|false|null|nan|inf)$)[a-z/][\w/.+-]*", re.IGNORECASE | re.ASCII
)  # Hydra reads it as text


def program(command: str) -> str:
    """The name of a command as the user has typed this one: `dcdt run`, or `python -m dcdt.run`."""
    return f"dcdt {command}" if sys.argv[0].startswith("dcdt ") else f"python -m dcdt.{command}"


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
