"""Whether a folder is a finished run."""

from pathlib import Path

from dcdt.errors import UserError
from dcdt.files import read_json


def require_finished(run: Path) -> None:
    """Refuse a folder that is no finished run.

    Raises:
        UserError: says what it is instead.
    """
    status = read_json(run / "status.json")
    if not status:
        raise UserError(f"{run} is not a run: it has no status.json. Give the folder that python -m dcdt.run printed.")
    if status.get("status") != "finished":
        reason = f": {status['error']}" if status.get("error") else ""
        raise UserError(f"{run} is {status.get('status')}{reason}. Give the folder of a finished run.")
