"""The HTTP service: `GET /search`, `POST /click`, `GET /healthz`, the page at `/`, OpenAPI at `/docs`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from html import escape
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dcdt.serving.feedback import FeedbackLog, team_draft
from dcdt.serving.hot_reload import ReloadingRecommender
from dcdt.serving.learners import MAX_USER_CHARS
from dcdt.serving.middleware import RequestLog
from dcdt.serving.moments import Moment
from dcdt.serving.recommender import MAX_K, MAX_QUESTION_CHARS, ServedRecommender
from dcdt.utils.errors import UserError

K_LIMIT, FILTER_LIMIT = 100, 1000
SCHEMA_NOISE = ("title", "description")
MAX_PENDING = 64  # questions that may wait; more are answered by 503
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Video(BaseModel):
    """One video of an answer."""

    rank: int
    score: float
    id: str
    title: str
    text: str
    series: str | None = None
    level: str | None = None
    link: str | None = None
    duration_s: float | None = None
    matched: list[str] = Field(description="words of the question that title or text holds")
    moments: list[Moment] = Field(default=[], description="where it answers, the best first")
    why: dict[str, Any] | None = Field(default=None, description="what made up the score")


class Answer(BaseModel):
    """The answer to a question."""

    question: str
    model: str
    version: int = Field(description="of the index that answered")
    milliseconds: float
    nothing_fits: bool = Field(description="true where all videos score below what validation chose")
    notes: list[str]
    answer: str | None = Field(description="the id that POST /click takes; null where nothing is recorded")
    videos: list[Video]


class Health(BaseModel):
    """Whether the service can answer."""

    status: Literal["ok", "stale"]
    feedback: Literal["off", "questions", "hashes"] = Field(description="whether answers and clicks are recorded")
    interleaved: bool
    models: list[dict[str, Any]]


def make_app(
    recommenders: list[ReloadingRecommender],
    abstain: bool = False,
    log_questions: bool = False,
    workers: int = 2,
    hosts: Sequence[str] = ("*",),
    feedback: FeedbackLog | None = None,
    interleave: bool = False,
) -> FastAPI:
    """The service over one run, or over two side by side.

    Args:
        recommenders: the runs; the first answers unless another is asked for.
        abstain: whether "nothing here fits" is answered below the threshold.
        log_questions: whether questions are logged.
        workers: threads that answer.
        hosts: names in a request's `Host` that are answered, so that no page of another site reaches a local service.
        feedback: where answers and clicks are recorded; None: nowhere.
        interleave: whether both models answer together where none is asked for.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="answer")
    pending = asyncio.Semaphore(MAX_PENDING)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for recommender in recommenders:
            recommender.start()
        yield
        for recommender in recommenders:
            recommender.stop()
        pool.shutdown(wait=True)

    app = FastAPI(
        title="DCDT",
        description="Teaching videos that answer a question. The catalogue is only read.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    app.add_middleware(RequestLog, max_question_chars=MAX_QUESTION_CHARS if log_questions else 0)
    _add_pages(app, recommenders, feedback, interleave)
    if feedback is not None:
        _add_click(app, feedback)

    @app.get("/search", response_model=Answer, summary="The best videos for a question")
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=MAX_QUESTION_CHARS, description="the question, in words")],
        k: Annotated[int, Query(ge=1, le=K_LIMIT, description="how many videos")] = 10,
        filter: Annotated[str, Query(max_length=FILTER_LIMIT, description="such as level=intro,duration_s<600")] = "",
        explain: Annotated[bool, Query(description="say what made up each score")] = False,
        model: Annotated[int | None, Query(ge=1, le=len(recommenders), description="which of those served")] = None,
        user: Annotated[str | None, Query(min_length=1, max_length=MAX_USER_CHARS, description="who asks")] = None,
    ) -> Any:  # noqa: ANN401 - FastAPI checks it against Answer
        if pending.locked():
            raise HTTPException(503, "too many questions wait; try again in a moment", {"Retry-After": "1"})
        chosen = recommenders if interleave and model is None else [recommenders[(model or 1) - 1]]
        started = time.perf_counter()
        async with pending:
            answer = partial(
                _answer, [one.served for one in chosen], q, k, filter, explained=explain, abstain=abstain, user=user
            )
            try:
                body, record = await asyncio.get_running_loop().run_in_executor(pool, answer)
            except UserError as error:
                raise HTTPException(422, " ".join(str(error).splitlines())) from None
        body |= {"question": q, "milliseconds": round(1000 * (time.perf_counter() - started), 2), "answer": None}
        if feedback is not None and not explain:
            body["answer"] = feedback.try_answer(q, user, **record)
        return JSONResponse(body)

    return app


def _answer(served: Sequence[ServedRecommender], *given: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401
    """Answer by one model, or by two that are interleaved: the body, and what of it is recorded."""
    users = [options["user"] if one.learners or len(served) == 1 else None for one in served]
    answers = [one.answer(*given, **options | {"user": user}) for one, user in zip(served, users, strict=True)]
    videos, teams = answers[0].videos[0], list[int]()
    if len(served) > 1:
        videos, teams = team_draft(answers[0].videos[0], answers[1].videos[0], given[1])
    models = [(one.name, one.catalogue.pointer.build, one.catalogue.pointer.version) for one in served]
    body = {
        "model": " and ".join(one.name for one in served),
        "version": answers[0].version,
        "nothing_fits": all(answer.nothing_fits[0] for answer in answers),
        "notes": [note for one, user in zip(served, users, strict=True) for note in one.notes_for(user)],
        "videos": [video.as_dict() for video in videos],
    }
    return body, {"models": models, "videos": [video.id for video in videos], "teams": teams}


def _add_click(app: FastAPI, feedback: FeedbackLog) -> None:
    """Add the recording of clicks."""

    @app.post("/click", status_code=204, summary="Record that a video of an answer was opened or judged")
    def click(
        answer: Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="id of the answer")],
        video: Annotated[str, Query(min_length=1, max_length=1000, description="id of the video")],
        event: Annotated[Literal["click", "up", "down"], Query(description="opened, or a thumb")] = "click",
    ) -> None:
        if not feedback.add_mark(answer, video, event):
            raise HTTPException(404, "this service gave no such answer")


def _add_pages(
    app: FastAPI, recommenders: list[ReloadingRecommender], feedback: FeedbackLog | None, interleave: bool
) -> None:
    """Add health, the page and the description of the API."""
    page = (files("dcdt.serving") / "page.html").read_text(encoding="utf-8")

    @app.get("/healthz", response_model=Health, summary="Whether the service can answer")
    async def healthz() -> Any:  # noqa: ANN401
        stale = any(recommender.error for recommender in recommenders)
        return {
            "status": "stale" if stale else "ok",
            "feedback": "off" if feedback is None else feedback.kind,
            "interleaved": interleave,
            "models": [_state(recommender) for recommender in recommenders],
        }

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": CONTENT_POLICY})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()), headers={"Content-Security-Policy": CONTENT_POLICY})

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204)


def api_page(schema: dict[str, Any]) -> str:
    """The API in one page without scripts or requests; FastAPI's own fetches its parts from elsewhere."""
    lines = []
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            rows = [_parameter_row(item) for item in about.get("parameters", [])]
            lines.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(about['summary'])}</p>")
            lines.append(f"<table>{''.join(rows)}</table>")
    style = (
        "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}td{padding:.2rem 1rem .2rem 0}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>DCDT API</title><style>{style}</style>"
        f"<h1>DCDT API</h1><p>{escape(schema['info']['description'])} Machine-readable: "
        f"<a href=openapi.json>openapi.json</a></p>{''.join(lines)}</html>"
    )


def _parameter_row(item: dict[str, Any]) -> str:
    limits = json.dumps({key: value for key, value in item["schema"].items() if key not in SCHEMA_NOISE})
    cells = (
        f"<code>{escape(item['name'])}</code>",
        escape(item.get("description", "")),
        f"<code>{escape(limits)}</code>",
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _state(recommender: ReloadingRecommender) -> dict[str, Any]:
    served = recommender.served
    pointer = served.catalogue.pointer
    return {
        "model": served.name,
        "collection": served.manifest.collection,
        "videos": len(served),
        "build": pointer.build,
        "version": pointer.version,
        "filters": served.kinds,
        "trouble": recommender.error,
        "most": min(K_LIMIT, MAX_K),
    }
