"""The service: answers, limits, following its run, faults while it serves; and a real server."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from dcdt.data.types import Documents
from dcdt.serving.app import make_app
from dcdt.serving.hot_reload import ReloadingRecommender
from dcdt.serving.manifest import Threshold
from dcdt.serving.recommender import ServedRecommender


@pytest.fixture(scope="module")
def client(make_run):
    with TestClient(
        make_app([ReloadingRecommender(make_run("model=bm25")), ReloadingRecommender(make_run("model=hybrid_towers"))])
    ) as client:
        yield client


def test_an_answer_holds_what_the_schema_says_and_models_can_be_chosen(client):
    first = client.get("/search", params={"q": "rank of a basis", "k": 3, "explain": True}).json()
    second = client.get("/search", params={"q": "rank of a basis", "k": 3, "model": 2}).json()
    assert (first["model"], second["model"]) == ("bm25", "hybrid_towers") and len(first["videos"]) == 3
    assert first["videos"][0]["why"]["parts"][0]["name"] == "bm25" and "why" not in second["videos"][0]
    assert {"rank", "basis"} & set(first["videos"][0]["matched"])
    schema = client.get("/openapi.json").json()
    known = set(schema["components"]["schemas"]["Recommendation"]["properties"])
    assert set(first["videos"][0]) <= known and set(first) == set(
        schema["components"]["schemas"]["Answer"]["properties"]
    )
    docs = client.get("/docs").text
    assert "GET /search" in docs and "POST /search" in docs and docs.count("curl ") == 2
    assert "how do I add fractions" in json.dumps(schema["paths"]["/search"]["get"]["parameters"])  # an example
    only = client.get("/search", params={"q": "rank", "filter": "id=v3|v4"}).json()
    assert {item["id"] for item in only["videos"]} == {"v3", "v4"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"q": ""}, "at least 1 character"),
        ({"q": "   "}, "the question is empty"),
        ({"q": "a" * 50_000}, "at most 2000 characters"),
        ({"q": "a", "k": 0}, "greater than or equal to 1"),
        ({"q": "a", "k": 1_000_000}, "less than or equal to 100"),
        ({"q": "a", "k": "many"}, "valid integer"),
        ({"q": "a", "filter": "colour=red"}, "the field 'colour'"),
        ({"q": "a", "filter": "id='; DROP TABLE videos --"}, None),
        ({"q": "a", "filter": "level=" + "a" * 1000}, "at most 1000 characters"),
        ({"q": "a", "model": 3}, "less than or equal to 2"),
        ({}, "Field required"),
    ],
)
def test_bad_input_is_told_and_the_service_goes_on(client, given, said):
    found = client.get("/search", params=given)
    if said is None:  # a value like any other
        assert found.status_code == 200 and found.json()["videos"] == []
    else:
        assert found.status_code == 422 and said in found.text
    assert client.get("/search", params={"q": "rank"}).status_code == 200


def test_many_questions_are_answered_at_once_as_each_alone(client):
    asked = {"questions": ["rank of a basis", "what is a span"], "k": 3, "filter": "id!=v3", "model": 2}
    found = client.post("/search", json=asked).json()
    assert [answer["question"] for answer in found] == asked["questions"]
    for answer in found:
        alone = client.get("/search", params={"q": answer["question"], "k": 3, "filter": "id!=v3", "model": 2}).json()
        assert [video["id"] for video in answer["videos"]] == [video["id"] for video in alone["videos"]]
    for wrong in (
        {"questions": []},
        {"questions": ["a"] * 101},
        {"questions": ["a", " "]},
        {"questions": ["a"], "k": 0},
    ):
        assert client.post("/search", json=wrong).status_code == 422, wrong
    for large in (b"x" * (5 << 20), iter([b"a body", b" of no known size"])):
        assert client.post("/search", content=large).status_code == 413


def test_head_answers_wherever_get_does(client):
    for path in ("/", "/docs", "/healthz", "/openapi.json", "/favicon.ico", "/search?q=rank"):
        assert client.head(path).status_code == client.get(path).status_code < 400, path
    assert client.head("/search").status_code == 422 and client.head("/click").status_code == 404


def test_words_that_only_ask_neither_match_nor_explain(client):
    asked = {"q": "why do we need the rank, and how do I find it?", "k": 5, "explain": True}
    videos = client.get("/search", params=asked).json()["videos"]
    words = {word for video in videos for word in video["matched"]}
    assert words <= {"need", "rank", "find"} and "rank" in words
    terms = {term for video in videos for part in video["why"]["parts"] for term in part["terms"]}
    assert terms <= {"need", "rank", "find", "question words"} and "rank" in terms


def test_a_question_that_the_embedder_cannot_read_is_said(make_run):
    live = ReloadingRecommender(make_run("model=hybrid_towers"))
    live.served.embedder = "all-MiniLM-L6-v2"
    client = TestClient(make_app([live, ReloadingRecommender(make_run("model=bm25"))]))
    notes = client.get("/search", params={"q": "что такое ранг"}).json()["notes"]
    assert len(notes) == 1 and "Cyrillic script" in notes[0] and live.served.embedder in notes[0]
    assert client.get("/search", params={"q": "what is a rank"}).json()["notes"] == []
    assert client.get("/search", params={"q": "что такое ранг", "model": 2}).json()["notes"] == []  # of words alone


def test_the_page_reads_its_texts_from_the_catalogue(client):
    model, other = client.get("/healthz").json()["models"]
    assert model["embedder"] is None and other["embedder"]
    assert model["example"] and model["facets"] == other["facets"]
    page = client.get("/").text
    for word in ("eigenvector", "MIT", "teaching video"):
        assert word not in page


def test_nothing_can_be_changed_and_the_page_asks_nobody_else(client):
    for method in ("put", "delete", "patch"):
        assert getattr(client, method)("/search").status_code == 405
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text and "https://" not in page.text.replace('["http:", "https:"]', "")
    health = client.get("/healthz").json()
    assert health["status"] == "ok" and [model["videos"] for model in health["models"]] == [20, 20]


def test_below_the_threshold_nothing_fits(make_run):
    live = ReloadingRecommender(make_run("model=hybrid_towers"))
    live.served.manifest = live.served.manifest.model_copy(
        update={"threshold": Threshold(value=1e9, answered=1, rejected=0, queries=1)}
    )
    found = TestClient(make_app([live], abstain=True)).get("/search", params={"q": "rank"}).json()
    assert found["nothing_fits"] is True and found["videos"] == []
    filtered = TestClient(make_app([live], abstain=True)).get("/search", params={"q": "rank", "filter": "id=v1"}).json()
    assert filtered["nothing_fits"] is True  # there is a video, and it does not fit
    empty = TestClient(make_app([live], abstain=True)).get("/search", params={"q": "rank", "filter": "id=x"}).json()
    assert empty["nothing_fits"] is False and empty["videos"] == []


@pytest.mark.parametrize("told", [False, True])
def test_what_was_asked_is_logged_only_where_that_was_asked_for(make_run, caplog, monkeypatch, told):
    monkeypatch.setattr(logging.getLogger("dcdt.serve"), "propagate", True)
    with caplog.at_level(logging.INFO, "dcdt.serve"):
        TestClient(make_app([ReloadingRecommender(make_run("model=bm25"))], log_questions=told)).get(
            "/search", params={"q": "my secret"}
        )
    logged = [record.fields for record in caplog.records if getattr(record, "fields", {}).get("path") == "/search"]
    assert logged[0]["status"] == 200 and ("question" in logged[0]) == told


def test_a_changed_index_another_build_and_another_run_are_followed(own_copy, make_run, tmp_path):
    folder = own_copy("model=bm25")
    link = tmp_path / "current"
    link.symlink_to(folder)
    live = ReloadingRecommender(link)
    writer = ServedRecommender(folder)
    writer.add(Documents(["new"], ["shear"], ["shear"], [{}]))
    live.refresh()
    assert live.served.recommend("shear", 1000)[0] and len(live.served) == 21
    from dcdt.serving.export import build

    build(folder)
    live.refresh()
    assert len(live.served) == 20
    other = make_run("model=hybrid_towers")
    link.unlink()
    link.symlink_to(other)
    live.refresh()
    assert live.served.name == "hybrid_towers"


def test_a_service_builds_nothing_where_the_index_is_taken_away(own_copy, monkeypatch):
    folder = own_copy("model=bm25")
    live = ReloadingRecommender(folder)
    (folder / "serving" / "current.json").unlink()
    monkeypatch.setattr("dcdt.serving.export.build", lambda *given: pytest.fail("it builds"))
    live.refresh()
    assert "has no index; make it: python -m dcdt.index" in live.error
    assert live.served.recommend("shear", 3)[0] and not (folder / "serving" / "current.json").exists()


@pytest.mark.parametrize("harm", ["pointer", "snapshot", "gone"])
def test_what_breaks_beneath_the_service_is_told_and_the_old_state_answers(own_copy, harm):
    folder = own_copy("model=bm25")
    live = ReloadingRecommender(folder)
    client = TestClient(make_app([live]))
    ServedRecommender(folder).add(Documents(["new"], ["shear"], ["shear"], [{}]))
    pointer = folder / "serving" / "current.json"
    if harm == "pointer":
        pointer.write_text("{")
    elif harm == "snapshot":
        for path in folder.glob("serving/*/snapshot-*.arrow"):
            path.write_bytes(b"ARROW1")
    else:
        shutil.rmtree(folder)
    live.refresh()
    health = client.get("/healthz").json()
    if harm != "pointer":  # without a pointer the index is built anew
        assert health["status"] == "stale" and health["models"][0]["trouble"]
    assert client.get("/search", params={"q": "rank"}).json()["videos"]


def ask(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
        return json.loads(response.read())


@pytest.mark.slow
def test_a_real_server_answers_follows_refuses_and_stops(own_copy, environment, tmp_path):
    folder = own_copy("model=dcdt_ridge")
    line = [sys.executable, "-m", "dcdt.serve", str(folder), "--port", "0"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    address = process.stdout.readline()
    assert address.startswith("http://127.0.0.1:"), address
    port = int(address.split(":")[2].split()[0])
    try:
        assert len(ask(port, "/search?q=rank&k=3")["videos"]) == 3
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(port, "/search?q=" + "a" * 100_000)
        assert refused.value.code == 422
        writer = ServedRecommender(folder)
        writer.add(Documents(["new"], ["shear plane"], ["shear plane"], [{"level": "intro"}]))
        for _ in range(100):
            if found := ask(port, "/search?q=shear&filter=" + quote("level=intro"))["videos"]:
                break
            time.sleep(0.1)
        assert [item["id"] for item in found] == ["new"]
        taken = subprocess.run([*line[:-1], str(port)], capture_output=True, text=True, env=environment, timeout=60)
        assert taken.returncode == 2 and "cannot be listened on" in taken.stderr and "Traceback" not in taken.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    *logged, stopped = (tmp_path / "log").read_text().splitlines()
    assert stopped.startswith("stopped by SIGTERM")
    lines = [json.loads(text) for text in logged]
    assert any(entry.get("path") == "/search" for entry in lines)
    assert "shear" not in (tmp_path / "log").read_text()


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture
def page(make_run, environment):
    """The search page over two runs in a real browser."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="the page is tested with playwright: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("the page is tested in Chromium: apt-get install chromium")
    runs = [str(make_run("model=bm25")), "--beside", str(make_run("model=hybrid_towers"))]
    line = [sys.executable, "-m", "dcdt.serve", *runs, "--port", "0"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    address = process.stdout.readline().split()[0]
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.told, page.asked = [], []
        page.on("console", lambda message: page.told.append(message.text))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        yield page
        browser.close()
    process.terminate()
    process.wait(30)


@pytest.mark.slow
def test_the_page_in_a_browser(page):
    page.set_default_timeout(60_000)
    assert page.evaluate("document.activeElement.id") == "q"
    page.wait_for_function("document.title.startsWith('Search ')")
    assert page.is_visible("#both") and not page.is_visible("#recorded")
    page.keyboard.type("rank of a basis")
    page.keyboard.press("Enter")
    page.wait_for_selector("li")
    assert page.locator("li").count() == 10 and "10 videos" in page.inner_text("#status")
    assert {text.lower() for text in page.locator("mark").all_inner_texts()} <= {"rank", "basis"}
    assert page.locator("mark").count() and "q=rank" in page.url
    page.wait_for_selector("li .why")  # which come after the answer
    assert page.locator("li .why").first.inner_text().startswith("Why: ")
    shown = page.evaluate("marked('p', '矩阵的特征值和 rank', ['特征', '征值', 'rank'], 'text').innerHTML")
    assert shown == "矩阵的<mark>特征值</mark>和 <mark>rank</mark>"
    assert page.evaluate("excerpt('线'.repeat(400) + '特征', ['特征']).length") < 300
    assert page.evaluate("excerpt('a '.repeat(400), ['b'])").endswith("a …")
    link = "https://youtu.be/a?t=754"
    given = {"start_s": 754.2, "text": "a <b>rank</b>", "matched": ["rank"], "link": link}
    rest = ": <bdi>a &lt;b&gt;<mark>rank</mark>&lt;/b&gt;</bdi>"
    shown = page.evaluate("given => moment(given).innerHTML", given)
    assert shown == f'<a href="{link}" rel="noopener noreferrer">at 12:34</a>{rest}'
    shown = page.evaluate("given => moment(given).innerHTML", given | {"start_s": 3605, "link": "javascript:alert(1)"})
    assert shown == f"<span>at 01:00:05</span>{rest}"
    for width, scheme in ((390, "dark"), (390, "light"), (1280, "dark"), (1280, "light")):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) >= 4.5, (width, scheme)

    page.keyboard.press("ArrowDown")  # from the box to the first video, and back by "/"
    assert page.evaluate("document.activeElement.classList.contains('step')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("[...document.querySelectorAll('.step')].indexOf(document.activeElement)") == 0
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"

    page.check("#both")
    page.wait_for_selector("section:nth-child(2) li")
    first, second = page.locator("section h2").all_inner_texts()
    assert first == "bm25" and second.startswith("hybrid_towers with ")
    page.locator(".more").first.click()
    page.wait_for_selector("section:first-child li:nth-child(20)")
    page.wait_for_selector("section:first-child li:nth-child(11) .step:focus")
    assert page.locator("section:nth-child(2) li").count() == 10
    page.evaluate("""drawFacets([{name: "id", values: [{label: "v3", n: 1, filter: 'id="v3"'}]}], [])""")
    page.select_option("#facets select", 'id="v3"')
    page.wait_for_selector("section:nth-child(2) li:nth-child(2)", state="detached")
    assert page.locator("li").count() == 2
    assert "filter=id" in page.url
    page.go_back()
    page.wait_for_selector("section:nth-child(2) li:nth-child(10)")
    assert page.locator("li").count() == 20
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input,button,select')].filter(e => !e.labels?.length && !e.textContent).length"
    )
    assert unnamed == 0
    assert page.told == []
    assert all("127.0.0.1" in url for url in page.asked)


CONTRAST = """(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = color => {
    const [r, g, b] = numbers(color).slice(0, 3).map(linear);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const back = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (numbers(color)[3] !== 0) return color;
    }
    return "rgb(255,255,255)";
  };
  let least = 21;
  for (const node of document.querySelectorAll("h1,h3 *,p,mark,button,label,summary,#status")) {
    const [one, two] = [light(getComputedStyle(node).color), light(back(node))].sort((a, b) => b - a);
    least = Math.min(least, (one + .05) / (two + .05));
  }
  return least;
})()"""


def test_a_link_that_is_no_address_is_never_followed():
    page = (Path(sys.modules["dcdt"].__file__).parent / "serving" / "page.html").read_text()
    assert "innerHTML" not in page and "safeLink(video.link)" in page
