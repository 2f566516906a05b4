"""HTTP API and search page over a finished run: `python -m dcdt.serve RUN [--host 127.0.0.1] [--port 8000]`."""

import errno
import json
import logging
import re
import socket
import sys
import time
from collections.abc import Sequence

from dcdt.cli import Parser, command
from dcdt.config.paths import run_path
from dcdt.utils.errors import UserError, exit_on_user_error, needs_extra
from dcdt.utils.shell import override, user_path
from dcdt.utils.text import printable

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


class JsonLines(logging.Formatter):
    """One line of JSON an event; questions only with --log-questions."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, event and its fields."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return printable(json.dumps(line, ensure_ascii=False))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(lambda record: "CancelledError" not in record.getMessage())  # of a second Ctrl-C
    for name, level in (("dcdt.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("serve", description="Answer questions over HTTP from a finished run.")
    parser.add_argument(
        "run",
        metavar="RUN",
        type=run_path,
        help="a run's folder or a link to it that may be moved, latest, or a collection's folder to search as it is",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    parser.add_argument("--beside", type=run_path, metavar="RUN", help="a second run, shown side by side on the page")
    parser.add_argument("--embedder", metavar="NAME", help="of a collection: multilingual, or the folder of a model")
    parser.add_argument("--moment-link", default="", metavar="TEMPLATE", help="such as {link}#t={seconds}")
    parser.add_argument("--abstain", action="store_true", help='answer "nothing here fits" below the threshold')
    parser.add_argument("--feedback", type=user_path, metavar="FOLDER", help="record answers, clicks and thumbs there")
    parser.add_argument("--hash-questions", action="store_true", help="record no words of a question, only its hash")
    parser.add_argument("--interleave", action="store_true", help="--beside: mix both models' videos, to compare them")
    parser.add_argument("--log-questions", action="store_true", help="write what was asked to the log")
    parser.add_argument(
        "--engine", choices=("memory", "lance"), default="memory", help="lance: search the table, hold no vectors"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the embedder, for one question (default: 1)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which browsers may reach the service, such as *.example.org (default: this machine's own; any "
        "with another --host)",
    )
    args = parser.parse_args(arguments)
    own_names = [*LOOPBACK, args.host] if args.host.startswith(("127.", *LOOPBACK)) else []
    hosts = [*args.allow_host, *own_names] or ["*"]
    if not all(re.fullmatch(r"(\*\.)?[^*]+|\*", name) for name in hosts):
        parser.error("--allow-host takes a name, *.NAME for all below it, or *")
    for name, value, limits in (("port", args.port, (0, 65535)), ("threads", args.threads, (1, 1024))):
        if not limits[0] <= value <= limits[1]:
            parser.error(f"--{name} is {value}; give {limits[0]} to {limits[1]}")
    if args.interleave and not (args.beside and args.feedback):
        parser.error("--interleave compares two models by clicks; give --beside RUN and --feedback FOLDER")
    if args.hash_questions and not args.feedback:
        parser.error("--hash-questions is of --feedback FOLDER")
    _log_to_stderr()
    with exit_on_user_error():
        with needs_extra("serving", "serve", "uvicorn", "fastapi", "starlette"):
            import uvicorn

            from dcdt.serving.app import make_app
        from dcdt.serving.blas_threads import one_thread
        from dcdt.serving.feedback import FeedbackLog
        from dcdt.serving.hot_reload import ReloadingRecommender
        from dcdt.serving.load import served_run

        paths = [args.run, *([args.beside] if args.beside else [])]
        is_folder = bool(args.embedder) and user_path(args.embedder).is_dir()
        overrides = [override("embedder.package" if is_folder else "embedder", args.embedder)] if args.embedder else []
        runs = [served_run(path, logging.getLogger("dcdt.serve").info, overrides) for path in paths]
        recommenders = [ReloadingRecommender(run, args.threads, args.engine, args.moment_link) for run in runs]
        for recommender in recommenders if args.abstain else []:
            recommender.served.check_abstain()
        feedback = FeedbackLog(args.feedback, args.hash_questions) if args.feedback else None
        app = make_app(
            recommenders,
            abstain=args.abstain,
            log_questions=args.log_questions,
            hosts=hosts,
            feedback=feedback,
            interleave=args.interleave,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=args.host,
                port=args.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=10,
                h11_max_incomplete_event_size=256 * 1024,  # so that a question too long gets its limit as answer
            )
        )
        sockets = [_socket(args.host, args.port)]
    host, port = sockets[0].getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"http://{host}:{port}  (API: /docs; Ctrl-C stops)", flush=True)  # noqa: T201
    with one_thread():  # for all questions at once, which need not set it one by one
        server.run(sockets=sockets)


def _socket(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is an error before anything is served."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio sets no TCP_NODELAY
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # requests before the service is ready wait
    except OSError as error:
        listener.close()
        remedy = "Give another --port; 0 takes a free one."
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            remedy = "Give a --host that is an address of this machine, such as 127.0.0.1."
        raise UserError(f"{host}:{port} cannot be listened on ({error.strerror}). {remedy}") from error
    return listener


if __name__ == "__main__":
    main()
