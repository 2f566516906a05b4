from commands import dcdt, dcdt_process

from dcdt import doctor as module


def test_it_says_what_is_here_and_never_shows_a_key(tmp_path):
    secrets = {
        "OPENAI_API_KEY": "sk-secret-1",
        "WANDB_API_KEY": "secret-2",
        "OPENAI_BASE_URL": "http://u:secret-3@h/v1",
    }
    done = dcdt_process("doctor", **secrets, DCDT_CACHE=str(tmp_path / "cache"), DCDT_OUTPUTS=str(tmp_path / "out"))
    assert done.returncode == 0
    out = done.stdout
    lines = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in out.splitlines() if "  " in line}
    assert [lines[name] for name in secrets] == ["set"] * 3 and "secret" not in out
    assert lines["vectors"].startswith(f"{tmp_path / 'cache'}: 0 MB") and lines["W&B"] == "online"
    assert lines["torch"] and "accelerator" in lines
    assert out.splitlines()[-1].startswith("nothing stands in the way of a run")


def test_it_says_what_to_mend_where_a_folder_cannot_hold_a_run():
    target = "/proc/dcdt"  # where nobody can write, root neither
    done = dcdt("doctor", DCDT_OUTPUTS=target)
    assert done.returncode == 2
    assert any(line.startswith("fix: ") and target in line for line in done.stdout.splitlines())


def test_what_is_older_than_it_may_be_and_what_is_missing_is_to_mend(monkeypatch):
    needed = [
        'torch>=99; python_version >= "3.8"',
        "nowhere>=1",
        "numpy>=1",
        'atheris>=1; sys_platform == "linux" and extra == "fuzz"',
        'wheel>=1; sys_platform == "win32" and extra == "serve"',
        'absent>=1; extra == "serve"',
    ]
    monkeypatch.setattr(module, "requires", lambda name: needed)
    lines, problems = module.packages()
    assert len(problems) == 2 and problems[0].startswith("torch is ") and "needs >=99" in problems[0]
    assert problems[1] == "nowhere is missing: pip install 'dcdt'"
    told = dict(lines)
    assert told["absent"] == "not installed: pip install 'dcdt[serve]'" and "wheel" not in told
    assert "[fuzz]" in told["atheris"]
