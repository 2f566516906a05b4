"""The first ten minutes: what is mistyped, what --help says, and the tab key."""

import re
import resource
import shlex
import subprocess
import sys
from importlib import import_module

import pytest
from commands import clean_environment, dcdt, dcdt_process, mended

from dcdt import cli
from dcdt.completion import SCRIPT, complete
from dcdt.config import config_folder
from dcdt.utils.errors import UserError

ROOT = config_folder().parent
MISTAKES = {
    "model=dctd": ["model=dctd: there is no such option", "Did you mean 'dcdt'?", "zero_shot"],
    "experiment=bset": ["Did you mean 'best'?"],
    "trainer.max_epoch=3": ["trainer.max_epoch is no key", "Did you mean 'max_epochs'?"],
    "modle=dcdt": ["modle is no key of the configuration", "Did you mean 'model'?"],
    "sed=1": ["Did you mean 'seed'?"],
    "loss.margn=1": ["Did you mean 'margin'?"],
    "callbacks.patients=3": ["Did you mean 'patience'?"],
    "model@model.second=dcdt_rige": ["Did you mean 'dcdt_ridge'?"],
    "model=dcdt,zero_shoot": ["Did you mean 'zero_shot'?"],
    "+trainer.max_epoch=3": ["unknown setting trainer.max_epoch", "Did you mean 'max_epochs'?"],
}


@pytest.mark.parametrize("text", MISTAKES)
def test_what_is_mistyped_is_named_with_what_was_meant(text):
    mended(dcdt("run", text, "logger=none"), *MISTAKES[text])


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["model=mine", "--config-dir", "FOLDER"],
        ["model=mine", "--config-dir=FOLDER"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "-m"],
        ["hydra.run.dir=x", "split.index=range(0,2)", "~sweep", "++model.width=8", "trainer.extra.profiler=simple"],
        ["model@model.second=zero_shot_whitened", "model.second.whiten=soft", "import.field=text", "plugins=[]"],
    ],
)
def test_what_is_right_passes(texts, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults: [dcdt]\n")
    cli_texts = [text.replace("FOLDER", str(tmp_path)) for text in texts]
    from dcdt.config import check_choices

    check_choices(cli_texts)


def test_a_command_in_a_message_is_as_it_was_typed_once_and_not_twice(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python", "-m", "dcdt.run"])
    once = str(UserError("no index. Run: python -m dcdt.index RUN build"))
    assert once == "no index. Run: .venv/bin/python -m dcdt.index RUN build" == str(UserError(once))
    monkeypatch.setattr(sys, "argv", ["run.py", "--title", "-xyz"])
    monkeypatch.setattr("argparse.ArgumentParser.error", lambda _, message: sys.exit(message))
    with pytest.raises(SystemExit, match=r"minus: \.venv/bin/python -m dcdt\.recommend --title=-xyz"):
        cli.Parser("recommend").error("wrong")


def test_a_mistyped_command_is_named_with_what_was_meant(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dcdt", "recomend"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "Did you mean 'recommend'?" in capsys.readouterr().err


def test_a_wrong_path_is_refused_before_anything_large_is_imported(tmp_path):
    code = (
        "import sys; sys.argv = ['dcdt', 'run', 'data=files', 'data.path=wrong']\n"
        "from dcdt.cli import main\n"
        "try:\n    main()\nfinally:\n    print({'torch', 'pandas', 'lightning'} & set(sys.modules))"
    )
    env = clean_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60
    )
    mended(done, "wrong is not a collection: there is no such folder")
    assert done.stdout == "set()\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wrong_path_is_refused_within_a_second(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the processor: the machine may be busy
    done = dcdt_process("run", "data=files", "data.path=wrong", cwd=tmp_path, PYTHONPATH=str(ROOT))
    mended(done, "there is no such folder")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.2


def test_help_has_a_word_on_every_option_and_the_comments_of_keys():
    done = dcdt("run", "--help")
    assert done.returncode == 0, done.stderr
    for path in config_folder().glob("[!h]*/*.yaml"):
        assert re.search(rf"^  {path.stem} +\w.{{5}}", done.stdout, re.MULTILINE), path
    for line in ("max_epochs: 200", "patience: 15  # validations without a better one", "seed: 0  # initialisation"):
        assert line in done.stdout
    assert "$DCDT_OUTPUTS" in done.stdout and "${" not in done.stdout.split("Configuration with")[0]


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in ("run", "embed", "federate")])
def test_every_option_of_every_command_has_a_word(name, monkeypatch):
    parsers, made = [], cli.Parser.__init__

    def remember(self, *arguments, **options):
        made(self, *arguments, **options)
        parsers.append(self)

    monkeypatch.setattr(cli.Parser, "__init__", remember)
    with pytest.raises(SystemExit):
        import_module(cli.MODULES.get(name, f"dcdt.{name}")).main(["--help"])
    actions = [action for parser in parsers for action in parser._actions]
    assert len(actions) > 0
    assert [action.dest for action in actions if not action.help and action.dest != "action"] == []


COMPLETED = {
    "dcdt ": list(cli.COMMANDS),
    "dcdt re": ["report", "recommend"],
    "dcdt run model=zero_shot_": ["model=zero_shot_history", "model=zero_shot_transcript", "model=zero_shot_whitened"],
    "dcdt run mod": ["model=", "model."],
    "dcdt run see": ["seed="],
    "python -m dcdt.run trainer.max_": ["trainer.max_epochs="],
    "python -m dcdt.rec": ["dcdt.recommend"],
    "python -m dcdt.recommend la": ["latest"],
    "dcdt run data.path=": [],
    "dcdt run nothing.at=": [],
}


@pytest.mark.parametrize("line", COMPLETED)
def test_words_are_completed(line, tmp_path, monkeypatch):
    monkeypatch.setenv("DCDT_OUTPUTS", str(tmp_path))
    assert complete(line.split(" ")) == COMPLETED[line]


@pytest.mark.slow
def test_bash_completes_by_the_script():
    script = dcdt("completion", "bash").stdout
    assert script == SCRIPT.format(python=shlex.quote(sys.executable)) + "\n"
    for words in ("dcdt run model=dcdt_ri", "python -m dcdt.run model=dcdt_ri"):
        n = len(words.split()) - 1
        line = f'{script}\nCOMP_WORDS=({words}); COMP_CWORD={n}; _dcdt; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=clean_environment(), timeout=60)
        assert done.stdout.split() == ["model=dcdt_ridge", "model=dcdt_ridge_transcript"], done.stderr
    other = f'{script}\nCOMP_WORDS=(python -m json.t); COMP_CWORD=2; _dcdt; echo "${{#COMPREPLY[@]}}"'
    assert subprocess.run(["bash", "-c", other], capture_output=True, text=True, timeout=60).stdout == "0\n"


def test_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 120 and text.count("![") == 2
