"""Text on slides: pictures are found by name, read once, and named where they cannot be read."""

import io
import json
import os
import socket
import struct
import sys
import zlib
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from commands import dcdt
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from support import make_collection, small_run

from dcdt.data import pictures, slides
from dcdt.data.beir import load_collection
from dcdt.data.pictures import Picture, open_picture, read_pictures
from dcdt.data.slides import recognise_slides
from dcdt.utils.errors import UserError
from dcdt.utils.signals import Interrupted


@pytest.fixture
def engine(monkeypatch):
    """In rapidocr's place: it reads the colour of the first pixel, and notes what it has read."""

    def read(picture):
        calls.append("{:02x}{:02x}{:02x}".format(*picture.getpixel((0, 0))))
        return SimpleNamespace(txts=None if calls[-1] == "ffffff" else ("colour", calls[-1]))

    calls = []
    monkeypatch.setattr(slides, "_load_engine", lambda: read)
    return calls


@pytest.fixture
def folder(tmp_path):
    return make_collection(tmp_path / "collection", 5, 20)


def add(folder, name, colour="#000000", **options):
    """A small picture in images/."""
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 4), colour).save(path, **options)
    return path


def segments(folder):
    """Segments by video in slides.jsonl."""
    lines = (folder / "slides.jsonl").read_text().splitlines()
    return {record["_id"]: record.get("segments") for record in map(json.loads, lines)}


def test_pictures_are_found_by_the_longest_id_in_the_order_of_their_numbers(folder, engine):
    ids = ["v1", "v1-2", "-x_y", "a/b"]
    colours = {
        "v1.png": "#000000",
        "v1-10.png": "#0a0000",
        "v1-9.png": "#090000",
        "v1-2-95.5s.png": "#020000",
        "v1_30s.JPG": "#000000",
        "-x_y/slide 2.png": "#002000",
        "-x_y/slide 1 7s.bmp": "#001000",
        "a/b.png": "#000001",
        "v12.png": "#ff0000",
        "other/1.png": "#ff0000",
        ".hidden.png": "#ff0000",
    }
    for name, colour in colours.items():
        add(folder, name, colour)
    first, unknown = recognise_slides(folder, ids)
    read = {video: [(one["start"], one["text"]) for one in own] for video, own in segments(folder).items()}
    assert read == {
        "v1": [
            (None, "colour 000000"),
            (None, "colour 090000"),
            (None, "colour 0a0000"),
            (30.0, "colour 000000"),
        ],
        "v1-2": [(95.5, "colour 020000")],
        "-x_y": [(None, "colour 002000"), (7.0, "colour 001000")],
        "a/b": [(None, "colour 000001")],
    }
    assert first.endswith("slides.jsonl: text of 4 videos, which model.fields=[title,text,slides] reads.")
    assert unknown.endswith("images: 2 files not named by a video's id: other/1.png, v12.png.")


def write_bad_pictures(images):
    """Files that are no picture, or none that is safe to decode, by what is said about them."""
    images.mkdir()
    jpeg = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(jpeg, "JPEG")
    (images / "v0-jpeg.jpg").write_bytes(jpeg.getvalue()[:900])
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)  # of 100 megapixels that do not follow
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (images / "v0-large.png").write_bytes(png + struct.pack(">I", 4) + b"IDAT" + b"\0" * 8)
    (images / "v0-drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><text>rank</text></svg>')
    (images / "v0-text.png").write_text("a text")
    (images / "v0-empty.png").write_bytes(b"")
    Image.new("RGB", (8, 4)).save(images / "v0-scan.png", "TIFF")
    Image.new("RGB", (900, 9)).save(images / "v0-long.png")
    add(images.parent, "v0-closed.png")
    (images / "v0-folder.png").mkdir()
    (images / "v0-gone.png").symlink_to("nowhere")
    os.mkfifo(images / "v0-pipe.png")
    return {
        "v0-jpeg.jpg": "image file is truncated",
        "v0-large.png": "Image size (100000000 pixels) exceeds limit",
        "v0-drawing.svg": "cannot identify image file",
        "v0-text.png": "cannot identify image file",
        "v0-empty.png": "cannot identify image file",
        "v0-scan.png": "cannot identify image file",
        "v0-long.png": "sides of 900 and 9 pixels, more than 8 to 1",
        "v0-closed.png": "Permission denied",
    }


@pytest.fixture
def bad(folder, monkeypatch):
    reasons = write_bad_pictures(folder / "images")
    opened = pictures.Path.open

    def refuse(path, *options, **more):  # a superuser may read everything
        if path.name == "v0-closed.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *options, **more)

    monkeypatch.setattr(pictures.Path, "open", refuse)
    return reasons


def test_bad_pictures_are_counted_and_named_and_the_others_read(folder, bad, engine, monkeypatch):
    frames = [Image.new("RGB", (8, 4), colour) for colour in ("#00ff00", "#ff0000")]
    frames[0].save(folder / "images" / "v1.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(pictures, "join_names", ", ".join)
    first, unreadable, unknown = recognise_slides(folder, {"v0", "v1"})
    assert engine == ["00ff00"] and segments(folder) == {"v1": [{"start": None, "text": "colour 00ff00"}]}
    assert ": 8 pictures that cannot be read: " in unreadable
    assert ": 3 files not named by a video's id: v0-gone.png, v0-pipe.png, v0-folder.png." in unknown
    for name, reason in bad.items():
        only = folder / name / "images"
        only.mkdir(parents=True)
        os.link(folder / "images" / name, only / name)
        with pytest.raises(UserError) as error:
            read_pictures(only.parent, {"v0"}, lambda picture: open_picture(picture.path), progress=False)
        assert f"1 pictures that cannot be read: {name} (" in str(error.value) and reason in str(error.value)
        assert "<" not in str(error.value)
    assert "text of 1 video, " in first


def test_bad_pictures_alone_leave_nothing_and_end_in_words(folder, bad, engine):
    before = sorted(path.name for path in folder.iterdir())
    done = dcdt("collection", "ocr", folder)
    assert done.returncode == 2 and engine == [] and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "8 pictures that cannot be read: v0-" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_folder_without_pictures_is_refused(folder, engine):
    done = dcdt("collection", "ocr", folder)
    assert done.returncode == 2 and "images must hold pictures named by a video's id" in done.stderr


def test_an_interrupted_reading_goes_on_and_content_is_read_once(folder, engine, monkeypatch):
    for n in range(4):
        add(folder, f"v{n}.png", f"#0000{n:02x}")

    def stop(picture):
        if len(engine) == 2:
            raise Interrupted(2)
        return read(picture)

    read = slides._load_engine()
    with monkeypatch.context() as patch:
        patch.setattr(slides, "_load_engine", lambda: stop)
        with pytest.raises(Interrupted):
            recognise_slides(folder, {"v0", "v1", "v2", "v3"})
    assert engine == ["000000", "000001"] and not (folder / "slides.jsonl").exists()
    recognise_slides(folder, {"v0", "v1", "v2", "v3"})
    assert engine == ["000000", "000001", "000002", "000003"] and len(segments(folder)) == 4
    (folder / "images" / "v0.png").rename(folder / "images" / "v3-2.png")
    add(folder, "v1.png", "#0000ff")
    recognise_slides(folder, {"v0", "v1", "v2", "v3"})
    assert engine[4:] == ["0000ff"]
    assert [one["text"] for one in segments(folder)["v3"]] == ["colour 000003", "colour 000000"]
    assert segments(folder)["v0"] == [{"start": None, "text": "colour 000000"}]  # without a picture it keeps its line


def test_slides_are_a_field_of_the_videos_and_nothing_else_changes(folder, engine):
    path = folder / "corpus.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[1]["metadata"] = {"slides": "of a table", "level": 2}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    before, corpus = load_collection(folder), path.read_bytes()
    (folder / "slides.jsonl").write_text('{"_id": "v3", "text": "from a file"}\n{"_id": "z", "text": "?"}\n')
    for name, colour in (("v0-1.png", "#010000"), ("v0-2.png", "#020000"), ("v1.png", "#030000"), ("v2.png", "white")):
        add(folder, name, colour)
    done = dcdt("collection", "ocr", folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "\n" + str(folder / "slides.jsonl") + ": text of 3 videos, which" in done.stdout
    assert "slides.jsonl: texts: 1 empty, 1 of unknown videos, left out." in done.stdout
    after = load_collection(folder)
    own = [metadata.get("slides") for metadata in after.videos.metadata]
    assert own == ["colour 010000 colour 020000", "colour 030000", None, "from a file", None]
    assert after.field_texts("slides")[4] == "Title 4" and "slides" in after.fields
    assert after.videos.metadata[1]["level"] == 2 and path.read_bytes() == corpus
    assert after.content_hash == before.content_hash and after.fingerprint != before.fingerprint


def test_a_broken_line_is_named(folder):
    (folder / "slides.jsonl").write_text('{"_id": "v0", "text": 3}\n')
    with pytest.raises(UserError, match=r"slides.jsonl:1: 'text' is '3'"):
        load_collection(folder)


def test_without_the_extra_one_line_says_what_to_install(folder, monkeypatch):
    add(folder, "v0.png")
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    done = dcdt("collection", "ocr", folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr == "error: reading slides needs the extra 'ocr': pip install 'dcdt[ocr]'.\n"


@pytest.fixture
def offline(monkeypatch):
    """No connection is made, and the real engine is loaded anew."""

    def refuse(*_, **__):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def draw(path, *lines):
    """A slide of 1280 x 720 with lines of text or of formulas in dollars."""
    figure = Figure(figsize=(12.8, 7.2), dpi=100)
    for n, line in enumerate(lines):
        figure.text(0.06, 0.85 - 0.15 * n, line, fontsize=28)
    figure.savefig(path)


def draw_transparent(path, line):
    """Black letters on pixels that are black too, but transparent."""
    picture = Image.new("RGBA", (1280, 720), (0, 0, 0, 0))
    ImageDraw.Draw(picture).text((100, 300), line, fill="black", font_size=48)
    picture.save(path)


def draw_mirrored(path, line):
    """A picture whose pixels are mirrored, and whose tag says so, as some cameras write it."""
    draw(path, line)
    tags = Image.Exif()
    tags[0x0112] = 2
    picture = Image.open(path).convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(path, exif=tags)


def draw_chart(path):
    """Two curves with a title, labels of the axes and a legend."""
    figure = Figure(figsize=(12.8, 7.2), dpi=100)
    axes = figure.subplots()
    axes.plot([1, 2, 3], [4, 2, 3], label="training loss")
    axes.plot([1, 2, 3], [5, 3, 4], label="validation loss")
    axes.set_xlabel("Number of epochs", fontsize=16)
    axes.set_ylabel("Mean squared error", fontsize=16)
    axes.set_title("Loss of gradient descent", fontsize=20)
    axes.legend(fontsize=14)
    figure.savefig(path)


@pytest.mark.slow
def test_rapidocr_reads_slides_charts_and_some_of_a_formula_silently_and_offline(folder, offline, capfd):
    """What docs/your_data.md says of it; the parts of formulas that are lost are stated there as lost."""
    images = folder / "images"
    images.mkdir()
    draw(images / "v0.png", "The four fundamental subspaces", "Rank plus nullity is the number of columns")
    draw_chart(images / "v1-62s.png")
    formulas = (r"$\det(A - \lambda I) = 0$", r"$\hat{x} = (A^T A)^{-1} A^T b$", r"$\sqrt{x^2+y^2}$")
    draw(images / "v2.png", *formulas, r"$e^{i\pi} + 1 = 0$")
    draw_transparent(images / "v3-1.png", "Transparent singular values")
    draw_mirrored(images / "v3-2.jpg", "A photograph of eigenvectors")
    draw(images / "v4.png")
    recognise_slides(folder, load_collection(folder).videos.row_of)
    out, err = capfd.readouterr()
    assert err == "" and "reading" in out and "RapidOCR" not in out and out.count("\n") == 1
    plain, chart, formula, photographs, nothing = (segments(folder)[f"v{n}"] for n in range(5))
    assert plain[0]["text"] == "The four fundamental subspaces Rank plus nullity is the number of columns"
    assert chart[0]["start"] == 62.0
    for words in ("Loss of gradient descent", "Number of epochs", "Mean squared error", "training loss", "1.00"):
        assert words in chart[0]["text"]
    assert "det(A \N{MINUS SIGN} λI) = 0" in formula[0]["text"] and "√x²+y²" in formula[0]["text"]
    assert "ATb" in formula[0]["text"] and "^" not in formula[0]["text"]  # a transpose becomes a factor
    assert [one["text"] for one in photographs] == ["Transparent singular values", "A photograph of eigenvectors"]
    assert nothing == [{"start": None, "text": ""}]


@pytest.mark.slow
def test_pictures_of_any_shape_and_noise_are_read_or_refused(tmp_path, offline):
    """Whatever lies within the limits, rapidocr neither fails nor takes the machine's memory."""
    engine = slides._load_engine()
    for n, size in enumerate([(1, 1), (16, 128), (2000, 250)]):
        path = tmp_path / f"{n}.png"
        Image.effect_noise(size, 200).save(path)
        picture = Picture(n)
        picture.path = path
        assert isinstance(slides._recognise(picture, tmp_path / "store", engine), str)


@pytest.mark.slow
def test_a_model_reads_the_slides(folder, tmp_path):
    lines = [json.dumps({"_id": f"v{n}", "text": f"slide {n}"}) for n in range(3)]
    (folder / "slides.jsonl").write_text("\n".join(lines))
    rows = {}
    for name, fields in (("without", "[title,text]"), ("with", "[title,text,slides]")):
        run = small_run(folder, tmp_path / "model", tmp_path / name, "model=zero_shot", f"model.fields={fields}")
        rows[name] = pq.read_table(run / "scores.parquet").column("score").to_pylist()
    assert len(rows["with"]) == len(rows["without"]) and rows["with"] != rows["without"]
