"""Paths of an exported run: RUN/serving/ has one folder a build, and a pointer to the current one.

serving/current.json     which build, which version of its catalogue; replaced whole, so it is what a change commits to
serving/<build>/         model.json, *.onnx, embedder/, catalogue/ (LanceDB), snapshot-<version>.arrow, *.faiss
serving/<build>/checksums.json   of the files of a build but its table, compared when they are opened
serving/.lock            held by the one process that changes the catalogue
"""

import fcntl
import hashlib
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dcdt.utils.errors import UserError
from dcdt.utils.files import checksum, read_json, refuse_outside_links, remove_abandoned, write_json
from dcdt.utils.shell import shell_command
from dcdt.utils.text import one_line

FOLDER, POINTER, LOCK, MODEL, CATALOGUE, EMBEDDER = (
    "serving", "current.json", ".lock", "model.json", "catalogue", "embedder",
)  # fmt: skip
CHECKSUMS = "checksums.json"
LOCK_SECONDS = 10.0
BUILD = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,99}")  # a name, never a path


@dataclass(frozen=True)
class Pointer:
    """The content of current.json: the build, the version of its catalogue, and the version of its snapshot."""

    build: str
    version: int
    snapshot: int

    @property
    def snapshot_name(self) -> str:
        """File name of the snapshot inside the build."""
        return f"snapshot-{self.snapshot}.arrow"


def fingerprint(run: Path) -> str:
    """Hash of what makes a run's answers: configuration, chosen trial and weights.

    Raises:
        UserError: the run has no saved state.
    """
    digest = hashlib.sha256()
    for name in ("config.yaml", "tuning.json", "checkpoints/best.ckpt"):
        path = run / name
        if path.is_file():
            digest.update(path.read_bytes())
        elif name != "tuning.json":
            raise UserError(f"{run} has no saved state ({name}). Train it again: python -m dcdt.run.")
    return digest.hexdigest()[:16]


def read_pointer(run: Path) -> Pointer | None:
    """Read the current build; None where there is none yet.

    Raises:
        UserError: the file names no build of this folder.
    """
    path = run / FOLDER / POINTER
    if not path.exists():
        return None
    content = read_json(path)
    build, version, snapshot = content.get("build"), content.get("version"), content.get("snapshot")
    if (
        not isinstance(build, str)
        or not BUILD.fullmatch(build)
        or not isinstance(version, int)
        or not isinstance(snapshot, int)
        or content.get("checksum") not in (None, _checksum(Pointer(build, version, snapshot)))
    ):
        raise UserError(
            f"{path} is corrupt: it names no build of this folder, or has changed since it was written.\n"
            f"Put the old file back. Else {shell_command('index', run, 'build')} starts anew, without later changes."
        )
    return Pointer(build, version, snapshot)


def write_pointer(run: Path, pointer: Pointer) -> None:
    """Make a build or a version the current one, at once for all readers."""
    write_json(run / FOLDER / POINTER, {**asdict(pointer), "checksum": _checksum(pointer)})


def _checksum(pointer: Pointer) -> int:
    return zlib.crc32(repr(pointer).encode())


def write_checksums(folder: Path) -> None:
    """Write the checksums of the files of a build beside them; only those of snapshots ever change."""
    lasting = {name: sum_ for name, sum_ in read_json(folder / CHECKSUMS).items() if not name.startswith("snapshot-")}
    sums = {path.name: lasting.get(path.name) or checksum(path) for path in _checked_files(folder)}
    write_json(folder / CHECKSUMS, sums)


def check_files(folder: Path, is_checked: Callable[[str], bool]) -> None:
    """Compare files of a build with their checksums, those whose name `is_checked`.

    Raises:
        UserError: one has changed since it was written.
    """
    sums = read_json(folder / CHECKSUMS)
    if not sums and (folder / CHECKSUMS).exists():
        raise UserError(f"{folder / CHECKSUMS} is corrupt.")
    for path in _checked_files(folder):
        if is_checked(path.name) and path.name in sums and sums[path.name] != checksum(path):
            raise UserError(f"{path} is corrupt: its checksum has changed since it was written.")


def _checked_files(folder: Path) -> list[Path]:
    """Return graphs, arrays, indexes, snapshots and JSON of a build; of its embedder the recipe holds checksums."""
    files = (path for path in folder.iterdir() if path.name != CHECKSUMS and path.suffix not in ("", ".tmp"))
    return [path for path in files if path.is_file()]


@contextmanager
def exclusive_lock(run: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of a run's catalogue, which dies with its process.

    Raises:
        UserError: another process holds it for too long, or the folder cannot be written or leads out of the run.
    """
    folder = run / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_outside_links(folder, run)
        handle = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from error
    with handle:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    handle.seek(0)
                    owner = one_line(handle.read(100)) or "another process"
                    raise UserError(
                        f"{owner} is changing {folder}.\nWait for it, then try again; nothing was changed."
                    ) from None
                time.sleep(0.05)
        with suppress(OSError):  # a full disk
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), f"process {os.getpid()} (since {time.ctime()})".encode())
        for path in (folder, *folder.iterdir()):
            remove_abandoned(path)
        yield
