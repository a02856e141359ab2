"""A TCP proxy with faults, in threads of the test: what stands between a client and its server goes wrong.

Faults are switched while connections live. Both ways are delayed by ``delay_s``, so that a round trip takes
twice that; what is on its way keeps its order and its rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Literal, TypeVar

__all__ = ["FaultProxy", "running_proxy"]

_T = TypeVar("_T")
_CHUNK = 1 << 16


class FaultProxy:
    """Forwards a loopback port of its own to ``target``.

    Attributes
    ----------
    mode
        ``pass``; ``stall``: bytes are held and nothing is closed, as by a firewall that forgot a connection;
        ``refuse``: new connections are reset.
    delay_s
        Added to every byte, each way, s.
    reset_fraction
        This share of new connections is reset after a random number of bytes (up to ``reset_within``).
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode: Literal["pass", "stall", "refuse"] = "pass"
        self.delay_s = 0.0
        self.reset_fraction = 0.0
        self.reset_within = 20_000
        self.random = random.Random(1)
        self.accepted = 0
        self.carried = {"up": 0, "down": 0}
        self._cut: dict[str, int | None] = {"up": None, "down": None}
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def live(self) -> int:
        """Connections that are open now."""
        return len(self._pairs)

    def reset(self) -> None:
        """Reset all live connections."""
        self._loop.call_soon_threadsafe(self._reset_all)

    def cut_after(self, size: int, way: Literal["up", "down"] = "up") -> None:
        """Reset all connections after so many more bytes to (up) or from (down) the server."""
        self._cut[way] = size

    def close(self) -> None:
        """Reset all connections and end."""

        async def end() -> None:
            self._reset_all()
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _reset_all(self) -> None:
        for pair in list(self._pairs):
            for writer in pair:
                _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.accepted += 1
        try:
            if self.mode == "refuse":
                return _reset(writer)
            try:
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                return _reset(writer)
            for one in (writer, server_writer):
                one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (writer, server_writer)
            doomed = self.random.random() < self.reset_fraction
            left = [self.random.randrange(self.reset_within)] if doomed else None
            self._pairs.add(pair)
            try:
                await asyncio.gather(
                    self._pump("up", reader, server_writer, pair, left),
                    self._pump("down", server_reader, writer, pair, left),
                )
            except (OSError, asyncio.CancelledError):
                pass  # the streams' own callback would report a cancelled task
            finally:
                self._pairs.discard(pair)
                for one in pair:
                    one.close()
        finally:
            self._tasks.discard(task)

    async def _pump(
        self,
        way: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        left: list[int] | None,
    ) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def read() -> None:
            while data := await reader.read(_CHUNK):
                await queue.put((self._loop.time() + self.delay_s, data))
            await queue.put((0.0, b""))

        reading = asyncio.ensure_future(read())
        try:
            while True:
                due, data = await queue.get()
                if (wait := due - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                while self.mode == "stall":
                    await asyncio.sleep(0.02)
                if not data:
                    break
                limit = self._cut[way]
                if limit is not None:
                    self._cut[way] = limit - len(data)
                    if len(data) >= limit:
                        writer.write(data[:limit])
                        self._cut[way] = None
                        return self._reset_all()
                if left is not None:
                    left[0] -= len(data)
                    if left[0] < 0:
                        for one in pair:
                            _reset(one)
                        return None
                self.carried[way] += len(data)
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await reading


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:  # close() sends RST
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def running_proxy(target: int) -> Iterator[FaultProxy]:
    """Give a proxy to a port on this machine."""
    proxy = FaultProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
