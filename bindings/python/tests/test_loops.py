"""Event loops of all kinds, and several at once."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, List

import pytest

from conftest import Cache, RunProgram, until, wait_until
from result_cleaner import ResultCleanupDaemon


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(180)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


def make(path: Path) -> ResultCleanupDaemon:
    return ResultCleanupDaemon(cache_dir=path, metrics_url=None)


def test_several_daemons_on_two_loops(tmp_path: Path) -> None:
    loops = [LoopThread(), LoopThread()]
    caches = [Cache(tmp_path / str(number)) for number in range(6)]
    daemons = [make(cache.path) for cache in caches]
    for number, daemon in enumerate(daemons):
        loops[number % 2].run(daemon.start())
    for number, cache in enumerate(caches):
        for name in range(number + 1):
            cache.publish(str(name), time.time() + 0.2)
    for number, daemon in enumerate(daemons):
        while daemon.total_deleted <= number:
            time.sleep(0.002)
    assert all(cache.names() == [] for cache in caches)
    for number, daemon in enumerate(daemons):
        loops[number % 2].run(daemon.stop())
        assert not daemon.running
        assert all(other.running for other in daemons[number + 1 :])
    for loop in loops:
        loop.end()
        loop.loop.close()


def test_stop_from_another_loop(cache: Cache) -> None:
    first, second = LoopThread(), LoopThread()
    daemon = make(cache.path)
    first.run(daemon.start())
    task = daemon.cleanup_task
    assert task is not None
    second.run(daemon.stop())
    assert not daemon.running
    wait_until(task.done, "the task on its own loop ends, too")
    # It can begin anew there.
    second.run(daemon.start())
    cache.publish("old", 1.5)
    wait_until(lambda: daemon.total_deleted == 1)
    first.end()
    # A loop that does not run any more does not hold up the stop.
    second.end()
    asyncio.run(daemon.stop())
    assert not daemon.running
    second.loop.run_until_complete(asyncio.sleep(0.01))
    for loop in [first.loop, second.loop]:
        loop.close()


def test_a_loop_that_is_closed_under_it_ends_it(cache: Cache) -> None:
    loop = asyncio.new_event_loop()
    daemon = make(cache.path)
    loop.run_until_complete(daemon.start())
    cache.publish("old", 1.5)
    wait_until(lambda: daemon.total_deleted == 1)
    task = daemon.cleanup_task
    assert task is not None
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert not daemon.running and daemon.get_stats()["total_deleted"] == 1
    cache.publish("more", 1.5)
    assert asyncio.run(daemon._cleanup_expired())["deleted_count"] == 1

    async def again() -> None:
        async with daemon:
            cache.publish("again", 1.5)
            await until(lambda: daemon.total_deleted == 3)

    asyncio.run(again())


def test_a_loop_that_ends_in_order_stops_it_gracefully(cache: Cache) -> None:
    daemon = make(cache.path)
    asyncio.run(daemon.start())
    assert not daemon.running
    assert daemon.cleanup_task is not None and daemon.cleanup_task.cancelled()


async def test_a_stop_right_after_the_start_stops_the_engine(cache: Cache) -> None:
    daemon = make(cache.path)
    for _ in range(5):
        await daemon.start()
        await daemon.stop()
        assert daemon._session is not None and daemon._session.stats()["running"] is False


async def test_a_start_that_is_cancelled_leaves_nothing_behind(cache: Cache) -> None:
    daemon = make(cache.path)
    for delay in [0, 0.0001, 0.001]:
        start = asyncio.ensure_future(daemon.start())
        await asyncio.sleep(delay)
        start.cancel()
        await asyncio.wait({start})
        if start.cancelled():
            assert not daemon.running
        await daemon.stop()
        assert not daemon.running
    result = cache.publish("kept", time.time() + 0.2)
    await asyncio.sleep(1.5)
    assert result.exists()
    async with daemon:
        await until(lambda: not result.exists())


async def test_each_of_several_starts_learns_why_it_failed(cache: Cache) -> None:
    daemon = ResultCleanupDaemon(cache_dir=cache.path, metrics_url="nonsense")
    outcomes = await asyncio.gather(daemon.start(), daemon.start(), return_exceptions=True)
    assert all(isinstance(outcome, ValueError) for outcome in outcomes), outcomes
    daemon.metrics_url = None
    first, second = asyncio.ensure_future(daemon.start()), asyncio.ensure_future(daemon.start())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert daemon.running
    await daemon.stop()


async def test_a_stop_during_the_start_wins(cache: Cache) -> None:
    daemon = make(cache.path)
    start = asyncio.ensure_future(daemon.start())
    await asyncio.sleep(0)
    await daemon.stop()
    await start
    assert not daemon.running


UVLOOP = """
import uvloop

async def main():
    class Store:
        paths = []
        def removed(self, path):
            self.paths.append(path)
    daemon = ResultCleanupDaemon(Store(), cache_dir=CACHE, metrics_url=None)
    await daemon.start()
    events = daemon.subscribe()
    for number in range(250):
        publish(str(number), time.time() + 0.1)
    await until(lambda: len(Store.paths) == 250 and daemon.total_deleted == 250)
    assert (await daemon.sweep())["checked_count"] == 0
    print(type(asyncio.get_running_loop()).__module__)

loop = uvloop.new_event_loop()
loop.run_until_complete(main())
for task in asyncio.all_tasks(loop):
    task.cancel()
    loop.run_until_complete(asyncio.wait({task}))
loop.close()
"""


def test_uvloop(cache: Cache, program: RunProgram) -> None:
    pytest.importorskip("uvloop")
    finished = program(UVLOOP).finish()
    assert "uvloop" in finished.out and cache.names() == []
    assert "✓ Result cleanup daemon stopped" in finished.err


SUBINTERPRETER = """
try:
    import _interpreters as interpreters
    create = lambda: interpreters.create("legacy")
    run = lambda id, code: interpreters.run_string(id, code)
except ImportError:
    import _xxsubinterpreters as interpreters
    create = lambda: interpreters.create(isolated=False) if sys.version_info >= (3, 10) else interpreters.create()
    run = interpreters.run_string

code = '''
try:
    import result_cleaner
except ImportError as error:
    print("refused:", error, flush=True)
else:
    print("imported", flush=True)
'''
first = create()
run(first, code)
"""


@pytest.mark.parametrize("first", ["", "import result_cleaner\n"])
def test_a_subinterpreter_is_refused_whichever_comes_first(first: str) -> None:
    text = f"import sys\n{first}{SUBINTERPRETER}"
    text += "import result_cleaner\nprint('main:', result_cleaner.__version__)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "refused: result_cleaner can't be used in a subinterpreter" in done.stdout
    assert "main: 0." in done.stdout and "imported" not in done.stdout


async def test_the_loop_goes_on_while_thousands_are_deleted(cache: Cache) -> None:
    removed: List[Path] = []

    class Store:
        def removed(self, path: Path) -> None:
            removed.append(path)

    total = 5000
    for number in range(total):
        cache.publish(f"{number % 10}/{number}", 1.5)
    turns = 0
    daemon = ResultCleanupDaemon(Store(), cache_dir=cache.path, metrics_url=None)
    async with daemon:
        while len(removed) < total:
            turns += 1
            await asyncio.sleep(0)
    assert turns >= total / 100, "at most a hundred a turn"
