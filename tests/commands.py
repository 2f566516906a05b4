"""The commands of the package, called in this process or started as a process of their own."""

import contextlib
import importlib
import io
import logging
import os
import random
import subprocess
import sys
import traceback
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton

FAST = ["trainer=cpu", "trainer.max_epochs=3", "logger=csv", "callbacks.progress=false"]
SILENT = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # in a fresh interpreter


@dataclass
class Finished:
    """A command that has ended, with the attributes of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def clean_environment(**changes):
    """The environment without what steers W&B and the package, so that the machine's own settings do not count."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "DCDT"))}
    return {**kept, "COLUMNS": "120", **changes}


def dcdt_process(command, *arguments, stdin="", cwd=None, timeout=300, **environment):
    """Run `python -m dcdt.<command>` as a process: for signals, import-time checks and the environment at start-up.

    Args:
        command: name of the module.
        arguments: converted to text.
        stdin: text on its standard input.
        cwd: folder in which it runs.
        timeout: in seconds.
        environment: variables of the environment that are changed.

    Returns:
        The finished process.
    """
    line = [sys.executable, "-m", f"dcdt.{command}", *map(str, arguments)]
    env = clean_environment(**environment)
    return subprocess.run(line, capture_output=True, text=True, input=stdin, cwd=cwd, env=env, timeout=timeout)


def dcdt(command, *arguments, stdin="", cwd=None, **environment):
    """Call the `main` of `dcdt.<command>` in this process, which spares the imports of a new one.

    What a command changes of its process (arguments, streams, folder, environment, logging, warnings, Hydra, random
    states, threads) is as before afterwards. Arguments and result are those of `dcdt_process`.
    """
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with same_process_afterwards(), logging_of_a_new_process(streams[1]):
        sys.argv = [f"dcdt/{command}.py", *map(str, arguments)]  # as of python -m
        sys.stdin, (sys.stdout, sys.stderr) = io.StringIO(stdin), streams
        replace_environment(clean_environment(**environment))
        os.chdir(cwd or os.curdir)
        code = exit_code(importlib.import_module(f"dcdt.{command}").main)
    return Finished(code, *(stream.buffer.getvalue().decode() for stream in streams))


def exit_code(main):
    """The code with which a process that calls `main` ends; what the interpreter would print goes to sys.stderr."""
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return int(end.code is not None) if not isinstance(end.code, int) else end.code
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return 1
    return 0


def replace_environment(env):
    os.environ.clear()
    os.environ.update(env)


@contextlib.contextmanager
def same_process_afterwards():
    """Undo what a command changes of its process."""
    names = ("argv", "stdin", "stdout", "stderr", "excepthook")
    before = {name: getattr(sys, name) for name in names}
    folder, env = os.getcwd(), dict(os.environ)
    hydra, threads, precision = Singleton.get_state(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    deterministic, states = torch.are_deterministic_algorithms_enabled(), random_states()
    GlobalHydra.instance().clear()
    with warnings_of_a_new_process():
        try:
            yield
        finally:
            GlobalHydra.instance().clear()
            Singleton.set_state(hydra)
            for name, value in before.items():
                setattr(sys, name, value)
            os.chdir(folder)
            replace_environment(env)
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.use_deterministic_algorithms(deterministic)
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002 - the global one
            torch.set_rng_state(states[2])


def random_states():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the global one


@contextlib.contextmanager
def warnings_of_a_new_process():
    """Show warnings on sys.stderr by the interpreter's own filters instead of handing them to pytest."""

    def show(message, category, filename, lineno, file=None, line=None):
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in SILENT:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def logging_of_a_new_process(stderr):
    """Log to `stderr` and not to pytest; afterwards every logger has its handlers and its level again."""
    root = logging.getLogger()
    loggers = [root, *known_loggers(root)]
    before = [(item, item.handlers[:], item.level, item.propagate, item.disabled) for item in loggers]
    root.handlers, root.level = [], logging.WARNING
    root.manager._clear_cache()
    streams = {handler: handler.stream for handler in printing(loggers)}
    for handler in streams:
        handler.stream = stderr
    try:
        yield
    finally:
        # a library that was imported by the command made its handler meanwhile: `stderr` is closed soon
        for handler in printing(known_loggers(root)):
            if handler.stream is stderr:
                handler.stream = streams.get(handler, sys.__stderr__)
        for item, *state in before:
            item.handlers, item.level, item.propagate, item.disabled = state
        root.manager._clear_cache()


def known_loggers(root):
    return [item for item in root.manager.loggerDict.values() if isinstance(item, logging.Logger)]


def printing(loggers):
    return [handler for item in loggers for handler in item.handlers if type(handler) is logging.StreamHandler]


def mended(done, *expected):
    """The command ended as a mistake the user can mend: exit 2, at most two lines of message, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    for text in expected:
        assert text in done.stderr


def on(folder, outputs):
    """Overrides that train on a folder made by `make_collection`, with its own vectors."""
    return ["data=files", f"data.path={folder}", f"data.cache={folder}/embeddings", f"outputs={outputs}"]
