"""`.ci/run`: its last lines tell what has passed, what was not tested, and what passed only the second time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cli.tool import Done, environment, shell

CI = Path(__file__).parents[1] / ".ci" / "run"

#: Stands for make: what each call prints and returns is in a file, named by the target and the number of the call.
MAKE = """#!/bin/sh
count=$(cat "$PLAYS/$1.count" 2>/dev/null || echo 0)
count=$((count + 1))
echo "$count" >"$PLAYS/$1.count"
echo "$1 $ARGS" >>"$PLAYS/calls"
[ ! -e "$PLAYS/$1.$count" ] || . "$PLAYS/$1.$count"
"""


class Machine:
    """A checkout with nothing in it but `.ci/run`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for name in ("bin", "plays", ".ci"):
            (directory / name).mkdir()
        shutil.copy(CI, directory / ".ci")
        self.write(".ci/packages", "")
        self.write("bin/make", MAKE)
        for target in ("test", "test-hosts"):
            self.plays(target, "echo '12 passed, 1 skipped in 3.00s'")

    def write(self, name: str, text: str) -> None:
        """Make an executable file."""
        (self._directory / name).write_text(text)
        (self._directory / name).chmod(0o755)

    def plays(self, target: str, script: str, call: int = 1) -> None:
        """What `make TARGET` does when it is called for the nth time."""
        self.write(f"plays/{target}.{call}", script)

    def run(self) -> Done:
        """Run `.ci/run` to its end."""
        path = f"{self._directory / 'bin'}:{os.environ['PATH']}"
        env = environment(PATH=path, PLAYS=str(self._directory / "plays"), ARGS=None, MAKEFLAGS=None)
        return shell(["bash", str(self._directory / ".ci" / "run")], env=env, cwd="/")

    @property
    def calls(self) -> list[str]:
        """The targets that were made, with the options for pytest."""
        return [line.strip() for line in (self._directory / "plays" / "calls").read_text().splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def last_lines(done: Done) -> str:
    """What follows the heading of the summary."""
    return done.out.rpartition("--- summary\n")[2]


FAILURE = """echo 'FAILED tests/test_a.py::test_one[x-y] - AssertionError: no'
echo 'ERROR tests/test_b.py::test_two'
echo '2 failed, 10 passed in 3.00s'
exit 2"""


def test_all_is_run_and_told(machine: Machine) -> None:
    """A reader of the last lines would not know what was tested."""
    done = machine.run()
    assert done.code == 0
    assert machine.calls == ["demo", "venv", "lint", "test-hosts", "test"]
    lines = last_lines(done).splitlines()
    assert lines.count("12 passed, 1 skipped in 3.00s") == 2
    assert lines[-1].startswith("passed: ")


def test_what_the_laboratory_was_is_told(machine: Machine) -> None:
    """Tests that were skipped, because no kernel boots, would be taken for passed."""
    note = "echo 'note: NFS laboratory: none, its tests are skipped: no kernel'"
    machine.plays("test-hosts", f"{note}; echo '17 skipped in 1.00s'")
    done = machine.run()
    assert done.code == 0
    assert "\nNFS laboratory: none, its tests are skipped: no kernel\n" in last_lines(done)


def test_tests_that_pass_the_second_time_are_named(machine: Machine) -> None:
    """A test that fails now and then would never be noticed."""
    machine.plays("test", FAILURE)
    machine.plays("test", "echo '2 passed, 10 deselected in 1.00s'", call=2)
    done = machine.run()
    assert done.code == 0
    assert machine.calls[-1].startswith("test --last-failed")
    told = last_lines(done)
    assert "make test: FAILED" in told
    assert "make test, a second time, only the tests that failed: passed" in told
    assert "    tests/test_a.py::test_one[x-y]\n    tests/test_b.py::test_two\n" in told


def test_tests_that_fail_twice_fail(machine: Machine) -> None:
    """A fault would be reported as success."""
    machine.plays("test-hosts", FAILURE)
    machine.plays("test-hosts", FAILURE, call=2)
    done = machine.run()
    assert done.code == 1
    assert machine.calls[-1] == "test"  # which is run all the same
    assert last_lines(done).splitlines()[-1].startswith("FAILED: test-hosts, ")


@pytest.mark.parametrize("target", ["demo", "lint", "test"])
def test_what_fails_for_another_reason_is_not_repeated(machine: Machine, target: str) -> None:
    """A crash of pytest, or a finding of a linter, would pass because nothing is left to be run again."""
    machine.plays(target, "exit 2")
    done = machine.run()
    assert done.code == 1
    assert len(machine.calls) == 5
    assert last_lines(done).splitlines()[-1].startswith(f"FAILED: {target}, ")


def test_packages_that_cannot_be_installed_end_nothing(machine: Machine) -> None:
    """On a machine without a network nothing would be tested."""
    machine.write(".ci/packages", "exit 1")
    done = machine.run()
    assert done.code == 0
    assert "packages: some could not be installed" in last_lines(done)
