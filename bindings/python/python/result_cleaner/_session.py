"""One run of the engine on one event loop, from a daemon's start to its stop."""

import asyncio
import atexit
import json
import os
import threading
import typing as t
import weakref
from pathlib import Path

from . import _native
from ._mailbox import Mailbox, logger

__all__ = ["Session", "Settings", "removals", "removed_hook"]

#: The engine stops within a second. If it does not, because the disk hangs, nobody waits for it.
STOP_TIME = 2.0
#: How long the interpreter waits at its exit for cleaners that were never stopped.
EXIT_TIME = 1.0


class Settings(t.NamedTuple):
    """What the engine needs to know."""

    cache_dir: Path
    check_interval: float
    metrics_url: t.Optional[str]
    report_removed: bool
    max_size: t.Optional[str]
    min_free: t.Optional[str]
    evict_min_age: float


def removed_hook(result_store: t.Any) -> t.Optional[t.Callable[[Path], t.Any]]:
    """Return the method of a result store that wants to know of each removed result."""
    removed = getattr(result_store, "removed", None)
    return removed if callable(removed) else None


def call_removed(removed: t.Callable[[Path], t.Any], path: Path) -> None:
    """Report a removed result to a result store, whatever that does."""
    try:
        removed(path)
    except Exception:
        logger.exception("result_store.removed failed for %s", path)


def removals(removed: t.Optional[t.Callable[[Path], t.Any]]) -> t.Callable[[t.Tuple[t.Any, ...]], None]:
    """Return the handler of a mailbox that gets removed paths, and perhaps other messages."""

    def on_message(message: t.Tuple[t.Any, ...]) -> None:
        if message[0] == "removed" and removed is not None:
            call_removed(removed, message[1])
        elif message[0] == "dropped":
            logger.warning(
                "%d removed results were not reported to result_store.removed: "
                "the event loop did not take them in time",
                message[1],
            )

    return on_message


class Session:
    """A cleaner of the engine, and the mailbox through which the event loop hears of it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        removed: t.Optional[t.Callable[[Path], t.Any]],
    ) -> None:
        self.loop = loop
        self.stopping = False
        self.task: t.Optional["asyncio.Task[None]"] = None
        self._closed: "asyncio.Future[t.Optional[Exception]]" = loop.create_future()
        self._on_removed = removals(removed)
        self._over = False
        self._last_stats: t.Dict[str, t.Any] = {}
        self._mailbox = Mailbox(loop, self._on_message)
        self._cleaner: t.Optional[int] = None
        try:
            self.started = self._mailbox.request(
                lambda mailbox, request: self._start(settings, mailbox, request)
            )
        except BaseException:
            self._mailbox.close()
            raise

    def _start(self, settings: Settings, mailbox: int, request: int) -> None:
        _register(self)
        self._cleaner = _native.start(settings, mailbox, request)

    @property
    def active(self) -> bool:
        """Whether the cleaner runs, and its loop can still hear of it."""
        if not self._over and self.loop.is_closed():
            self.abandon()
        return not self._over

    @property
    def failed(self) -> bool:
        """Whether the cleaner could not start, or nobody waited until it had."""
        return self.started.done() and (
            self.started.cancelled() or self.started.exception() is not None
        )

    @property
    def cleaner(self) -> t.Optional[int]:
        """The cleaner's number; ``None`` in a forked child, which has no such cleaner."""
        return self._cleaner

    def stats(self) -> t.Dict[str, t.Any]:
        """Return the engine's stats; empty until the cleaner has started."""
        if self._cleaner is not None:
            text = _native.stats(self._cleaner)
            if text is not None:
                self._last_stats = json.loads(text)
        return self._last_stats

    def begin(self) -> "asyncio.Task[None]":
        """Make the task that lives as long as the cleaner and the loop."""
        self.task = self.loop.create_task(self._run())
        # A task that is cancelled before its first step runs nothing of its own.
        self.task.add_done_callback(lambda _: self.abandon())
        return self.task

    async def _run(self) -> None:
        """Wait until the cleaner ends. If this is cancelled, stop the cleaner first."""
        try:
            try:
                error = await self._closed
            except asyncio.CancelledError:
                await self._stop_through(self._mailbox)
                raise
            if error is not None:
                raise error
        finally:
            # Also when the loop ends without cancelling its tasks, and the coroutine is closed.
            by_itself = not self.stopping and not self._over
            self.abandon()
            if by_itself:
                logger.info("✓ Result cleanup daemon stopped")

    async def stop(self) -> None:
        """Stop the cleaner gracefully, from any event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self.stopping = True
            mailbox = Mailbox(loop)
            try:
                await self._stop_through(mailbox)
            finally:
                mailbox.close()
                # The task hears of it if its loop runs.
                self._over = True
            return
        self.stopping = True
        await self._stop_through(self._mailbox)
        self.abandon()
        task = self.task
        if task is not None and task is not asyncio.current_task():
            await asyncio.wait({task})
            if not task.cancelled() and task.exception() is not None:
                logger.error("The cleaner had failed before it was stopped: %s", task.exception())

    async def _stop_through(self, mailbox: Mailbox) -> None:
        cleaner = self._cleaner
        if cleaner is None:
            return
        stopped = mailbox.request(
            lambda mailbox, request: _native.stop(cleaner, mailbox, request)
        )
        await asyncio.wait({stopped}, timeout=STOP_TIME)
        await mailbox.drain()

    def abandon(self) -> None:
        """Stop the cleaner without waiting, and hear no more of it."""
        self.stats()
        self._over = True
        if self._cleaner is not None:
            _native.stop(self._cleaner)
        if self._mailbox.closed:
            return
        if not self.loop.is_closed() and not self._closed.done():
            self._closed.set_result(None)
        self._mailbox.close()

    def leave(self) -> None:
        """Hear no more of the cleaner, which has ended: the interpreter exits."""
        if not self._over:
            self.stats()
            self._over = True
            self._mailbox.leave()

    def release(self) -> t.Dict[str, t.Any]:
        """Forget the cleaner, which has ended, and return its last stats."""
        stats = self.stats()
        if self._cleaner is not None:
            _native.release(self._cleaner)
            self._cleaner = None
        return stats

    def forget(self) -> None:
        """Have no cleaner: this is a forked child, and the cleaner is its parent's."""
        self._over = True
        self._cleaner = None

    def _on_message(self, message: t.Tuple[t.Any, ...]) -> None:
        if message[0] == "closed":
            if not self._closed.done():
                self._closed.set_result(message[1])
        else:
            self._on_removed(message)

    def __del__(self, release: t.Callable[[int], None] = _native.release) -> None:
        cleaner: t.Optional[int] = getattr(self, "_cleaner", None)
        if cleaner is not None:
            release(cleaner)


#: For the two that follow; held across a fork.
_lock = threading.Lock()
_sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()
_exit_registered = False


def _register(session: Session) -> None:
    """Have a fork disarm the session, and the interpreter's exit stop its cleaner."""
    global _exit_registered
    with _lock:
        _sessions.add(session)
        if not _exit_registered:
            _exit_registered = True
            atexit.register(_at_exit)


def _at_exit() -> None:
    """Stop the cleaners that were never stopped, and leave the loops, which may be running, alone."""
    _native.shutdown(EXIT_TIME)
    with _lock:
        sessions = list(_sessions)
    for session in sessions:
        session.leave()


def _before_fork() -> None:
    _lock.acquire()
    for session in list(_sessions):
        # Afterwards the child can't ask any more.
        session.stats()
    _native.before_fork()


def _after_fork_in_parent() -> None:
    _native.after_fork_in_parent()
    _lock.release()


def _after_fork_in_child() -> None:
    _native.after_fork_in_child()
    _lock.release()
    for session in list(_sessions):
        session.forget()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
