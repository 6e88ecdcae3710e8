"""Compares the daemon with a polling daemon in Python, side by side, and prints ratios.

    python benches/compare.py [--rounds 5] [--wheel FILE]

Run it with the Python of a virtual environment that has the package, built for release. The pairs are in memory
(/dev/shm) unless TMPDIR is set. The polling daemon is one as the integration guide describes it: it walks, reads,
parses, compares and deletes, in the event loop.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Awaitable, Callable, Dict, List, Optional, Tuple

from result_cleaner import ResultCleanupDaemon

#: What the integration guide promises, in milliseconds.
PROMISED = {100: 50, 1_000: 200, 10_000: 2_000}
HEARTBEAT_PAIRS = 20_000
EXPIRING = 300


async def poll(directory: Path) -> int:
    """Makes one cleanup as the polling daemon does."""
    deleted = 0
    for result in list(directory.rglob("*.result.json.lz4")):
        metadata = result.with_name(result.name.replace(".result.json.lz4", ".metadata.json"))
        if not metadata.exists():
            continue
        with open(metadata, encoding="utf-8") as file:
            expires_at = datetime.fromisoformat(json.load(file)["expires_at"])
        if datetime.now() < expires_at:
            continue
        _ = result.stat().st_size + metadata.stat().st_size
        result.unlink()
        metadata.unlink()
        deleted += 1
    return deleted


async def engine(directory: Path) -> int:
    """Makes one cleanup by the engine."""
    daemon = ResultCleanupDaemon(cache_dir=directory, metrics_url=None)
    return (await daemon._cleanup_expired())["deleted_count"]


def make_pairs(directory: Path, count: int) -> None:
    """Makes expired pairs, old enough that none is half published."""
    text = json.dumps({"expires_at": "2025-11-18T12:00:00", "file_size": 1024})
    for number in range(count):
        session = directory / str(number // 100)
        session.mkdir(exist_ok=True)
        (session / f"{number}.result.json.lz4").write_bytes(b"x" * 1024)
        (session / f"{number}.metadata.json").write_text(text)


def cleanup(work: Callable[[Path], Awaitable[int]], count: int) -> Tuple[float, float]:
    """Returns the milliseconds of a cleanup, and the worst lateness of a heartbeat of 1 ms meanwhile."""
    directory = Path(tempfile.mkdtemp(prefix="result-cleaner-bench-", dir=place()))
    worst = 0.0

    async def beat() -> None:
        nonlocal worst
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, (time.perf_counter() - begin) * 1000 - 1)

    async def run() -> float:
        heart = asyncio.ensure_future(beat())
        await asyncio.sleep(0.05)
        nonlocal worst
        worst = 0.0
        begin = time.perf_counter()
        deleted = await work(directory)
        took = (time.perf_counter() - begin) * 1000
        # A blocked heart beats only now.
        await asyncio.sleep(0.005)
        heart.cancel()
        assert deleted == count, f"{deleted} of {count}"
        return took

    try:
        make_pairs(directory, count)
        # Results that have just been made may be half published for a second.
        time.sleep(1.1)
        return asyncio.run(run()), worst
    finally:
        shutil.rmtree(directory)


def place() -> Optional[str]:
    return None if "TMPDIR" in os.environ else "/dev/shm"


def medians(count: int, rounds: int) -> Dict[str, Tuple[float, float]]:
    """Measures both sides in turn, so that other programs disturb both."""
    sides = {"polling": poll, "engine": engine}
    found: Dict[str, List[Tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, work in sides.items():
            found[side].append(cleanup(work, count))
    return {
        side: (
            statistics.median(took for took, _ in times),
            max(worst for _, worst in times),
        )
        for side, times in found.items()
    }


#: Beside the modules of Python that the package uses.
IMPORT = """
import asyncio, atexit, dataclasses, itertools, json, logging, math, pathlib, typing, weakref, time
begin = time.perf_counter()
import result_cleaner
print((time.perf_counter() - begin) * 1000)
"""

MEMORY = """
import asyncio, tempfile
from result_cleaner import ResultCleanupDaemon

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

async def main():
    before = resident()
    with tempfile.TemporaryDirectory() as directory:
        async with ResultCleanupDaemon(cache_dir=directory, metrics_url=None) as daemon:
            while daemon.cleanup_count == 0:
                await asyncio.sleep(0.01)
            print(resident() - before)

asyncio.run(main())
"""


class Store:
    """A result store that keeps how many milliseconds after its expiry it was told of each removal."""

    def __init__(self) -> None:
        self.expires_at: Dict[str, float] = {}
        self.lateness: List[float] = []

    def removed(self, path: Path) -> None:
        self.lateness.append((time.time() - self.expires_at[path.name]) * 1000)


def lateness_of_removals(count: int) -> List[float]:
    """Returns the sorted lateness of the calls of `removed` while results expire one after the other."""
    directory = Path(tempfile.mkdtemp(prefix="result-cleaner-bench-", dir=place()))
    store = Store()

    async def run() -> None:
        async with ResultCleanupDaemon(cache_dir=directory, metrics_url=None, result_store=store):
            begin = time.time() + 2.5
            for number in range(count):
                expires_at = round(begin + number * 0.013, 6)
                result = directory / f"{number}.result.json.lz4"
                store.expires_at[result.name] = expires_at
                result.write_bytes(b"x" * 1024)
                (directory / f"{number}.metadata.json").write_text(json.dumps({"expires_at": expires_at}))
            while len(store.lateness) < count:
                assert time.time() < begin + count * 0.013 + 10, f"{len(store.lateness)} of {count}"
                await asyncio.sleep(0.1)

    try:
        asyncio.run(run())
        return sorted(store.lateness)
    finally:
        shutil.rmtree(directory)


def output_of(code: str) -> float:
    """Returns the number that a Python process prints which runs `code`."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wheel", type=Path)
    arguments = parser.parse_args()
    print(f"CPython {sys.version.split()[0]}, {os.cpu_count()} cores, pairs in {place() or os.environ['TMPDIR']}")
    for count, promised in PROMISED.items():
        both = medians(count, arguments.rounds)
        (polling, _), (ours, _) = both["polling"], both["engine"]
        print(
            f"cleanup of {count} expired pairs: {ours:.1f} ms, polling {polling:.1f} ms "
            f"(ratio {ours / polling:.2f}); the guide promises < {promised} ms"
        )
    both = medians(HEARTBEAT_PAIRS, max(1, arguments.rounds // 2))
    ours, polling = both["engine"][1], both["polling"][1]
    print(
        f"worst lateness of a 1 ms heartbeat while {HEARTBEAT_PAIRS} pairs are deleted: "
        f"{ours:.0f} ms, polling {polling:.0f} ms (ratio {ours / polling:.4f})"
    )
    lateness = lateness_of_removals(EXPIRING)
    print(
        f"from expiry until result_store.removed is called, {EXPIRING} results: median {statistics.median(lateness):.1f} ms, "
        f"p99 {lateness[len(lateness) * 99 // 100]:.1f} ms"
    )
    imports = statistics.median(output_of(IMPORT) for _ in range(15))
    print(f"import, beside the modules of Python that it uses: {imports:.1f} ms")
    print(f"memory of a running daemon: {output_of(MEMORY) / 1024:.1f} MiB")
    if arguments.wheel:
        print(f"wheel: {arguments.wheel.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
