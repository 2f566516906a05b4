"""Open a run on Weights & Biases, online or offline."""

import logging
import sys
from pathlib import Path
from typing import Any

import wandb

from dcdt.utils.errors import UserError
from dcdt.utils.redaction import redact_values
from dcdt.utils.text import one_line

log = logging.getLogger("dcdt")
INIT_SECONDS = 30  # to wait for W&B at the start of a run
MAX_NAME_CHARS, MAX_TAG_CHARS = 128, 64  # that W&B takes


def start_run(
    folder: Path,
    mode: Any,  # noqa: ANN401 - wandb's literal
    require_online: bool,
    console: bool,
    machine: bool,
    **init_options: Any,  # noqa: ANN401 - wandb's
) -> tuple[wandb.Run, Any]:
    """Open a quiet run with its files in `folder/wandb`; an open run is closed first.

    Where W&B does not answer, the run stays offline, unless the user requires online.

    Args:
        folder: above `wandb`.
        mode: online, offline or disabled.
        require_online: whether to refuse instead of staying offline.
        console: whether what this process prints is part of the run.
        machine: whether the use of processor, memory and GPU is.
        init_options: for `wandb.init`.

    Returns:
        The run and its mode.

    Raises:
        UserError: W&B does not answer, or refuses, and online is required.
    """
    try:
        settings = wandb.Settings(
            silent=True, console="wrap" if console else "off", x_save_requirements=False, x_disable_stats=not machine
        )
    except ValueError as error:  # of pydantic: a variable of the environment
        raise UserError(f"the environment's settings of W&B are refused: {one_line(error, 200)}") from error
    settings.init_timeout = settings.login_timeout = INIT_SECONDS
    init_options, sys.argv[1:] = redact_values(init_options), redact_values(sys.argv[1:])  # wandb records both
    for name in init_options.keys() & {"name", "group", "job_type"}:
        init_options[name] = init_options[name] and init_options[name][:MAX_NAME_CHARS]
    init_options["tags"] = list(dict.fromkeys(tag[:MAX_TAG_CHARS] for tag in init_options.get("tags", [])))
    try:
        run = wandb.init(
            dir=folder, mode=mode, save_code=False, reinit="finish_previous", settings=settings, **init_options
        )
        return run, mode
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0]
        if require_online or mode == "offline":
            raise UserError(f"W&B cannot be used ({reason}).\nChoose logger.mode=offline, or logger=csv.") from error
    log.warning("W&B cannot be used (%s): the run stays offline.", reason)
    return start_run(folder, "offline", require_online, console, machine, **{**init_options, "resume": None})
