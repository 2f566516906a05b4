import os
import subprocess
import sys
from contextlib import closing

import pytest

from dcdt.embeddings.claims import Claims

HOLDER = """
import sys
from pathlib import Path
from dcdt.embeddings.claims import Claims
with Claims(Path(sys.argv[1]), 7).take(["a", "b"]) as (free, others):
    print(free, others, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that claims the texts a and b until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "['a', 'b'] []\n"
    yield process
    process.kill()
    process.communicate()


def test_a_text_is_claimed_by_one_process_and_others_are_free(tmp_path, holder):
    with closing(Claims(tmp_path, 3)) as claims:
        with claims.take(["b", "c", "a"]) as (free, others):
            assert (free, others) == (["c"], ["b", "a"])
        assert claims.owner().startswith(f"process {holder.pid} embeds 7 texts since ")
        holder.kill()  # its claims end with it
        claims.wait("a")
        with claims.take(["a", "b"]) as (free, others):
            assert (free, others) == (["a", "b"], [])


def test_who_began_later_is_named_while_it_runs(tmp_path, request):
    with closing(Claims(tmp_path, 3)) as claims:
        assert claims.owner() == "another process"
        holder = request.getfixturevalue("holder")
        assert claims.owner().startswith(f"process {holder.pid} embeds 7 texts")
        holder.kill()
        holder.communicate()
        assert claims.owner() == "another process"
        (tmp_path / ".filling").write_text(f"process {os.getpid()} \x1b[2J of a stranger")
        assert claims.owner() == f"process {os.getpid()} \\x1b[2J of a stranger"
