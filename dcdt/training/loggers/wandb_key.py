"""The key of Weights & Biases, and the mode that follows from it; wandb itself is not imported."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")  # of wandb


def mode_of(mode: str) -> Any:  # noqa: ANN401 - wandb's literal
    """The mode of a new run: for `auto` $WANDB_MODE, else `online` where a key is configured, else `offline`.

    Raises:
        UserError: the mode is online and no key is configured, or $WANDB_MODE is no mode.
    """
    if mode == "auto":
        chosen = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        if chosen not in MODES:
            raise UserError(f"WANDB_MODE is {one_line(chosen)}; it must be one of {', '.join(MODES)}.")
        return chosen
    if mode == "online" and not has_key():
        raise UserError(
            "logger.mode=online: no W&B key is configured.\nRun `wandb login`, or choose logger.mode=offline."
        )
    return mode


def offline_subject(subject: str, mode: str | None) -> str:
    """The beginning of a message that something stays offline, with the reason where the user did not choose it."""
    is_chosen = mode == "offline" or os.environ.get("WANDB_MODE") == "offline"
    return subject if is_chosen or has_key() else f"no key configured, so {subject}"


def has_key() -> bool:
    """Whether a W&B key is in the environment or in the netrc file, where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or Path.home() / (".netrc" if os.name != "nt" else "_netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
