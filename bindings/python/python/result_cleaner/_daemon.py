"""The polling daemon's class, over the engine."""

import asyncio
import json
import math
import os
import typing as t
from pathlib import Path
from types import TracebackType

from . import _native
from ._events import Subscription
from ._mailbox import Mailbox, logger
from ._session import Session, Settings, removals, removed_hook

__all__ = [
    "DEFAULT_CACHE_DIR",
    "DEFAULT_CHECK_INTERVAL",
    "DEFAULT_EVICT_MIN_AGE",
    "DEFAULT_METRICS_URL",
    "ResultCleanupDaemon",
    "Stats",
    "SweepReport",
]

#: Seconds between full sweeps.
DEFAULT_CHECK_INTERVAL = 6 * 3600
DEFAULT_CACHE_DIR = "~/.omnimemory/cached_results"
DEFAULT_METRICS_URL = "http://localhost:8003"


#: Seconds for which a result has to be unchanged before it may be evicted.
DEFAULT_EVICT_MIN_AGE = 60.0


def _size(size: t.Union[int, str, None]) -> t.Optional[str]:
    """Return a size as text, which the engine reads."""
    return None if size is None else str(size)


class Stats(t.TypedDict):
    """What ``get_stats()`` returns. There may be more keys."""

    running: bool
    check_interval_hours: float
    #: Full sweeps that were completed, the first scan included.
    total_cleanups: int
    total_deleted: int
    total_freed_bytes: int
    #: The same in MiB, rounded to two places.
    total_freed_mb: float
    total_errors: int
    #: The resolved path; as given while the directory is absent or the daemon has not been started.
    cache_directory: str
    #: Complete, valid pairs whose ``expires_at`` is in the future.
    heap_size: int
    #: The earliest of these, in RFC 3339 and UTC.
    next_expiry: t.Optional[str]
    #: ``active``, ``degraded``, ``polling`` or ``absent``.
    watch: str
    #: What the results take on disk, in bytes; ``None`` without a disk budget or before the start.
    size_bytes: t.Optional[int]
    #: Results that were evicted before they expired.
    total_evicted: int


class _Evictions(t.TypedDict, total=False):
    """What a sweep with a disk budget also did."""

    evicted_count: int
    #: What the evicted results took on disk, in bytes.
    evicted_bytes: int


class SweepReport(_Evictions):
    """What one sweep did."""

    deleted_count: int
    freed_bytes: int
    #: Results that were seen.
    checked_count: int
    errors: int
    duration_ms: float


class ResultCleanupDaemon:
    """Deletes each cached result of a directory within milliseconds of its ``expires_at``.

    The object can be made without an event loop. ``start()`` and ``stop()`` may be repeated, the daemon
    can be started again after a stop, and the totals survive that. A daemon that is never stopped ends
    with its event loop.
    """

    def __init__(
        self,
        result_store: t.Any = None,
        check_interval: float = DEFAULT_CHECK_INTERVAL,
        cache_dir: t.Union[str, "os.PathLike[str]"] = DEFAULT_CACHE_DIR,
        metrics_url: t.Optional[str] = DEFAULT_METRICS_URL,
        *,
        max_size: t.Union[int, str, None] = None,
        min_free: t.Union[int, str, None] = None,
        evict_min_age: float = DEFAULT_EVICT_MIN_AGE,
    ) -> None:
        """Make a daemon that does nothing yet.

        Args:
            result_store: Any object. If it has a method ``removed(path)``, the event loop calls it with
                the ``pathlib.Path`` of each result that was removed.
            check_interval: Seconds between full sweeps, at least 1. Results are deleted at their time,
                whatever the interval is.
            cache_dir: The directory of the cached results. A leading ``~`` or ``~user`` is expanded. The
                directory need not exist yet.
            metrics_url: The address of the metrics service; ``None`` to report nothing.
            max_size: What all results may take on disk, in bytes or as text such as ``"20GiB"``. Over
                that, results are evicted before they expire, those that expire first go first. ``None``
                evicts nothing.
            min_free: What has to stay free on their file system, likewise, or a share such as ``"10%"``.
            evict_min_age: For how many seconds a result has to be unchanged before it may be evicted.

        Raises:
            ValueError: ``check_interval`` is below 1, ``cache_dir`` is no path, or a limit makes no
                sense.
            RuntimeError: ``cache_dir`` begins with ``~`` and there is no such home directory.
        """
        if not (check_interval >= 1 and math.isfinite(check_interval)):
            raise ValueError(f"check_interval must be at least 1 second, not {check_interval!r}")
        if "\0" in os.fspath(cache_dir):
            raise ValueError("embedded null byte in cache_dir")
        self.result_store = result_store
        self.check_interval = check_interval
        self.cache_dir = Path(cache_dir).expanduser()
        self.metrics_url = metrics_url
        if not (evict_min_age > 0 and math.isfinite(evict_min_age)):
            raise ValueError(f"evict_min_age must be more than 0 seconds, not {evict_min_age!r}")
        self.max_size = max_size
        self.min_free = min_free
        self.evict_min_age = evict_min_age
        _native.check_budget(_size(max_size), _size(min_free))
        #: The asyncio task that lives as long as the running daemon; ``None`` before ``start()``.
        self.cleanup_task: t.Optional["asyncio.Task[None]"] = None
        self._session: t.Optional[Session] = None
        # What sweeps without the running daemon, and earlier runs, have done.
        self._cleanup_count = 0
        self._deleted = 0
        self._freed_bytes = 0
        self._errors = 0
        self._evicted = 0
        logger.info(
            "Initialized ResultCleanupDaemon (interval=%ss, cache_dir=%s)",
            check_interval,
            self.cache_dir,
        )

    def __repr__(self) -> str:
        state = "running" if self.running else "not running"
        return f"<ResultCleanupDaemon {str(self.cache_dir)!r} {state}>"

    async def start(self) -> None:
        """Start to delete expired results. Does nothing if the daemon runs already.

        Raises:
            NotADirectoryError: ``cache_dir`` is a file.
            ValueError: ``metrics_url`` is no HTTP address.
            OSError: The system lacks descriptors or threads.
            RuntimeError: There is no running event loop.
        """
        loop = asyncio.get_running_loop()
        session = self._session
        if session is not None and session.active:
            if session.loop is loop and not session.started.done():
                await asyncio.wait({session.started})
                if session.failed:
                    # Another task had begun, and this one has to know why it failed.
                    session.abandon()
                    await self.start()
            return
        self._keep_totals()
        session = Session(loop, self._settings(), removed_hook(self.result_store))
        self._session = session
        try:
            await session.started
        except BaseException:
            session.abandon()
            raise
        if not session.active:
            # It was stopped meanwhile.
            return
        self.cleanup_task = session.begin()
        logger.info(
            "✓ Result cleanup daemon started (runs every %dh)", int(self.check_interval // 3600)
        )

    async def stop(self) -> None:
        """Stop gracefully: pending figures are reported. Takes less than a second.

        Does nothing if the daemon does not run. Any event loop may call it.
        """
        session = self._session
        if session is not None and session.active:
            await session.stop()
        logger.info("✓ Result cleanup daemon stopped")

    async def __aenter__(self) -> "ResultCleanupDaemon":
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: t.Optional[t.Type[BaseException]],
        error: t.Optional[BaseException],
        traceback: t.Optional[TracebackType],
    ) -> None:
        await self.stop()

    async def sweep(self) -> SweepReport:
        """Make a full sweep now, and return its report.

        A running daemon makes the sweep itself, and reports it to the metrics service like its other
        sweeps. Otherwise this is the same as ``_cleanup_expired()``.

        Raises:
            NotADirectoryError: ``cache_dir`` is a file.
            OSError: ``cache_dir`` can't be read.
            RuntimeError: The daemon was stopped before the sweep was over.
        """
        session = self._session
        if session is not None and session.active and session.started.done():
            cleaner = session.cleaner
            if cleaner is not None:
                return await self._ask(
                    lambda mailbox, request: _native.sweep(cleaner, mailbox, request), None
                )
        return await self._cleanup_expired()

    async def _cleanup_expired(self) -> SweepReport:
        """Delete what has expired now, and return what was done. Needs no running daemon.

        Failures of single files are counted. The totals grow by the report; the metrics service gets
        none.

        Raises:
            NotADirectoryError: ``cache_dir`` is a file.
            OSError: ``cache_dir`` can't be read.
        """
        settings = self._settings()._replace(metrics_url=None)

        def add(report: SweepReport) -> None:
            self._cleanup_count += 1
            self._deleted += report["deleted_count"]
            self._freed_bytes += report["freed_bytes"]
            self._errors += report["errors"]
            self._evicted += report.get("evicted_count", 0)

        return await self._ask(
            lambda mailbox, request: _native.sweep_once(settings, mailbox, request), add
        )

    async def _ask(
        self,
        ask: t.Callable[[int, int], None],
        done: t.Optional[t.Callable[[SweepReport], None]],
    ) -> SweepReport:
        """Ask the engine for a sweep. It goes on, and counts, also if the caller is cancelled."""
        loop = asyncio.get_running_loop()
        mailbox = Mailbox(loop, removals(removed_hook(self.result_store)))

        async def finish() -> SweepReport:
            try:
                report = t.cast(SweepReport, json.loads(await mailbox.request(ask)))
                if done is not None:
                    done(report)
                await mailbox.drain()
                return report
            finally:
                mailbox.close()

        return await asyncio.shield(loop.create_task(finish()))

    def subscribe(self) -> Subscription:
        """Return the events of the running daemon from now on, for ``async for``.

        Raises:
            RuntimeError: The daemon does not run, or there is no running event loop.
        """
        session = self._session
        if session is None or not session.active or session.cleaner is None:
            raise RuntimeError("the daemon does not run: await start() first")
        return Subscription(session.cleaner)

    def get_stats(self) -> Stats:
        """Return the figures of the daemon. Never waits for the disk."""
        stats: t.Dict[str, t.Any] = {
            "running": self.running,
            "check_interval_hours": self.check_interval / 3600,
            "total_cleanups": self.cleanup_count,
            "total_deleted": self.total_deleted,
            "total_freed_bytes": self.total_freed_bytes,
            "total_freed_mb": round(self.total_freed_bytes / (1024 * 1024), 2),
            "total_errors": self.total_errors,
            "cache_directory": str(self.cache_dir),
            "heap_size": 0,
            "next_expiry": None,
            "watch": "absent",
            "size_bytes": None,
            "total_evicted": self._evicted,
        }
        engine = self._engine_stats()
        stats.update((key, value) for key, value in engine.items() if key not in stats)
        for key in ("cache_directory", "heap_size", "next_expiry", "watch", "size_bytes"):
            stats[key] = engine.get(key, stats[key])
        stats["total_evicted"] += engine.get("total_evicted", 0)
        return t.cast(Stats, stats)

    @property
    def running(self) -> bool:
        """Whether the daemon deletes results at their time."""
        session = self._session
        if session is None or not session.active:
            return False
        return bool(session.stats().get("running", True))

    @property
    def total_deleted(self) -> int:
        """Pairs that were deleted."""
        return self._deleted + int(self._engine_stats().get("total_deleted", 0))

    @property
    def total_freed_bytes(self) -> int:
        """The size of the files that were removed, in bytes."""
        return self._freed_bytes + int(self._engine_stats().get("total_freed_bytes", 0))

    @property
    def total_errors(self) -> int:
        """Invalid metadata, failed deletions, unreadable directories."""
        return self._errors + int(self._engine_stats().get("total_errors", 0))

    @property
    def cleanup_count(self) -> int:
        """Full sweeps that were completed, the first scan included."""
        return self._cleanup_count + int(self._engine_stats().get("total_cleanups", 0))

    def _is_safe_path(self, file_path: t.Union[str, "os.PathLike[str]"]) -> bool:
        """Return whether a path lies within the cache directory, once symbolic links are resolved."""
        try:
            Path(file_path).resolve().relative_to(self.cache_dir.resolve())
        except (ValueError, OSError, RuntimeError):
            return False
        return True

    def _settings(self) -> Settings:
        return Settings(
            cache_dir=Path(os.path.abspath(self.cache_dir)),
            check_interval=self.check_interval,
            metrics_url=self.metrics_url,
            report_removed=removed_hook(self.result_store) is not None,
            max_size=_size(self.max_size),
            min_free=_size(self.min_free),
            evict_min_age=self.evict_min_age,
        )

    def _engine_stats(self) -> t.Dict[str, t.Any]:
        return {} if self._session is None else self._session.stats()

    def _keep_totals(self) -> None:
        """Add what the last run did to the totals before the next one begins at zero."""
        if self._session is not None:
            stats = self._session.release()
            self._session = None
            self._cleanup_count += stats.get("total_cleanups", 0)
            self._deleted += stats.get("total_deleted", 0)
            self._freed_bytes += stats.get("total_freed_bytes", 0)
            self._errors += stats.get("total_errors", 0)
            self._evicted += stats.get("total_evicted", 0)
