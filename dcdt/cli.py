"""The `dcdt` command of an installed package: `dcdt run ...` is `python -m dcdt.run ...`, and so for the others."""

import argparse
import io
import re
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, NoReturn

from dcdt.utils.errors import UserError, check_encodable, exit_on_user_error
from dcdt.utils.redaction import redact, redact_output
from dcdt.utils.shell import expand_overrides, program, shell_command
from dcdt.utils.signals import Interrupted, interruptible
from dcdt.utils.text import did_you_mean, one_line

COMMANDS = {
    "run": "train and test one configuration, or a sweep with -m",
    "embed": "fill an embedding cache",
    "report": "finished runs -> tables, statistics, figures, one page",
    "recommend": "a question -> videos, from a finished run",
    "index": "change the catalogue of a finished run without training",
    "serve": "a search page and an HTTP API over a finished run",
    "export": "a finished run for sentence-transformers",
    "runs": "list, show, compare or delete runs",
    "collection": "make, check or copy a collection",
    "federate": "one model of the questions of several schools, which keep them",
    "doctor": "versions, devices, keys, caches, and what to fix",
    "completion": "what a shell needs to complete commands, options and keys with the tab key",
}
MODULES = {"runs": "dcdt.runs.__main__"}  # of commands that are no file of their own
HELP = "\n".join(
    [
        "usage: dcdt COMMAND ...    each command has its own --help",
        "",
        *(f"  {name:<12}{summary}" for name, summary in COMMANDS.items()),
        "",
        "Configurations of your own: dcdt run --config-dir FOLDER model=mine, where FOLDER/model/mine.yaml is yours.",
        "Models and losses of your own: dcdt run plugins=[mine.py] model=mine (docs/extending.md).",
    ]
)


class Parser(argparse.ArgumentParser):
    """The parser of a command without overrides.

    Args:
        command: its name.
        options: of argparse.
    """

    def __init__(self, command: str = "", **options: Any) -> None:  # noqa: ANN401 - argparse's
        super().__init__(**{"prog": program(command), **options})

    def error(self, message: str) -> NoReturn:
        """Print the command that was meant where a value begins with a minus."""
        given, values = list[str](), list[str]()
        for text in sys.argv[1:]:
            is_value = re.match("-[^-].", text) and text[:2] not in self._option_string_actions
            if is_value and given and re.fullmatch("--[^=]+", given[-1]):
                given[-1] += f"={text}"
            else:
                (values if is_value else given).append(text)
        if len(given) < len(sys.argv) - 1:
            name = re.sub("^(.* -m dcdt.|dcdt )", "", self.prog).split()[0]
            after = ["--", *values] if values else []
            message += f"\nFor a value that begins with a minus: {shell_command(name, *given, *after)}"
        super().error(message)


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate the `main` of a command: redact its output, print on any terminal, end in one line at a signal."""

    @wraps(main)
    def run(*arguments: Any) -> None:  # noqa: ANN401 - of the command
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        redact_output()
        with exit_on_user_error():
            for text in sys.argv[1:]:
                check_encodable(text, "the command line")
        try:
            with interruptible():
                main(*arguments)
        except Interrupted as error:
            advice = error.first_advice or "no file is half written; the same command starts again."
            print(f"{error}; {advice}", file=sys.stderr)  # noqa: T201 - the command's own message
            raise

    return run


def prepare_hydra() -> None:
    """Prepare `run` and `embed`; a mistake on the command line ends them with exit code 2."""
    with exit_on_user_error():
        prepare_overrides()


def prepare_overrides() -> None:
    """Check the overrides in `sys.argv`, load plugins, register resolvers.

    Raises:
        UserError: an override holds a key, which would become part of folder names, or names no option.
    """
    from dcdt.config import check_choices, register_resolvers
    from dcdt.config.command_line import load_plugins, name_latest, quote_texts
    from dcdt.config.renames import rename_overrides

    if any(redact(text) != text for text in sys.argv[1:]):
        raise UserError("the command line holds a key or a password; keys are read from the environment only.")
    sys.argv[1:] = expand_overrides(sys.argv[1:])
    load_plugins(sys.argv[1:])
    sys.argv[1:] = quote_texts(rename_overrides(name_latest(sys.argv[1:])))
    check_choices(sys.argv[1:])
    register_resolvers()


def main() -> None:
    """Run a command by its module, which is imported only then."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(HELP)  # noqa: T201 - the command's own message
    elif name == "--version":
        print(import_module("dcdt").__version__)  # noqa: T201
    elif name in COMMANDS:
        sys.argv = [f"dcdt {name}", *sys.argv[2:]]
        import_module(MODULES.get(name, f"dcdt.{name}")).main()
    else:
        reason = f"'{one_line(name)}' is no command; choose one of {', '.join(COMMANDS)}.{did_you_mean(name, COMMANDS)}"
        print(f"error: {reason}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)


if __name__ == "__main__":
    main()
