"""Results as the result store writes them, in the same event loop."""

import asyncio
import hashlib
import json
import time
import uuid
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

from conftest import Cache, until
from result_cleaner import ResultCleanupDaemon


class ResultStore:
    """Writes the result, then its metadata, each to a name that ends in .tmp, and renames it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.expires_at: Dict[Path, float] = {}
        self.gone: List[Tuple[Path, float]] = []

    async def store(self, session: str, life: float) -> Path:
        lz4 = pytest.importorskip("lz4.frame")
        directory = self.directory / session
        directory.mkdir(exist_ok=True)
        rows = [{"name": f"row {number}", "score": number} for number in range(50)]
        plain = json.dumps(rows).encode()
        data = lz4.compress(plain)
        name = str(uuid.uuid4())
        result = directory / f"{name}.result.json.lz4"
        self.publish(result, data)
        now = time.time()
        self.expires_at[result] = now + life
        metadata = {
            "total_count": len(rows),
            "data_type": "search",
            "query_context": {"query": "rows", "nested": {"any": ["depth"]}},
            "compression_ratio": len(data) / len(plain),
            "result_id": name,
            "result_type": "search",
            "checksum": hashlib.sha256(plain).hexdigest(),
            "size_bytes": len(data),
            "original_size_bytes": len(plain),
            "created_at": now,
            "expires_at": now + life,
            "compressed": True,
        }
        await asyncio.sleep(0)
        text = json.dumps(metadata, indent=2).encode()
        self.publish(directory / f"{name}.metadata.json", text)
        return result

    @staticmethod
    def publish(path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(data)
        temporary.rename(path)

    def removed(self, path: Path) -> None:
        self.gone.append((path, time.time()))


async def test_three_hundred_results_are_each_gone_at_their_time(cache: Cache) -> None:
    store = ResultStore(cache.path)
    daemon = ResultCleanupDaemon(store, cache_dir=str(cache.path), metrics_url=None)
    await daemon.start()
    for number in range(300):
        await store.store(f"session-{number % 5}", life=1.5)
        await asyncio.sleep(0.002)
    assert all(path.exists() for path, at in store.expires_at.items() if at > time.time() + 0.2)
    await until(lambda: len(store.gone) == 300 and daemon.total_deleted == 300)
    assert {path for path, _ in store.gone} == set(store.expires_at)
    late = sorted(at - store.expires_at[path] for path, at in store.gone)
    assert late[0] >= 0, "never early"
    print(f"removed() ran {late[150] * 1000:.1f} ms after the expiry (median), at most {late[-1] * 1000:.1f} ms")
    assert cache.names() == []
    assert daemon.get_stats()["total_errors"] == 0
    await daemon.stop()


async def test_an_extended_result_stays(cache: Cache) -> None:
    store = ResultStore(cache.path)
    async with ResultCleanupDaemon(store, cache_dir=cache.path, metrics_url=None):
        result = await store.store("a", life=1.5)
        metadata = result.with_name(result.name.replace(".result.json.lz4", ".metadata.json"))
        text = json.loads(metadata.read_text())
        text["expires_at"] += 3600
        store.publish(metadata, json.dumps(text).encode())
        await asyncio.sleep(3)
        assert result.exists() and store.gone == []
