"""A TCP balancer as operators put in front: it asks each gateway's /readyz and sends connections to those that say 200."""
import asyncio
import threading

CHECK_SECONDS = 0.1


class Balancer:
    """Runs on a thread of its own; gateways are (api port, ops port) on loopback."""

    def __init__(self, gateways):
        self.gateways, self.ready, self.next, self.port = gateways, set(), 0, None
        self.started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()), daemon=True)

    def start(self):
        self.thread.start()
        self.started.wait()
        return self

    def stop(self):
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join()

    async def run(self):
        self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        checks = [asyncio.create_task(self.check(g)) for g in self.gateways]
        self.started.set()
        await self.ended.wait()
        server.close()
        for task in checks:
            task.cancel()

    async def check(self, gateway):
        while True:
            is_ready = False
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", gateway[1])
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                is_ready = (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()
            except OSError:
                pass
            (self.ready.add if is_ready else self.ready.discard)(gateway)
            await asyncio.sleep(CHECK_SECONDS)

    async def connect(self):
        """To the next one that is ready, once: who is refused there, after all, has failed."""
        for _ in self.gateways:
            self.next += 1
            gateway = self.gateways[self.next % len(self.gateways)]
            if gateway in self.ready:
                return await asyncio.open_connection("127.0.0.1", gateway[0])
        raise ConnectionError("no gateway is ready")

    async def serve(self, reader, writer):
        try:
            to_reader, to_writer = await self.connect()
        except OSError:
            writer.transport.abort()
            return
        try:
            await asyncio.gather(pass_on(reader, to_writer), pass_on(to_reader, writer))
        except asyncio.CancelledError:
            pass  # the end of the test; asyncio's own callback would complain
        for w in (writer, to_writer):
            w.close()


async def pass_on(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
