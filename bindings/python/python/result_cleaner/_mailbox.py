"""The way of the engine's messages into an event loop."""

import asyncio
import itertools
import logging
import os
import typing as t

from . import _native

__all__ = ["Mailbox", "logger", "set_log_level"]

logger = logging.getLogger("result_cleaner")

#: How many log lines, and how many messages, one turn of the event loop handles.
BATCH = 100
#: How many turns of the loop the lines that are left at an end may take: more than the engine keeps.
MAX_TURNS = 200

_requests = itertools.count(1)


def set_log_level() -> None:
    """Tell the engine which log lines nobody wants."""
    _native.set_log_level(min(max(logger.getEffectiveLevel(), 0), 255))


class Mailbox:
    """Messages of the engine, handled on one event loop.

    The engine's threads put messages into it and never call into Python. Each turn of the loop takes a
    bounded number, so that the loop's other work goes on meanwhile.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_message: t.Optional[t.Callable[[t.Tuple[t.Any, ...]], None]] = None,
    ) -> None:
        self.loop = loop
        self.closed = False
        self._process = os.getpid()
        self._on_message = on_message
        self._waiting: t.Dict[int, "asyncio.Future[str]"] = {}
        set_log_level()
        self.id, self._descriptor = _native.open_mailbox()
        try:
            loop.add_reader(self._descriptor, self._ready)
        except BaseException:
            self.closed = True
            _native.close_mailbox(self.id)
            raise

    def request(self, ask: t.Callable[[int, int], None]) -> "asyncio.Future[str]":
        """Ask the engine, and return the future of its answer."""
        number = next(_requests)
        answer: "asyncio.Future[str]" = self.loop.create_future()
        self._waiting[number] = answer
        try:
            ask(self.id, number)
        except BaseException:
            del self._waiting[number]
            raise
        return answer

    async def drain(self) -> None:
        """Handle all that the engine has said until now."""
        for _ in range(MAX_TURNS):
            if self._ready() == 0:
                break
            await asyncio.sleep(0)

    def _ready(self) -> int:
        if self.closed:
            return 0
        set_log_level()
        messages = _native.take(self.id, BATCH)
        for message in messages:
            kind = message[0]
            if kind == "log":
                _log(message[1], message[2])
            elif kind == "reply":
                self._reply(message[1], message[2], message[3])
            elif self._on_message is not None:
                try:
                    self._on_message(message)
                except Exception:
                    logger.exception("Failed to handle a message of the engine")
        return len(messages)

    def _reply(self, number: int, answer: t.Optional[str], error: t.Optional[Exception]) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.done():
            return
        if error is not None:
            waiting.set_exception(error)
        else:
            waiting.set_result(answer or "")

    def close(self) -> None:
        """Take what is left of the log, and close. On the loop's thread, or after the loop's end."""
        if self.closed:
            return
        self.closed = True
        if self._process != os.getpid():
            # A forked child: what its copy of the loop does, the loop of the parent may notice.
            return
        if not self.loop.is_closed():
            self.loop.remove_reader(self._descriptor)
        self._take_log()
        _native.close_mailbox(self.id)
        for waiting in self._waiting.values():
            waiting.cancel()
        self._waiting.clear()

    def leave(self) -> None:
        """Take what is left of the log, and no more: the interpreter exits, on whichever thread."""
        if not self.closed:
            self.closed = True
            self._take_log()

    def _take_log(self) -> None:
        for message in _native.take(self.id, BATCH):
            if message[0] == "log":
                _log(message[1], message[2])

    def __del__(self, close: t.Callable[[int], None] = _native.close_mailbox) -> None:
        # Only a mailbox whose loop has gone can be collected: the loop holds on to its reader.
        if not getattr(self, "closed", True):
            self.closed = True
            close(self.id)


def _log(level: int, text: str) -> None:
    logger.log(level, text)
