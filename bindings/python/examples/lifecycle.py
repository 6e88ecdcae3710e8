"""Stores two results, and shows how the first one is deleted at its time."""

import asyncio
import json
import logging
import tempfile
import time
from pathlib import Path

from result_cleaner import ResultCleanupDaemon


class Index:
    """Knows the results that there are."""

    def removed(self, path: Path) -> None:
        print(f"the index forgets {path.name}")


def store(directory: Path, name: str, life: float) -> None:
    (directory / f"{name}.result.json.lz4").write_text("the result")
    metadata = json.dumps({"expires_at": time.time() + life})
    (directory / f"{name}.metadata.json").write_text(metadata)


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with ResultCleanupDaemon(Index(), cache_dir=directory, metrics_url=None) as daemon:
            store(directory, "short", life=1.5)
            store(directory, "long", life=3600)
            await asyncio.sleep(2.5)
            stats = daemon.get_stats()
            print(f"{stats['total_deleted']} deleted, {stats['heap_size']} waiting")
            print("left:", sorted(path.name for path in directory.iterdir()))


logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
asyncio.run(main())
