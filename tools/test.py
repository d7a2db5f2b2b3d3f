"""Runs the tests in stages, the linters beside the first, and stops at a red one; a skipped test counts as failed.
Run by make with the Python of .venv: `python tools/test.py [--long] [STAGE ...]`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from setup import Show

ROOT = Path(__file__).resolve().parents[1]
PAST = ROOT / ".venv" / "test-seconds.json"
LIMIT, LONG_LIMIT = 1800.0, 7200.0  # seconds; a stage that hangs is ended and red
LABELS = {
    "lint": "lint",
    "core": "core",
    "properties": "properties",
    "processes": "real processes",
    "kills": "kills",
    "data": "real data",
}
MARKS = tuple(LABELS)[1:]
WORKERS = {  # how pytest divides a stage; whole files where their tests share a federation and mostly wait for it
    "core": ["-n2", "--dist=worksteal"],
    "properties": ["-n2", "--dist=worksteal"],
    "processes": ["-n3", "--dist=loadfile"],
    "kills": ["-n2", "--dist=worksteal"],
    "data": ["-n2", "--dist=worksteal"],
}
FEW = 10  # tests that are over before a second worker has started
GUESS = {"lint": 6.0, "core": 0.02, "properties": 0.5, "processes": 0.6, "kills": 1.7, "data": 4.0}  # seconds a test
ENDED = threading.Event()  # the present stages are over, or given up
CHECKS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "layers": ["lint-imports"],
}


class Ran(NamedTuple):
    """A stage that ran: how many passed and failed, and what there is to read if any did."""

    passed: int
    failed: int
    output: str


class Census:
    """A pytest plugin that writes how many tests each stage has, file by file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_collection_finish(self, session: Any) -> None:
        files: dict[str, dict[str, int]] = {mark: {} for mark in MARKS}
        for item in session.items:
            counts, name = files[stage_of({mark.name for mark in item.iter_markers()})], str(item.path)
            counts[name] = counts.get(name, 0) + 1
        self.path.write_text(json.dumps(files))


def stage_of(marks: set[str]) -> str:
    """The last stage that a test's marks name; `core` without any."""
    return next((mark for mark in reversed(MARKS) if mark in marks), "core")


def choice(stage: str, long: bool) -> str:
    """pytest's expression for the tests of `stage`, as `stage_of` has it."""
    others = [*MARKS[MARKS.index(stage) + 1 :], *([] if long else ["long"])]
    return " and ".join([*([] if stage == "core" else [stage]), *(f"not {mark}" for mark in others)])


def census(long: bool) -> dict[str, dict[str, int]]:
    """Tests of each stage, file by file; ends here with pytest's words where a file cannot be imported."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "census.json")
        command = [sys.executable, __file__, "--census", str(path), "-m", "" if long else "not long"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if run.returncode or not path.exists():
            print(f"{run.stdout}{run.stderr}\n0 passed, 1 failed")
            sys.exit(1)
        found: dict[str, dict[str, int]] = json.loads(path.read_text())
    return found


def headline(counts: Mapping[str, int], past: Mapping[str, float]) -> str:
    """The first line; the minutes are the counts times seconds a test, of the last green run where there was one."""
    minutes = sum(count * past.get(stage, GUESS[stage]) for stage, count in counts.items()) / 60
    return f"{sum(counts.values())} tests, about {minutes:.{0 if minutes >= 3 else 1}f} minutes"


def lint(show: Show) -> Ran:
    """Runs the linters one after the other."""
    bad = []
    for name, (tool, *arguments) in CHECKS.items():
        code, output = watched([str(Path(sys.executable).with_name(tool)), *arguments], show)
        bad += [f"{name}\n{output}"] if code else []
    return Ran(len(CHECKS) - len(bad), len(bad), "\n".join(bad))


def watched(command: Sequence[str], show: Show, limit: float = LIMIT) -> tuple[int, str]:
    """Exit code and output of a command; its whole process group is killed on Ctrl-C and after `limit` seconds."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            end = time.monotonic() + limit
            while process.poll() is None and time.monotonic() < end and not ENDED.is_set():
                if show.live:
                    show.beat()
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return process.returncode, output.read()


def tests(stage: str, files: Mapping[str, int], long: bool, show: Show) -> Ran:
    """Runs pytest over the tests of one stage."""
    if not files:
        return Ran(0, 0, "")
    count = sum(files.values())
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "junit.xml")
        workers, limit = WORKERS.get(stage, []) if count >= FEW else [], LONG_LIMIT if long else LIMIT
        ask = ["-q", "--no-header", "--tb=short", f"--junitxml={report}", "-m", choice(stage, long)]
        code, output = watched([sys.executable, "-m", "pytest", *ask, *workers, *files], show, limit)
        passed, skipped = read_report(report) if report.exists() else (0, [])
    failed = max(count - passed, 1 if code else 0)
    said = output[max(output.find("\n====="), 0) :]  # without the dots
    return Ran(passed, failed, "\n".join([said, *(f"skipped: {name}" for name in skipped)]))


def read_report(path: Path) -> tuple[int, list[str]]:
    """How many tests passed, and the names of those that were skipped."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    bad = [{child.tag for child in case} & {"failure", "error", "skipped"} for case in cases]
    names = [f"{case.get('classname')}::{case.get('name')}" for case in cases]
    return bad.count(set()), [name for name, why in zip(names, bad, strict=True) if "skipped" in why]


def past_seconds() -> dict[str, float]:
    """Seconds a test of each stage took when it was last green here."""
    try:
        return dict(json.loads(PAST.read_text()))
    except (OSError, ValueError):
        return {}


def run(stages: Sequence[str], found: Mapping[str, Mapping[str, int]], long: bool) -> int:
    """Runs the stages up to the first red one; the exit code."""
    counts = {stage: sum(found[stage].values()) for stage in stages}
    past, show, passed, failed = past_seconds(), Show(), 0, 0
    print(headline(counts, past), flush=True)
    for group in groups(stages):
        show.start(" and ".join(LABELS[stage] for stage in group))
        with ThreadPoolExecutor(len(group)) as pool:
            work = [pool.submit(timed, stage, found[stage], long, show) for stage in group]
            try:
                results = [one.result() for one in work]
            finally:
                ENDED.set()  # nobody waits for what is left after Ctrl-C
        ENDED.clear()
        for stage, (ran, seconds) in zip(group, results, strict=True):
            passed, failed = passed + ran.passed, failed + ran.failed
            red = f", {ran.failed} failed" if ran.failed else ""
            show.line(f"{LABELS[stage]:<15}{ran.passed:>5} passed{red} {seconds:7.1f} s")
            if ran.failed:
                print(ran.output)
            else:
                past[stage] = seconds / max(ran.passed, 1)
        if failed:
            break
    PAST.write_text(json.dumps(past))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def groups(stages: Sequence[str]) -> list[list[str]]:
    """The stages that run at once: the linters, which need one core for a minute, beside the plain tests."""
    if {"lint", "core"} <= {*stages}:
        return [["lint", "core"], *([stage] for stage in stages if stage not in ("lint", "core"))]
    return [[stage] for stage in stages]


def timed(stage: str, files: Mapping[str, int], long: bool, show: Show) -> tuple[Ran, float]:
    """What became of a stage, and the seconds that it took."""
    began = time.monotonic()
    ran = lint(show) if stage == "lint" else tests(stage, files, long, show)
    return ran, time.monotonic() - began


def main() -> int:
    """Reads the arguments and runs; the stage on real data is left out where there is none (tests/conftest.py)."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("stages", nargs="*", metavar="STAGE", choices=[*LABELS, []], help=", ".join(LABELS))
    parse.add_argument("--long", action="store_true", help="also the tests that take minutes")
    asked = parse.parse_args()
    stages = [stage for stage in LABELS if stage in (asked.stages or LABELS)]
    found = {"lint": dict.fromkeys(CHECKS, 1), **(census(asked.long) if stages != ["lint"] else {})}
    return run([stage for stage in stages if found[stage] or stage != "data"], found, asked.long)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--census"]:
        import pytest

        sys.exit(pytest.main(["--collect-only", "-q", *sys.argv[3:]], plugins=[Census(Path(sys.argv[2]))]))
    sys.exit(main())
