"""Fit one model on the questions of several schools, which keep them: `python -m dcdt.federate STEP [FILE ...]`.

statistics out=FILE            at a school: sums over its questions
merge FILE ... out=FILE        at the hub: the sum of what the schools sent
losses FILE ... out=FILE       at a school: the quality of each penalty and weight, given the summed statistics
merge FILE ... out=RUN         at the hub, or a school: the run of the model of all schools

Files end in .safetensors; data.path=FOLDER, model=... and other settings of a run follow them (docs/federation.md).
"""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dcdt.cli import command, prepare_hydra
from dcdt.config import config_folder, parse
from dcdt.federation.config import take_federate_job
from dcdt.utils.errors import NotApplicable, UserError, format_error, is_user_error
from dcdt.utils.shell import user_path

STEPS = ("statistics", "losses", "merge")


def run(step: str, files: list[Path], config: DictConfig) -> str:
    """Do one step, and describe what was written."""
    job, rest = take_federate_job(config)
    settings = parse(rest)
    if bool(files) == (step == "statistics"):
        raise UserError(f"{step} takes {'no files' if files else 'the files of messages before the settings'}.")
    if step != "merge" and not job.out.endswith(".safetensors"):
        raise UserError(f"out={job.out}: {step} writes a file that ends in .safetensors.")

    from dcdt.federation.messages import add_messages
    from dcdt.federation.rounds import Member, merge

    if step == "merge":
        message = merge(files, settings, rest, job)
    else:
        member = Member.load(settings)
        total = add_messages([member.expected.read(path) for path in files]) if files else None
        message = member.message(job, total)
        message.write(Path(job.out))
    header = message.header
    noise = "no noise" if header.epsilon is None else f"epsilon {header.epsilon:g} at delta {header.delta:g}"
    count = f"{header.queries:,} queries or learners" if header.queries else "hidden number"
    return f"{header.kind}, schools: {header.schools}, {count}; {noise}: {job.out}"


def take_words() -> list[str]:
    """Take the step and its files, which stand before the overrides, from the command line."""
    words = []
    while len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-"):
        words.append(sys.argv.pop(1))
    return words


@command
def main() -> None:
    """The command."""
    given = list(sys.argv)
    step, *names = take_words() or ["--help"]
    if step not in STEPS:
        is_help = step == "--help"
        text = __doc__ if is_help else f"error: '{step}' is no step; choose one of {', '.join(STEPS)}."
        print(text, file=sys.stdout if is_help else sys.stderr)
        raise SystemExit(0 if is_help else 2)
    prepare_hydra()

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="federate")
    def job(config: DictConfig) -> None:
        os.chdir(HydraConfig.get().runtime.cwd)
        sys.argv = given  # which the provenance of a run quotes
        try:
            print(run(step, [user_path(name) for name in names], config))  # noqa: T201 - what the command says
        except Exception as error:
            if not is_user_error(error) and not isinstance(error, NotApplicable):
                raise
            print(f"error: {format_error(error)}", file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None

    job()


if __name__ == "__main__":
    main()
