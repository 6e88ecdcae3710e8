"""The disk budget: what would wait for its expiry goes earlier, the soonest to expire first."""

import time
from pathlib import Path
from typing import Any, List

import pytest

from conftest import Cache, until
from result_cleaner import Evicted, ResultCleanupDaemon


class Store:
    """Knows which results were removed."""

    def __init__(self) -> None:
        self.gone: List[str] = []

    def removed(self, path: Path) -> None:
        self.gone.append(path.name)


def fill(cache: Cache, count: int) -> None:
    for number in range(count):
        cache.publish(f"{number}", time.time() + 3600 + number, b"x" * 100_000)


async def test_a_running_daemon_evicts_the_soonest_to_expire(cache: Cache) -> None:
    store = Store()
    daemon = ResultCleanupDaemon(
        store, cache_dir=cache.path, metrics_url=None, max_size="500K", evict_min_age=0.01
    )
    async with daemon, daemon.subscribe() as events:
        fill(cache, 10)
        await until(lambda: 0 < (daemon.get_stats()["size_bytes"] or 0) <= 500 * 1024)
        await until(lambda: daemon.get_stats()["total_evicted"] == len(store.gone) > 0)
        stats = daemon.get_stats()
        async for event in events:
            if isinstance(event, Evicted):
                assert event.result.name in store.gone and event.freed_bytes > 100_000
                assert event.expires_at > time.time()
                break
    assert "0.result.json.lz4" in store.gone and "9.result.json.lz4" not in store.gone
    assert stats["total_deleted"] == 0
    assert daemon.get_stats()["total_evicted"] == len(store.gone)


async def test_a_single_cleanup_evicts_too(cache: Cache) -> None:
    fill(cache, 10)
    daemon = ResultCleanupDaemon(
        cache_dir=cache.path, metrics_url=None, max_size=500 * 1024, evict_min_age=0.001
    )
    report = await daemon._cleanup_expired()
    assert report["evicted_count"] >= 5 and report["deleted_count"] == 0
    assert daemon.get_stats()["total_evicted"] == report["evicted_count"]


@pytest.mark.parametrize(
    "budget",
    [{"max_size": "much"}, {"max_size": 0}, {"min_free": "100%"}, {"evict_min_age": 0}],
)
def test_limits_that_make_no_sense_are_refused(budget: Any) -> None:
    with pytest.raises(ValueError):
        ResultCleanupDaemon(**budget)


def test_the_budget_is_named_by_keyword_only() -> None:
    too_many: Any = (None, 1, "/tmp", None, "1G")
    with pytest.raises(TypeError):
        ResultCleanupDaemon(*too_many)
