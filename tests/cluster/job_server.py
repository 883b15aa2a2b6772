"""An imitation of Ray's job server that can break connections; it runs no jobs."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from aiohttp import web


@dataclass
class JobServer:
    """State of the server, which tests may change while it runs."""

    url: str = ""
    jobs: dict[str, str] = field(default_factory=dict)
    """States of jobs by id."""
    hangs_up: Counter[str] = field(default_factory=Counter)
    """Number of requests to break, by kind: `list`, `submit`."""
    refuses: bool = False
    """Answer 401, as without a token."""
    submitted: list[dict[str, Any]] = field(default_factory=list)

    def application(self):
        """Routes of the server."""
        application = web.Application(middlewares=[self._broken])
        application.add_routes(
            [
                web.get("/api/version", self._version, name="version"),
                web.get("/api/jobs/", self._list, name="list"),
                web.post("/api/jobs/", self._submit, name="submit"),
                web.get("/api/packages/{protocol}/{name}", self._package, name="package"),
            ]
        )
        return application

    @web.middleware
    async def _broken(self, request, handler):
        if self.refuses:
            return web.Response(status=401, text="Unauthorized")
        kind = request.match_info.route.name or ""
        self.hangs_up[kind] -= 1
        if self.hangs_up[kind] >= 0:
            request.transport.abort()
        return await handler(request)

    def _details(self, submission_id):
        return {
            "type": "SUBMISSION",
            "submission_id": submission_id,
            "status": self.jobs[submission_id],
            "entrypoint": "",
        }

    async def _version(self, _):
        return web.json_response({"version": "4", "ray_version": ray.__version__})

    async def _package(self, _):
        return web.Response()  # uploaded already

    async def _list(self, _):
        return web.json_response([self._details(name) for name in self.jobs])

    async def _submit(self, request):
        job = await request.json()
        self.submitted.append(job)
        name = job["submission_id"]
        self.jobs[name] = "PENDING"
        return web.json_response({"job_id": name, "submission_id": name})


@contextmanager
def job_server():
    """Run a server on a free port of loopback."""
    server, loop, ready = JobServer(), asyncio.new_event_loop(), threading.Event()

    async def start():
        runner = web.AppRunner(server.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def serve():
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(30)
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
