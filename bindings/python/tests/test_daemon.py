"""What a program that embeds the daemon relies on."""

import asyncio
import errno
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, List

import pytest

from conftest import Cache, until
from metrics import MetricsService
from result_cleaner import Deleted, Lagged, ResultCleanupDaemon, Skipped, SweepDone

GUIDE_KEYS = {
    "running": bool,
    "check_interval_hours": float,
    "total_cleanups": int,
    "total_deleted": int,
    "total_freed_bytes": int,
    "total_freed_mb": float,
    "total_errors": int,
    "cache_directory": str,
}
SWEEP_KEYS = {"deleted_count", "freed_bytes", "checked_count", "errors", "duration_ms"}


def make(cache: Cache, **settings: Any) -> ResultCleanupDaemon:
    return ResultCleanupDaemon(**{"cache_dir": cache.path, "metrics_url": None, **settings})


def test_the_constructor_needs_no_loop_and_has_the_guides_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    caplog.set_level(logging.INFO, "result_cleaner")
    daemon = ResultCleanupDaemon()
    assert daemon.result_store is None and daemon.check_interval == 21600
    assert daemon.cache_dir == tmp_path / ".omnimemory" / "cached_results"
    assert daemon.metrics_url == "http://localhost:8003"
    assert daemon.running is False and daemon.cleanup_task is None
    totals = (daemon.total_deleted, daemon.total_freed_bytes, daemon.total_errors)
    assert totals == (0, 0, 0) and daemon.cleanup_count == 0
    line = f"Initialized ResultCleanupDaemon (interval=21600s, cache_dir={daemon.cache_dir})"
    assert [record.getMessage() for record in caplog.records] == [line]
    store = object()
    daemon = ResultCleanupDaemon(store, 60, "~root/cache", "http://localhost:1")
    assert daemon.result_store is store and daemon.check_interval == 60
    assert daemon.cache_dir == Path(os.path.expanduser("~root/cache"))
    assert ResultCleanupDaemon(cache_dir=tmp_path).cache_dir == tmp_path


def test_settings_that_make_no_sense_are_refused() -> None:
    for interval in [0, -1, 0.5, float("nan"), float("inf")]:
        with pytest.raises(ValueError, match="check_interval"):
            ResultCleanupDaemon(check_interval=interval)
    with pytest.raises(ValueError, match="null byte"):
        ResultCleanupDaemon(cache_dir="a\0b")
    with pytest.raises(TypeError):
        ResultCleanupDaemon(cache_dir=3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        ResultCleanupDaemon(cache_dir="~no-such-user-here/x")


async def test_the_stats_have_the_guides_keys_and_types_at_any_time(cache: Cache) -> None:
    daemon = make(cache)
    cache.publish("later", time.time() + 3600)

    def check() -> None:
        stats: Any = daemon.get_stats()
        for key, kind in GUIDE_KEYS.items():
            assert type(stats[key]) is kind, (key, stats[key])
        assert list(stats)[: len(GUIDE_KEYS)] == list(GUIDE_KEYS)
        assert {"heap_size", "next_expiry", "watch"} <= set(stats)
        json.dumps(stats)

    check()
    await daemon.start()
    check()
    await until(lambda: daemon.get_stats()["heap_size"] == 1)
    stats = daemon.get_stats()
    assert stats["watch"] == "active" and str(stats["next_expiry"]).endswith("Z")
    assert stats["cache_directory"] == str(cache.path.resolve())
    await daemon.stop()
    check()


async def test_start_and_stop_may_be_repeated_and_the_totals_survive_a_restart(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "result_cleaner")
    daemon = make(cache)
    await daemon.stop()
    for run in range(1, 4):
        await asyncio.gather(daemon.start(), daemon.start())
        await daemon.start()
        assert daemon.running and daemon.cleanup_task is not None
        result = cache.publish("old", 1.5)
        await until(lambda: daemon.total_deleted == run)
        assert not result.exists()
        await until(lambda: daemon.cleanup_count >= run, "the first scan is over")
        freed = daemon.total_freed_bytes
        await asyncio.gather(daemon.stop(), daemon.stop())
        await daemon.stop()
        assert not daemon.running and daemon.cleanup_task.done()
        assert (daemon.total_deleted, daemon.total_freed_bytes) == (run, freed)
    kept = cache.publish("kept", time.time() + 0.2)
    await asyncio.sleep(1.5)
    assert kept.exists(), "it is stopped"
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("✓ Result cleanup daemon started (runs every 6h)") == 3
    assert lines.count("✓ Result cleanup daemon stopped") >= 3
    assert any(line.startswith("Cleanup completed: deleted=") for line in lines)


async def test_sweeps_have_the_documented_keys_and_count_before_the_start_too(
    cache: Cache,
) -> None:
    daemon = make(cache)
    cache.publish("old", 1.5)
    report = await daemon._cleanup_expired()
    assert set(report) == SWEEP_KEYS and report["deleted_count"] == 1
    assert daemon.total_deleted == daemon.cleanup_count == 1
    assert daemon.total_freed_bytes == report["freed_bytes"]
    await daemon.start()
    await until(lambda: daemon.cleanup_count >= 2, "the first scan is over")
    for sweep in [daemon.sweep, daemon._cleanup_expired]:
        count = daemon.cleanup_count
        report = await sweep()
        assert set(report) == SWEEP_KEYS and report["checked_count"] == 0
        assert daemon.cleanup_count > count
    await daemon.stop()
    assert (await daemon.sweep())["checked_count"] == 0
    assert daemon.total_deleted == 1


async def test_a_manual_cleanup_is_not_reported_and_the_daemons_sweeps_are(cache: Cache) -> None:
    with MetricsService() as metrics:
        daemon = make(cache, metrics_url=metrics.url)
        cache.publish("old", 1.5)
        await daemon._cleanup_expired()
        assert metrics.reports == []
        await daemon.start()
        await until(lambda: len(metrics.reports) >= 1, "the first scan is reported")
        await daemon._cleanup_expired()
        await daemon.sweep()
        await until(lambda: len(metrics.reports) >= 2, "the sweep is reported")
        cache.publish("old", 1.5)
        await until(lambda: daemon.total_deleted == 2)
        await daemon.stop()
        assert metrics.total("deleted_count") == 1
        assert all(report["path"] == "/track/cleanup" for report in metrics.reports)


async def test_a_cancelled_sweep_counts_what_it_still_does(cache: Cache) -> None:
    daemon = make(cache)
    for number in range(200):
        cache.publish(str(number), 1.5)
    sweep = asyncio.ensure_future(daemon._cleanup_expired())
    await asyncio.sleep(0)
    sweep.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweep
    await until(lambda: daemon.total_deleted == 200)
    assert cache.names() == []


async def test_the_exceptions_are_those_of_python(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for call in ["start", "sweep", "_cleanup_expired"]:
        with pytest.raises(NotADirectoryError) as raised:
            await getattr(ResultCleanupDaemon(cache_dir=file), call)()
        assert raised.value.errno == 20 and raised.value.filename == str(file)
    daemon = make(cache, metrics_url="localhost:8003")
    with pytest.raises(ValueError, match="http://"):
        await daemon.start()
    assert not daemon.running and daemon.cleanup_task is None
    daemon.metrics_url = None
    with pytest.raises(RuntimeError, match="start"):
        daemon.subscribe()
    await daemon.start()
    assert daemon.running
    await daemon.stop()


async def test_a_directory_that_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    # Not even root can follow it.
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    daemon = ResultCleanupDaemon(cache_dir=loop, metrics_url=None)
    with pytest.raises(OSError) as raised:
        await daemon._cleanup_expired()
    assert raised.value.errno == errno.ELOOP and raised.value.filename == str(loop)
    async with daemon:
        # The daemon itself goes on, and waits for it.
        with pytest.raises(OSError) as raised:
            while True:
                await daemon.sweep()
        assert raised.value.errno == errno.ELOOP and daemon.running
        loop.unlink()
        loop.mkdir()
        result = Cache(loop).publish("old", 1.5)
        await until(lambda: not result.exists())
    if os.geteuid() != 0:
        loop.chmod(0)
        with pytest.raises(PermissionError):
            await daemon._cleanup_expired()
        loop.chmod(0o700)


class Store:
    """A result store that wants to know what is gone."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.paths: List[Path] = []

    def removed(self, path: Path) -> None:
        asyncio.get_running_loop()
        self.paths.append(path)
        if self.fails:
            raise KeyError("on purpose")


async def test_the_result_store_is_called_on_the_event_loop(cache: Cache) -> None:
    store = Store()
    daemon = make(cache, result_store=store)
    first = cache.publish("first", 1.5)
    await daemon._cleanup_expired()
    assert store.paths == [first], "it was called before the sweep returned"
    await daemon.start()
    second = cache.publish("s/second", time.time() + 0.1)
    await until(lambda: len(store.paths) == 2)
    assert store.paths[1] == second and isinstance(store.paths[1], Path)
    await daemon.stop()


async def test_a_result_store_that_raises_does_no_harm(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(fails=True)
    daemon = make(cache, result_store=store)
    await daemon.start()
    for number in range(250):
        cache.publish(str(number), 1.5)
    await until(lambda: len(store.paths) == 250 and daemon.total_deleted == 250)
    assert daemon.total_errors == 0
    await daemon.stop()
    assert caplog.text.count("result_store.removed failed") == 250


async def test_names_that_are_not_utf8_arrive_as_python_has_them(cache: Cache) -> None:
    store = Store()
    daemon = make(cache, result_store=store)
    result = cache.publish(os.fsdecode(b"caf\xe9"), 1.5)
    await daemon._cleanup_expired()
    assert store.paths == [result]


async def test_events_come_to_each_subscriber_until_the_stop(cache: Cache) -> None:
    async with make(cache) as daemon:
        assert daemon.running
        first, second = daemon.subscribe(), daemon.subscribe()
        dropped = daemon.subscribe()
        result = cache.publish("old", 1.5)
        broken = cache.publish("broken", "nonsense")
        seen: List[Any] = []
        async for event in first:
            seen.append(event)
            if sum(isinstance(event, (Deleted, Skipped)) for event in seen) == 2:
                break
        deleted = [event for event in seen if isinstance(event, Deleted)]
        assert deleted[0].result == result and deleted[0].late > 0
        skipped = [event for event in seen if isinstance(event, Skipped)]
        assert skipped[0].path == broken.with_name("broken.metadata.json")
        await dropped.aclose()
        assert [event async for event in dropped] == []
        await daemon.sweep()
    rest = [event async for event in second]
    assert {Deleted, Skipped, SweepDone} <= {type(event) for event in rest}
    swept = [event for event in rest if isinstance(event, SweepDone)]
    assert set(swept[-1].report) == SWEEP_KEYS


async def test_a_subscriber_that_does_not_read_learns_how_much_it_has_missed(
    cache: Cache,
) -> None:
    total = 6000
    for number in range(total):
        cache.publish(f"{number % 7}/{number}", 1.5)
    daemon = make(cache)
    await daemon.start()
    events = daemon.subscribe()
    await until(lambda: daemon.total_deleted == total)
    await daemon.stop()
    rest = [event async for event in events]
    deleted = sum(isinstance(event, Deleted) for event in rest)
    missed = sum(event.count for event in rest if isinstance(event, Lagged))
    assert 0 < deleted and deleted + missed >= total and len(rest) <= 4096 + 2


async def test_ten_thousand_log_lines_at_once_neither_block_nor_get_lost(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    total = 10_000
    for number in range(total):
        (cache.path / f"{number}.result.json.lz4").write_text("x")
        (cache.path / f"{number}.metadata.json").write_text("{")
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count_turns())
    async with make(cache) as daemon:
        await until(lambda: daemon.total_errors == total)
        await until(lambda: len(caplog.records) >= total)
    counting.cancel()
    lines = [record.getMessage() for record in caplog.records]
    about = [line for line in lines if "invalid metadata" in line]
    dropped = [int(line.split()[0]) for line in lines if "log lines were dropped" in line]
    assert len(about) + sum(dropped) == total
    assert turns > total / 100, "the loop goes on after each hundred lines"


async def test_the_log_level_of_python_decides_what_is_logged(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    for level, expected in [(logging.DEBUG, True), (logging.WARNING, False)]:
        caplog.clear()
        caplog.set_level(level, "result_cleaner")
        cache.publish("old", 1.5)
        daemon = make(cache)
        await daemon.start()
        await until(lambda: daemon.total_deleted == 1)
        await daemon.stop()
        assert any(record.levelno < logging.INFO for record in caplog.records) is expected
        assert all(record.name == "result_cleaner" for record in caplog.records)
        assert bool(caplog.records) is expected


async def test_a_daemon_that_dies_ends_its_task_with_the_reason(cache: Cache) -> None:
    daemon = make(cache)
    await daemon.start()
    assert daemon._session is not None and daemon.cleanup_task is not None
    daemon._session._on_message(("closed", RuntimeError("the cleaner failed: on purpose")))
    with pytest.raises(RuntimeError, match="on purpose"):
        await daemon.cleanup_task
    assert not daemon.running
    await daemon.stop()


def test_importing_starts_nothing() -> None:
    script = (
        "import os, result_cleaner; daemon = result_cleaner.ResultCleanupDaemon(cache_dir='/tmp');"
        "print(len(os.listdir('/proc/self/task')), len(os.listdir('/proc/self/fd')))"
    )
    plain = script.replace("result_cleaner; daemon", "logging, asyncio; daemon")
    plain = plain.replace("result_cleaner.ResultCleanupDaemon(cache_dir='/tmp')", "0")
    counts = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, check=True).stdout
        for text in [script, plain]
    ]
    assert counts[0] == counts[1]


async def test_many_restarts_leave_no_descriptors_and_no_threads(cache: Cache) -> None:
    def usage() -> "tuple[int, int]":
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    daemon = make(cache)
    await daemon.start()
    await daemon.stop()
    before = usage()
    for _ in range(20):
        await daemon.start()
        await daemon._cleanup_expired()
        await daemon.stop()
    # Threads that are idle end by themselves.
    await until(lambda: usage()[0] <= before[0] and usage()[1] <= before[1] + 1)


def test_a_run_without_a_loop_raises_runtime_error(cache: Cache) -> None:
    coroutine = make(cache).start()
    with pytest.raises(RuntimeError, match="event loop"):
        coroutine.send(None)


