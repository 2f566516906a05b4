"""The HTTP service: `/search` for a question or many, `/click`, `/healthz`, the page at `/`, OpenAPI at `/docs`."""

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
from dcdt.serving.recommender import MAX_K, MAX_QUESTION_CHARS, Recommendation
from dcdt.utils.errors import UserError

K_LIMIT, FILTER_LIMIT = 100, 1000
SCHEMA_NOISE = ("title", "description")
MAX_PENDING = 64  # requests that may wait; more are answered by 503
MAX_QUESTIONS = 100  # of one request
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

QuestionText = Annotated[
    str,
    Field(min_length=1, max_length=MAX_QUESTION_CHARS, description="in words", examples=["how do I add fractions"]),
]
EXAMPLE = """curl 'http://127.0.0.1:8000/search?q=how+do+I+add+fractions&k=3'"""
EXAMPLES = """curl http://127.0.0.1:8000/search -d '{"questions": ["how do I add fractions"], "k": 3}' \\
  -H 'Content-Type: application/json'"""


class Answer(BaseModel):
    """The answer to a question."""

    question: str
    model: str
    version: int = Field(description="of the index that answered")
    milliseconds: float
    nothing_fits: bool = Field(description="true where all videos score below what validation chose")
    notes: list[str]
    answer: str | None = Field(description="the id that POST /click takes; null where nothing is recorded")
    videos: list[Recommendation]


class Options(BaseModel):
    """How questions are answered."""

    k: int = Field(10, ge=1, le=K_LIMIT, description="how many videos")
    filter: str = Field("", max_length=FILTER_LIMIT, description="on fields", examples=["level=intro,duration_s<600"])
    explain: bool = Field(False, description="say what made up each score")
    model: int | None = Field(None, ge=1, description="which of those served")
    user: str | None = Field(None, min_length=1, max_length=MAX_USER_CHARS, description="who asks")


class Question(Options):
    """One question."""

    q: QuestionText


class Questions(Options):
    """Many questions with the same options."""

    questions: list[QuestionText] = Field(min_length=1, max_length=MAX_QUESTIONS)


class Health(BaseModel):
    """Whether the service can answer."""

    status: Literal["ok", "stale"]
    feedback: Literal["off", "questions", "hashes"] = Field(description="whether answers and clicks are recorded")
    interleaved: bool
    models: list[dict[str, Any]]


class Service:
    """Answers requests by one run, or by two side by side; its arguments are those of `make_app`."""

    def __init__(
        self,
        recommenders: list[ReloadingRecommender],
        abstain: bool,
        workers: int,
        feedback: FeedbackLog | None,
        interleave: bool,
    ) -> None:
        self.recommenders, self.abstain, self.feedback, self.interleave = recommenders, abstain, feedback, interleave
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="answer")
        self.pending = asyncio.Semaphore(MAX_PENDING)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Follow the runs while the service lasts."""
        for recommender in self.recommenders:
            recommender.start()
        yield
        for recommender in self.recommenders:
            recommender.stop()
        self.pool.shutdown(wait=True)

    async def answer(self, questions: Sequence[str], options: Options) -> list[dict[str, Any]]:
        """Answer questions in a thread of the pool, and record the answers."""
        n = len(self.recommenders)
        if self.pending.locked():
            raise HTTPException(503, "too many questions wait; try again in a moment", {"Retry-After": "1"})
        if (options.model or 1) > n:
            raise HTTPException(422, f"model is {options.model}; it must be less than or equal to {n}")
        both = self.interleave and options.model is None
        chosen = self.recommenders if both else [self.recommenders[(options.model or 1) - 1]]
        started = time.perf_counter()
        async with self.pending:
            answer = partial(_answer, chosen, questions, options, self.abstain)
            try:
                found = await asyncio.get_running_loop().run_in_executor(self.pool, answer)
            except UserError as error:
                raise HTTPException(422, " ".join(str(error).splitlines())) from None
        milliseconds = round(1000 * (time.perf_counter() - started), 2)
        for question, (body, record) in zip(questions, found, strict=True):
            body |= {"question": question, "milliseconds": milliseconds, "answer": None}
            if self.feedback is not None and not options.explain:
                body["answer"] = self.feedback.try_answer(question, options.user, **record)
        return [body for body, _ in found]


def make_app(
    recommenders: list[ReloadingRecommender],
    abstain: bool = False,
    log_questions: bool = False,
    workers: int = 2,
    hosts: Sequence[str] = ("*",),
    feedback: FeedbackLog | None = None,
    interleave: bool = False,
) -> FastAPI:
    """The service as an application.

    Args:
        recommenders: the runs; the first answers unless another is asked for.
        abstain: whether "nothing here fits" is answered below the threshold.
        log_questions: whether questions are logged.
        workers: threads that answer.
        hosts: names in a request's `Host` that are answered, so that no page of another site reaches a local service.
        feedback: where answers and clicks are recorded; None: nowhere.
        interleave: whether both models answer together where none is asked for.
    """
    service = Service(recommenders, abstain, workers, feedback, interleave)
    app = FastAPI(
        title="DCDT",
        description="Teaching videos that answer a question. The catalogue is only read.",
        lifespan=service.lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    app.add_middleware(RequestLog, max_question_chars=MAX_QUESTION_CHARS if log_questions else 0)
    _add_search(app, service)
    _add_pages(app, service)
    if feedback is not None:
        _add_click(app, feedback)
    return app


def _add_search(app: FastAPI, service: Service) -> None:
    """Add the answers to questions."""

    @app.get("/search", response_model=Answer, summary="The best videos for a question", description=EXAMPLE)
    async def search(asked: Annotated[Question, Query()]) -> Any:  # noqa: ANN401 - FastAPI checks it against Answer
        return JSONResponse((await service.answer([asked.q], asked))[0])

    @app.post("/search", response_model=list[Answer], summary="Many questions at once", description=EXAMPLES)
    async def search_many(asked: Questions) -> Any:  # noqa: ANN401
        return JSONResponse(await service.answer(asked.questions, asked))


def _answer(
    chosen: Sequence[ReloadingRecommender], questions: Sequence[str], options: Options, abstain: bool
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Answer questions by one model, or by two that are interleaved: each body, and what of it is recorded."""
    served = [one.served for one in chosen]
    asked = [(one, options.user if one.learners or len(served) == 1 else None) for one in served]
    by_model = [
        one.answer(questions, options.k, options.filter, options.explain, abstain, user=known) for one, known in asked
    ]
    models = [(one.name, one.catalogue.pointer.build, one.catalogue.pointer.version) for one in served]
    results = []
    for at, question in enumerate(questions):
        videos, teams = by_model[0].videos[at], list[int]()
        if len(served) > 1:
            videos, teams = team_draft(by_model[0].videos[at], by_model[1].videos[at], options.k)
        notes = [note for one, known in asked for note in one.notes_for(known, question)]
        body = {
            "model": " and ".join(one.name for one in served),
            "version": by_model[0].version,
            "nothing_fits": all(answers.nothing_fits[at] for answers in by_model),
            "notes": list(dict.fromkeys(notes)),
            "videos": [video.as_dict() for video in videos],
        }
        results.append((body, {"models": models, "videos": [video.id for video in videos], "teams": teams}))
    return results


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


def _add_pages(app: FastAPI, service: Service) -> None:
    """Add health, the page and the description of the API."""
    page = (files("dcdt.serving") / "page.html").read_text(encoding="utf-8")

    @app.get("/healthz", response_model=Health, summary="Whether the service can answer")
    async def healthz() -> Any:  # noqa: ANN401
        stale = any(recommender.error for recommender in service.recommenders)
        return {
            "status": "stale" if stale else "ok",
            "feedback": "off" if service.feedback is None else service.feedback.kind,
            "interleaved": service.interleave,
            "models": [_state(recommender) for recommender in service.recommenders],
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
            lines.append(f"<table>{''.join(rows)}</table><pre>{escape(about.get('description', ''))}</pre>")
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
        "embedder": served.embedder,
        "collection": served.manifest.collection,
        "videos": len(served),
        "build": pointer.build,
        "version": pointer.version,
        "filters": served.kinds,
        "example": served.example,
        "facets": served.facets,
        "trouble": recommender.error,
        "most": min(K_LIMIT, MAX_K),
    }
