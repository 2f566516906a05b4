"""Whether Weights & Biases can be reached with a key, and what follows from it; wandb itself is not imported."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dcdt.utils.errors import UserError


def mode_of(wanted: str) -> Any:  # noqa: ANN401 - wandb's literal
    """`online` where a key is configured, else `offline`; $WANDB_MODE is obeyed.

    Raises:
        UserError: online is asked for without a key.
    """
    if wanted == "auto":
        return os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    if wanted == "online" and not has_key():
        raise UserError(
            "logger.mode=online: no W&B key is configured.\nRun `wandb login`, or choose logger.mode=offline."
        )
    return wanted


def named(what: str, mode: str | None) -> str:
    """What stays offline, and why where nobody chose it (`logger.mode`, $WANDB_MODE)."""
    chosen = mode == "offline" or os.environ.get("WANDB_MODE") == "offline"
    return what if chosen or has_key() else f"no key configured, so {what}"


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
