"""A finished run for another library: `python -m dcdt.export RUN --to sentence-transformers FOLDER`."""

from collections.abc import Sequence

from dcdt.cli import Parser, command
from dcdt.config.paths import run_path
from dcdt.utils.errors import exit_on_user_error
from dcdt.utils.shell import user_path


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("export", description="Write a finished run for another library.")
    parser.add_argument("run", metavar="RUN", type=run_path, help="the run's folder, or latest")
    parser.add_argument("--to", required=True, choices=("sentence-transformers",), help="the library that loads it")
    parser.add_argument("folder", metavar="FOLDER", type=user_path, help="a new folder")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        from dcdt.adapters.sentence_transformers import export_run

        print(f"load it: {export_run(options.run, options.folder)}")  # noqa: T201


if __name__ == "__main__":
    main()
