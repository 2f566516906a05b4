"""Fit one model on the questions of several schools, which keep them: `python -m dcdt.federate STEP [FILE ...]`.

statistics out=FILE            at a school: sums over its questions
merge FILE ... out=FILE        at the hub: the sum of what the schools sent
losses FILE ... out=FILE       at a school: the quality of each penalty and weight, given the summed statistics
merge FILE ... out=RUN         at the hub, or a school: the run of the model of all schools

Files end in .safetensors; data.path=FOLDER, model=... and other settings of a run follow them (docs/federation.md).
"""

import os
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dcdt.cli import Parser, command, prepare_hydra
from dcdt.config import config_folder, parse
from dcdt.federation.config import take_federate_job
from dcdt.utils.errors import NotApplicable, UserError, exit_on_user_error
from dcdt.utils.shell import user_path


def run(step: str, files: list[Path], config: DictConfig) -> str:
    """Do one step, and describe what was written."""
    job, rest = take_federate_job(config)
    settings = parse(rest)
    if bool(files) == (step == "statistics"):
        raise UserError(f"{step} takes {'no files' if files else 'the files of messages before the settings'}.")
    if step != "merge" and not job.out.endswith(".safetensors"):
        raise UserError(f"out={job.out}: {step} writes a file that ends in .safetensors.")

    from dcdt.federation.messages import add_messages
    from dcdt.federation.schools import Member, merge

    if step == "merge":
        message = merge(files, settings, rest, job)
    else:
        member = Member.load(settings)
        message = member.message(job, add_messages([member.expected.read(path) for path in files]) if files else None)
        message.write(Path(job.out))
    header = message.header
    noise = "no noise" if header.epsilon is None else f"epsilon {header.epsilon:g} at delta {header.delta:g}"
    count = f"{header.queries:,} queries or learners" if header.queries else "hidden number"
    return f"{header.kind}, schools: {header.schools}, {count}; {noise}: {job.out}"


@command
def main() -> None:
    """The command."""
    given = list(sys.argv)
    parser = Parser("federate", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("statistics", "losses", "merge"))
    parser.add_argument("words", nargs="*", metavar="FILE, or KEY=VALUE", help="messages, and settings")
    words, options = parser.parse_known_args()
    sys.argv[1:] = [*options, *(word for word in words.words if "=" in word)]
    prepare_hydra()

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="federate")
    def job(config: DictConfig) -> None:
        os.chdir(HydraConfig.get().runtime.cwd)
        sys.argv = given  # which the provenance of a run quotes
        with exit_on_user_error():
            try:
                print(run(words.step, [user_path(word) for word in words.words if "=" not in word], config))  # noqa: T201
            except NotApplicable as error:
                raise UserError(str(error)) from error

    job()


if __name__ == "__main__":
    main()
