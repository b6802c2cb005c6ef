"""`optout` for tests that run it often: forked from a process that has loaded the program, which takes longest.

Arguments, environment, output and exit code are those of a process. `optout` as it is installed is tested by
tests/agreements/test_without_docker.py, and on a terminal by tests/integration/test_reconcile.py.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory

from tests.processes import ROOT
from worker.cli import COMMANDS, main

_SECONDS = 120
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [__name__, *(f"worker.cli.{name.replace('-', '_')}" for name in COMMANDS)]
)  # fmt: skip


def run_optout(args: Sequence[str], env: Mapping[str, str]) -> CompletedProcess[str]:
    """Run `optout ARGS` to its end. Raises TimeoutExpired."""
    command = ["optout", *args]
    with TemporaryDirectory() as folder:
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        process = _processes.Process(target=_run, args=(command, dict(env), *outputs))
        process.start()
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutExpired(command, _SECONDS)
        stdout, stderr = (path.read_text() if path.exists() else "" for path in outputs)
        return CompletedProcess(command, process.exitcode, stdout, stderr)


def _run(command: Sequence[str], env: Mapping[str, str], stdout: Path, stderr: Path) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = list(command)
    sys.exit(main())
