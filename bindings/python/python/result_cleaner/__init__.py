"""Deletes expired cached results the moment they expire.

``ResultCleanupDaemon`` has the interface of the polling daemon of that name, on an engine in Rust: it
watches the cache directory and deletes each result within milliseconds of its ``expires_at``::

    from result_cleaner import ResultCleanupDaemon

    async with ResultCleanupDaemon(cache_dir="~/.omnimemory/cached_results") as daemon:
        ...

Importing starts nothing. The log goes to the logger ``result_cleaner``.
"""

from ._daemon import (
    DEFAULT_CACHE_DIR,
    DEFAULT_CHECK_INTERVAL,
    DEFAULT_EVICT_MIN_AGE,
    DEFAULT_METRICS_URL,
    ResultCleanupDaemon,
    Stats,
    SweepReport,
)
from ._events import Deleted, Event, Evicted, Lagged, Skipped, Subscription, SweepDone
from ._native import __version__

__all__ = [
    "DEFAULT_CACHE_DIR",
    "DEFAULT_CHECK_INTERVAL",
    "DEFAULT_EVICT_MIN_AGE",
    "DEFAULT_METRICS_URL",
    "Deleted",
    "Event",
    "Evicted",
    "Lagged",
    "ResultCleanupDaemon",
    "Skipped",
    "Stats",
    "Subscription",
    "SweepDone",
    "SweepReport",
    "__version__",
]
