"""The cases of the integration guide of the polling daemon."""

import asyncio
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from conftest import Cache, RunProgram, until
from result_cleaner import ResultCleanupDaemon


def ago(**span: float) -> str:
    return (datetime.now() - timedelta(**span)).isoformat()


def ahead(**span: float) -> str:
    return (datetime.now() + timedelta(**span)).isoformat()


async def test_basic_lifecycle(cache: Cache) -> None:
    daemon = ResultCleanupDaemon(result_store=None, check_interval=1, cache_dir=str(cache.path))
    assert daemon.running is False and daemon.cleanup_task is None
    assert daemon.get_stats()["running"] is False
    assert daemon.get_stats()["total_cleanups"] == 0
    await daemon.start()
    assert daemon.running is True and daemon.get_stats()["running"] is True
    await until(lambda: daemon.get_stats()["total_cleanups"] >= 2, "it has swept twice")
    await daemon.stop()
    assert daemon.running is False and daemon.get_stats()["running"] is False


async def test_an_expired_file_is_deleted(cache: Cache) -> None:
    result = cache.publish("old", ago(hours=1))
    stats = await ResultCleanupDaemon(cache_dir=str(cache.path))._cleanup_expired()
    assert not result.exists() and cache.names() == []
    assert stats["deleted_count"] == 1 and stats["checked_count"] == 1
    assert stats["freed_bytes"] > len("the result") and stats["errors"] == 0
    assert stats["duration_ms"] > 0


async def test_a_valid_file_is_kept_and_one_without_metadata_too(cache: Cache) -> None:
    valid = cache.publish("valid", ahead(days=1))
    alone = cache.path / "alone.result.json.lz4"
    alone.write_text("no metadata")
    stats = await ResultCleanupDaemon(cache_dir=str(cache.path))._cleanup_expired()
    assert valid.exists() and alone.exists()
    assert (stats["deleted_count"], stats["checked_count"], stats["errors"]) == (0, 2, 0)


async def test_nested_directories(cache: Cache) -> None:
    for name in ["a", "one/b", "one/two/c"]:
        cache.publish(name, ago(hours=1))
    stats = await ResultCleanupDaemon(cache_dir=str(cache.path))._cleanup_expired()
    assert stats["deleted_count"] == 3 and cache.names() == []


async def test_invalid_metadata_is_an_error_and_its_result_is_kept(cache: Cache) -> None:
    result = cache.publish("broken", ago(hours=1))
    (cache.path / "broken.metadata.json").write_text("invalid json {{{")
    cache.publish("old", ago(hours=1))
    stats = await ResultCleanupDaemon(cache_dir=str(cache.path))._cleanup_expired()
    assert result.exists()
    assert (stats["deleted_count"], stats["checked_count"], stats["errors"]) == (1, 2, 1)


async def test_a_directory_that_does_not_exist_is_no_error(tmp_path: Path) -> None:
    stats = await ResultCleanupDaemon(cache_dir=tmp_path / "absent")._cleanup_expired()
    assert (stats["deleted_count"], stats["checked_count"], stats["errors"]) == (0, 0, 0)


def test_path_safety(cache: Cache, tmp_path: Path) -> None:
    daemon = ResultCleanupDaemon(cache_dir=str(cache.path))
    (cache.path / "link").symlink_to(tmp_path)
    for safe in ["a.result.json.lz4", "x/../a.result.json.lz4", "."]:
        assert daemon._is_safe_path(cache.path / safe)
        assert daemon._is_safe_path(str(cache.path / safe))
    for unsafe in ["../a.result.json.lz4", "link/a.result.json.lz4", "/etc/passwd", "a\0b"]:
        assert not daemon._is_safe_path(cache.path / unsafe)
    # A name that begins like the directory's.
    assert not daemon._is_safe_path(str(cache.path) + "2/a.result.json.lz4")


STANDALONE = """
async def main():
    daemon = ResultCleanupDaemon(
        check_interval=6 * 3600,
        cache_dir=str(CACHE),
    )
    await daemon.start()
    publish("old", 1.5)
    await until(lambda: daemon.total_deleted == 1)
    print("ready", flush=True)
    try:
        while True:
            await asyncio.sleep(60)
    except KeyboardInterrupt:
        await daemon.stop()

asyncio.run(main())
"""

SERVER = """
class OmniMemoryMCP:
    def __init__(self):
        self.result_store = object()
        self.cleanup_daemon = ResultCleanupDaemon(
            result_store=self.result_store,
            check_interval=6 * 3600,
            cache_dir=str(CACHE),
            metrics_url="http://localhost:8003",
        )

    async def run(self):
        await self.cleanup_daemon.start()
        publish("old", 1.5)
        await until(lambda: self.cleanup_daemon.get_stats()["total_deleted"] == 1)
        print("ready", flush=True)
        await asyncio.sleep(3600)
        await self.cleanup_daemon.stop()

asyncio.run(OmniMemoryMCP().run())
"""

FULL = """
class MyApplication:
    def __init__(self):
        self.cleanup_daemon = ResultCleanupDaemon(check_interval=6 * 3600, cache_dir=str(CACHE))

    async def start(self):
        await self.cleanup_daemon.start()
        await self.run_application()

    async def stop(self):
        await self.cleanup_daemon.stop()
        print("stopped", self.cleanup_daemon.get_stats()["total_deleted"])

    async def run_application(self):
        publish("old", 1.5)
        await until(lambda: self.cleanup_daemon.get_stats()["total_deleted"] > 0)
        print("ready", flush=True)
        try:
            while True:
                await asyncio.sleep(60)
        except KeyboardInterrupt:
            pass

async def main():
    app = MyApplication()
    try:
        await app.start()
    finally:
        await app.stop()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("example", [STANDALONE, SERVER, FULL])
def test_each_example_ends_at_once_on_ctrl_c(
    cache: Cache, program: RunProgram, example: str
) -> None:
    running = program(example)
    running.wait_for_line("ready")
    running.process.send_signal(signal.SIGINT)
    finished = running.finish(code=-signal.SIGINT)
    assert cache.names() == []
    assert finished.err.count("✓ Result cleanup daemon started (runs every 6h)") == 1
    assert finished.err.count("✓ Result cleanup daemon stopped") >= 1
    assert finished.err.rstrip().endswith("KeyboardInterrupt"), finished.err
    assert "never retrieved" not in finished.err and "was destroyed" not in finished.err
    if example is FULL:
        assert "stopped 1" in finished.out


def test_the_one_time_cleanup(cache: Cache, program: RunProgram) -> None:
    cache.publish("old", ago(hours=1))
    script = """
    async def main():
        daemon = ResultCleanupDaemon(cache_dir=str(CACHE))
        stats = await daemon._cleanup_expired()
        print(f"Deleted {stats['deleted_count']} files")
        assert daemon.get_stats()["total_deleted"] == 1

    asyncio.run(main())
    """
    assert "Deleted 1 files" in program(script).finish().out


async def test_an_awaited_start_is_needed_and_a_loop_too(cache: Cache) -> None:
    daemon = ResultCleanupDaemon(cache_dir=cache.path)
    coroutine = daemon.start()
    assert asyncio.iscoroutine(coroutine) and not daemon.running
    coroutine.close()
