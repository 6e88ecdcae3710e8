"""The events of a running daemon, for those who subscribe to it."""

import asyncio
import json
import typing as t
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from . import _native
from ._mailbox import Mailbox

__all__ = ["Deleted", "Event", "Evicted", "Lagged", "Skipped", "Subscription", "SweepDone"]


@dataclass(frozen=True)
class Deleted:
    """An expired result was deleted."""

    #: Its path, below the resolved cache directory.
    result: Path
    #: The size of its files that this daemon removed, in bytes.
    freed_bytes: int
    #: How long after its ``expires_at`` it was deleted, in seconds.
    late: float


@dataclass(frozen=True)
class Evicted:
    """A result was deleted before it expired, because of the disk budget."""

    #: Its path, below the resolved cache directory.
    result: Path
    #: What its files that this daemon removed took on disk, in bytes.
    freed_bytes: int
    #: When it would have expired, in seconds since the Unix epoch.
    expires_at: float


@dataclass(frozen=True)
class Skipped:
    """Something was not deleted for now."""

    #: A result, its metadata, or a directory.
    path: Path
    #: The reason, in one line.
    reason: str


@dataclass(frozen=True)
class SweepDone:
    """A full sweep of the running daemon was completed."""

    #: ``deleted_count``, ``freed_bytes``, ``checked_count``, ``errors``, ``duration_ms``.
    report: t.Dict[str, t.Any]


@dataclass(frozen=True)
class Lagged:
    """So many events were dropped, because the subscriber did not read them in time."""

    count: int


Event = t.Union[Deleted, Evicted, Skipped, SweepDone, Lagged]

#: How many events wait in Python for the subscriber. Further ones wait in the engine.
MAX_WAITING = 4096


class Subscription:
    """The events of a daemon from now on: an asynchronous iterator that ends when the daemon stops."""

    def __init__(self, cleaner: int) -> None:
        self._events: t.Deque[Event] = deque()
        self._dropped = 0
        self._wakeup: t.Optional["asyncio.Future[None]"] = None
        own = weakref.ref(self)

        def on_message(message: t.Tuple[t.Any, ...]) -> None:
            # The loop keeps the mailbox, and that must not keep a subscription that nobody has.
            subscription = own()
            if subscription is not None:
                subscription._on_message(message)

        self._mailbox = Mailbox(asyncio.get_running_loop(), on_message)
        _native.subscribe(cleaner, self._mailbox.id)

    def _on_message(self, message: t.Tuple[t.Any, ...]) -> None:
        kind, fields = message[0], message[1:]
        if kind == "closed":
            self._mailbox.close()
        elif kind == "dropped":
            self._dropped += fields[0]
        elif kind == "deleted":
            self._add(Deleted(*fields))
        elif kind == "evicted":
            self._add(Evicted(*fields))
        elif kind == "skipped":
            self._add(Skipped(*fields))
        elif kind == "swept":
            self._add(SweepDone(json.loads(fields[0])))
        self._wake()

    def _add(self, event: Event) -> None:
        if len(self._events) >= MAX_WAITING:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Event:
        """Return the next event. Only one task at a time may wait for it."""
        while True:
            if self._dropped > 0:
                count, self._dropped = self._dropped, 0
                return Lagged(count)
            if self._events:
                return self._events.popleft()
            if self._mailbox.closed:
                raise StopAsyncIteration
            self._wakeup = self._mailbox.loop.create_future()
            try:
                await self._wakeup
            finally:
                self._wakeup = None

    async def aclose(self) -> None:
        """End the subscription."""
        self._events.clear()
        self._dropped = 0
        self._mailbox.close()
        self._wake()

    async def __aenter__(self) -> "Subscription":
        return self

    async def __aexit__(
        self,
        kind: t.Optional[t.Type[BaseException]],
        error: t.Optional[BaseException],
        traceback: t.Optional[TracebackType],
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        mailbox: t.Optional[Mailbox] = getattr(self, "_mailbox", None)
        if mailbox is None or mailbox.closed:
            return
        try:
            # The last reference may have gone on another thread.
            mailbox.loop.call_soon_threadsafe(mailbox.close)
        except RuntimeError:
            # The loop has ended.
            pass
