"""Helpers of all tests: results in a cache directory, and programs that use the daemon."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

import pytest

#: Longer than the slowest machine needs.
PATIENCE = 180.0


class Cache:
    """A cache directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def publish(
        self, name: str, expires_at: Any, data: Union[str, bytes] = "the result"
    ) -> Path:
        """Store a pair and return the path of its result."""
        result = self.path / f"{name}.result.json.lz4"
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_bytes(data.encode() if isinstance(data, str) else data)
        metadata = self.path / f"{name}.metadata.json"
        metadata.with_suffix(".tmp").write_text(json.dumps({"expires_at": expires_at}))
        metadata.with_suffix(".tmp").rename(metadata)
        return result

    def names(self) -> List[str]:
        """The files that are left."""
        return sorted(entry.name for entry in self.path.rglob("*") if entry.is_file())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    path = tmp_path / "cached_results"
    path.mkdir()
    return Cache(path)


async def until(condition: Callable[[], Any], what: str = "the condition holds") -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain waited until {what}"
        await asyncio.sleep(0.002)


def wait_until(condition: Callable[[], Any], what: str = "the condition holds") -> None:
    """Wait until the condition holds, without an event loop."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain waited until {what}"
        time.sleep(0.002)


PREAMBLE = """
import asyncio, json, logging, os, signal, sys, threading, time
from pathlib import Path
from result_cleaner import ResultCleanupDaemon
# A shell that runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
CACHE = Path(sys.argv[1])

async def until(condition):
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, "in vain waited"
        await asyncio.sleep(0.002)

def publish(name, expires_at):
    result = CACHE / f"{name}.result.json.lz4"
    result.write_text("the result")
    (CACHE / f"{name}.metadata.json").write_text(json.dumps({"expires_at": expires_at}))
    return result
"""


class Program:
    """A program of its own that uses the daemon."""

    def __init__(self, cache: Cache, script: str, env: Optional[Dict[str, str]] = None) -> None:
        text = PREAMBLE + textwrap.dedent(script)
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", text, str(cache.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def wait_for_line(self, wanted: str) -> None:
        """Wait until it has printed the line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == wanted:
                return
        raise AssertionError(f"it never printed {wanted}: {self.process.communicate()[1]}")

    def finish(self, code: int = 0) -> "Finished":
        """Wait for its end, which takes no longer than stopping takes."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()
        assert self.process.returncode == code, f"{self.process.returncode}: {out}{err}"
        assert "Fatal Python error" not in err and "panicked" not in err, err
        return Finished(out, err)


class Finished:
    """What a program wrote."""

    def __init__(self, out: str, err: str) -> None:
        self.out = out
        self.err = err


RunProgram = Callable[..., Program]


@pytest.fixture
def program(cache: Cache) -> Iterator[RunProgram]:
    started: List[Program] = []

    def start(script: str, env: Optional[Dict[str, str]] = None) -> Program:
        started.append(Program(cache, script, env))
        return started[-1]

    yield start
    for program in started:
        program.process.kill()
        program.process.communicate()
