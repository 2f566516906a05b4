"""Read the pictures of videos: `images/`, files named by video id, of which those that are not safe are not decoded."""

import hashlib
import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageOps  # matplotlib and rapidocr need it
from rich.progress import track

from dcdt.utils.errors import UserError
from dcdt.utils.text import join_names, one_line

MAX_RATIO = 8  # of the sides: models enlarge the shorter one, however long the other gets
T = TypeVar("T")


class Picture(str):
    """The digest of a picture's content, by which a cache finds it, with the path of its file."""

    path: Path


def read_pictures(
    folder: Path, ids: Collection[str], read: Callable[[Picture], T], progress: bool = True
) -> tuple[list[tuple[str, float | None, T]], list[str]]:
    """Read the pictures of a collection's videos in the order of their names.

    Args:
        folder: of the collection.
        ids: of its videos.
        read: is given each picture; a ValueError says why it cannot be read.
        progress: whether to show a bar.

    Returns:
        Video, second (None where the name has none) and what `read` made of each; what was left out, a sentence each.

    Raises:
        UserError: no picture is named by a video's id and can be read.
    """
    images, done = folder / "images", list[tuple[str, float | None, T]]()
    left_out: dict[str, list[str]] = {"pictures that cannot be read": [], "files not named by a video's id": []}
    unreadable, unknown = left_out.values()
    files = [path for path in images.rglob("*") if path.name[0] != "." and not (path.is_dir() and any(path.iterdir()))]
    for path in track(sorted(files, key=lambda path: (len(path.name), path)), "reading", disable=not progress):
        name = path.relative_to(images).as_posix()
        stem = name.removesuffix(path.suffix)
        *_, video = "", *(stem[:n] for n in range(len(stem) + 1) if stem[:n] in ids and not stem[n : n + 1].isalnum())
        if not video or not path.is_file():
            unknown.append(name)
            continue
        time = re.search(r"(\d+(?:\.\d+)?)s$", stem[len(video) :])
        try:
            with path.open("rb") as file:
                picture = Picture(hashlib.file_digest(file, "sha256").hexdigest())
            picture.path = path
            done.append((video, float(time[1]) if time else None, read(picture)))
        except (OSError, ValueError) as error:
            unreadable.append(f"{name} ({one_line(error)})")
    notes = [f"{images}: {len(names):,} {what}: {join_names(names[:3])}." for what, names in left_out.items() if names]
    if not done:
        raise UserError("\n".join([*notes, f"{images} must hold pictures named by a video's id, such as ID.png."]))
    return done, notes


def open_picture(path: Path) -> Image.Image:
    """Decode a picture on white, of an animation the first; a ValueError says why it cannot be read, or is not safe."""
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            picture: Image.Image = Image.open(file, formats=("PNG", "JPEG", "WEBP", "GIF", "BMP"))
            if max(picture.size) > MAX_RATIO * min(picture.size):
                raise ValueError(f"sides of {picture.width} and {picture.height} pixels, more than {MAX_RATIO} to 1")
            picture = ImageOps.exif_transpose(picture).convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    except Exception as error:  # decoders raise errors of any kind where a picture is damaged
        raise ValueError(one_line(str(error).partition(" <")[0] or repr(error))) from error
