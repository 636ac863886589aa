"""A command on the leash: it is the command, and it does not outlive its parent."""

import os
import subprocess
import sys

import pytest

from proxy.cli.sidecar_command import leashed


def test_a_leashed_command_is_the_command() -> None:
    done = subprocess.run(
        leashed([sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(5)", "a b", "--c"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, "['a b', '--c']\n")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_it_ends_when_the_parent_is_killed() -> None:
    parent = (
        "import os, subprocess, sys\n"
        "from proxy.cli.sidecar_command import leashed\n"
        "code = 'import os, signal; os.write(1, str(os.getpid()).encode()); signal.pause()'\n"
        "subprocess.run(leashed([sys.executable, '-c', code]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert int(running.stdout.read1()) != running.pid
        running.kill()
        # The pipe ends when nobody holds it: when the child too is gone.
        assert running.stdout.read() == b""


def test_it_does_not_start_without_its_parent() -> None:
    command = leashed([sys.executable, "-c", "print('started')"])
    command[command.index(str(os.getpid()))] = "1"
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
