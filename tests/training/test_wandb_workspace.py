"""The view and the written report of W&B: their specification, and the real client against a server of our own."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from reporting.run_folders import write_comparison

from dcdt.report import publish
from dcdt.reporting.tables import make_report
from dcdt.runs.reader import read_runs
from dcdt.training.loggers.wandb_workspace import Place, save_workspace, workspace, written_report
from dcdt.utils.errors import UserError

pytestmark = pytest.mark.slow
PROJECT = {
    "id": "1",
    "name": "dcdt",
    "entityName": "team",
    "createdAt": "2026-11-30T00:00:00Z",
    "isBenchmark": False,
    "user": None,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder)
    return make_report(read_runs([folder]))


@pytest.fixture
def place(report):
    return Place("team", "dcdt", "my_sweep", {variant.label: f"id{i}" for i, variant in enumerate(report.variants)})


@pytest.fixture
def server(monkeypatch):
    """A server that keeps the views it is sent; `server.refuses` has it answer with an error."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *given):
            pass

        def do_POST(self):
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(text) if self.path.endswith("/graphql") else {}
            variables = body.get("variables") or {}
            data = {"viewer": {"id": "u", "username": "u", "entity": "team"}}  # who asks
            data |= {
                "models": {
                    "edges": [{"node": PROJECT, "cursor": "c"}],
                    "pageInfo": {"endCursor": "c", "hasNextPage": False},
                }
            }
            if "upsertView" in body.get("query", ""):
                service.views.append(json.loads(variables["spec"]))
                times = {"createdAt": "2026-11-30T00:00:00Z", "updatedAt": "2026-11-30T00:00:00Z"}
                kept = {"id": "v1", "name": variables["name"], "spec": variables["spec"], "type": "runs", **times}
                kept |= {"displayName": variables.get("displayName", ""), "description": "", "project": PROJECT}
                data = {"upsertView": {"view": kept, "inserted": True}}
            answer = {"errors": [{"message": "no room"}]} if service.refuses else {"data": data}
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.views, service.refuses = [], False
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{service.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    yield service
    service.shutdown()


def test_the_view_groups_by_variant_and_compares_with_zero_shot(report, place):
    view = json.loads(workspace(report, place)._to_model().spec.model_dump_json(by_alias=True))["section"]
    (runs,) = view["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["variant.value"]
    zero_shot = place.rows[report.reference.label]
    assert base64.b64decode(runs["baselineRunId"]).decode() == f"Run:v1:{zero_shot}:dcdt:team"
    columns = [
        "run:displayName",
        "summary:mrr",
        "summary:ndcg@10",
        "summary:difference",
        "summary:p",
        "summary:verdict",
    ]
    assert list(runs["runFeed"]["columnPinned"]) == columns
    assert "my_sweep" in json.dumps(runs["filters"]) and "report" in json.dumps(runs["filters"])
    sections = view["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Curves", "Scores of test pairs", "Cost"]
    assert all(key in json.dumps(sections) for key in ("val/mrr", "val/loss", "test/pair_auroc", "training_seconds"))


def test_the_written_report_has_intervals_and_verdicts_in_words(report, place):
    text = json.dumps(written_report(report, place)._to_model().spec.model_dump(mode="json"), ensure_ascii=False)
    cell = report.tables[0].rows[0].cells["mrr"]
    assert f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]" in text
    assert report.comparisons[0].verdict in text and "Holm" in text and "my_sweep" in text


def test_a_server_keeps_both_and_a_refusal_is_one_line(report, place, server):
    addresses = save_workspace(report, place)
    assert len(addresses) == len(server.views) == 2 and all("team/dcdt" in address for address in addresses)
    server.refuses = True
    with pytest.raises(UserError, match="W&B did not take the workspace") as refusal:
        save_workspace(report, place)
    assert "\n" not in str(refusal.value)


def test_offline_a_workspace_is_refused_in_words_and_the_report_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_comparison(tmp_path / "sweep")
    with pytest.raises(UserError, match="--workspace needs W&B's server"):
        publish([tmp_path / "sweep"], tmp_path / "out", False, to_workspace=True)
    assert (tmp_path / "out" / "index.html").is_file()
