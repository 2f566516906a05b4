"""Recognise the text on slides: `images/`, pictures named by video id, becomes slides.jsonl."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps  # matplotlib and rapidocr need it
from rich.progress import track

from dcdt.data.table_reader import read_json_lines
from dcdt.data.transcripts import SLIDES
from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.files import refuse_outside_links, write_text
from dcdt.utils.text import join_names, one_line, pluralize

MAX_RATIO = 8  # of the sides: rapidocr enlarges the shorter one to 736 pixels, however long the other gets


def recognise_slides(folder: Path, ids: Collection[str]) -> list[str]:
    """Write the text on pictures to slides.jsonl, and return what was read and what was left out, a sentence each.

    Raises:
        UserError: no picture is named by a video's id and can be read, or rapidocr is missing.
    """
    images, store, path, new = folder / "images", folder / ".recognised", folder / SLIDES, dict[str, Any]()
    refuse_outside_links(store, folder)
    engine, unreadable, unknown = _load_engine(), list[str](), list[str]()
    files = [path for path in images.rglob("*") if path.name[0] != "." and not (path.is_dir() and any(path.iterdir()))]
    for picture in track(sorted(files, key=lambda path: (len(path.name), path)), "reading"):
        name = picture.relative_to(images).as_posix()
        stem = name.removesuffix(picture.suffix)
        *_, video = "", *(stem[:n] for n in range(len(stem) + 1) if stem[:n] in ids and not stem[n : n + 1].isalnum())
        if not video or not picture.is_file():
            unknown.append(name)
            continue
        time = re.search(r"(\d+(?:\.\d+)?)s$", stem[len(video) :])
        try:
            segment = {"start": float(time[1]) if time else None, "text": _recognise(picture, store, engine)}
            new.setdefault(video, {"_id": video, "segments": []})["segments"].append(segment)
        except ValueError as error:
            unreadable.append(f"{name} ({error})")
    left_out = {"pictures that cannot be read": unreadable, "files not named by a video's id": unknown}
    notes = [f"{images}: {len(names):,} {what}: {join_names(names[:3])}." for what, names in left_out.items() if names]
    if not new:
        raise UserError("\n".join([*notes, f"{images} must hold pictures named by a video's id, such as ID.png."]))
    old = {str(record["_id"]): record for _, record in read_json_lines(path)} if path.is_file() else {}
    write_text(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in (old | new).values()))
    return [f"{path}: text of {pluralize(len(new), 'video')}, which model.fields=[title,text,slides] reads.", *notes]


def _recognise(path: Path, store: Path, engine: Callable[[Image.Image], Any]) -> str:
    """Read the text on a picture, of an animation the first; a ValueError says why it cannot be read."""
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            known = store / f"{hashlib.file_digest(file, 'sha256').hexdigest()}.txt"
            if known.is_file():
                return known.read_text(encoding="utf-8")
            picture: Image.Image = Image.open(file, formats=("PNG", "JPEG", "WEBP", "GIF", "BMP"))
            if max(picture.size) > MAX_RATIO * min(picture.size):
                raise ValueError(f"sides of {picture.width} and {picture.height} pixels, more than {MAX_RATIO} to 1")
            picture = ImageOps.exif_transpose(picture).convert("RGBA")
    except Exception as error:  # decoders raise errors of any kind where a picture is damaged
        raise ValueError(one_line(str(error).partition(" <")[0] or repr(error))) from error
    picture.thumbnail((2000, 2000))  # rapidocr reads no more
    write_text(known, " ".join(engine(picture).txts or ()))
    return known.read_text(encoding="utf-8")


def _load_engine() -> Callable[[Image.Image], Any]:
    """Load rapidocr with the models in its package, by their paths: it would download those that it does not find."""
    with needs_extra("reading slides", "ocr", "rapidocr"):
        import rapidocr
    models = Path(rapidocr.__file__).parent / "models"
    paths = {
        f"{part}.model_path": max(models.glob(f"*_{part.lower()}_*"), default=models) for part in ("Det", "Cls", "Rec")
    }
    return rapidocr.RapidOCR(params={"Global.log_level": "critical", **paths})
