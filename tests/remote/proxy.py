"""A TCP proxy that simulates network faults on demand."""

from __future__ import annotations

import asyncio
import threading

WAIT = 20.0


class Proxy:
    """Forwards bytes between its own port and another port, for the length of a ``with``."""

    def __init__(self, port: int):
        self._target = port
        self._up = threading.Event()
        self._links: set[asyncio.Task[None]] = set()
        self._dead: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Proxy:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._up.wait(WAIT)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def hold(self) -> None:
        """Delay all data until ``heal``; nothing is lost."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def swallow(self) -> None:
        """Discard all data of the present connections for ever; new ones wait for ``heal``."""

        def swallow() -> None:
            self._flowing.clear()
            self._dead |= self._links

        self._loop.call_soon_threadsafe(swallow)

    def cut(self) -> None:
        """Break the present connections; new ones wait for ``heal``."""

        def cut() -> None:
            self._flowing.clear()
            for link in self._links:
                link.cancel()

        self._loop.call_soon_threadsafe(cut)

    def heal(self) -> None:
        """Restore the network."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._stop.wait()
        server.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _connected(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._link(near, back))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _link(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        ends = [back]
        try:
            await self._flowing.wait()
            far, on = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(on)
            link = asyncio.current_task()
            assert link is not None
            await asyncio.gather(self._pass(near, on, link), self._pass(far, back, link))
        except OSError:
            pass
        finally:
            for end in ends:
                end.transport.abort()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        link: asyncio.Task[None],
    ) -> None:
        while True:
            data = await source.read(65_536)
            if link in self._dead:
                if not data:
                    return
                continue
            await self._flowing.wait()
            if link in self._dead:
                continue
            target.write(data)
            if not data:
                target.close()
                return
            await target.drain()
