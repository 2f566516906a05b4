"""Recognise the text on slides: `images/`, pictures named by video id, becomes slides.jsonl."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from PIL import Image

from dcdt.data.pictures import Picture, open_picture, read_pictures
from dcdt.data.table_reader import read_json_lines
from dcdt.data.transcripts import SLIDES
from dcdt.utils.errors import needs_extra
from dcdt.utils.files import refuse_outside_links, write_text
from dcdt.utils.text import pluralize


def recognise_slides(folder: Path, ids: Collection[str]) -> list[str]:
    """Write the text on pictures to slides.jsonl, and return what was read and what was left out, a sentence each.

    Raises:
        UserError: no picture is named by a video's id and can be read, or rapidocr is missing.
    """
    store, path, new = folder / ".recognised", folder / SLIDES, dict[str, Any]()
    refuse_outside_links(store, folder)
    engine = _load_engine()
    pictures, notes = read_pictures(folder, ids, lambda picture: _recognise(picture, store, engine))
    for video, second, text in pictures:
        new.setdefault(video, {"_id": video, "segments": []})["segments"].append({"start": second, "text": text})
    old = {str(record["_id"]): record for _, record in read_json_lines(path)} if path.is_file() else {}
    write_text(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in (old | new).values()))
    return [f"{path}: text of {pluralize(len(new), 'video')}, which model.fields=[title,text,slides] reads.", *notes]


def _recognise(picture: Picture, store: Path, engine: Callable[[Image.Image], Any]) -> str:
    """Read the text on a picture; a ValueError says why it cannot be read."""
    known = store / f"{picture}.txt"
    if not known.is_file():
        decoded = open_picture(picture.path)
        decoded.thumbnail((2000, 2000))  # rapidocr reads no more
        write_text(known, " ".join(engine(decoded).txts or ()))
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
