"""The server: an address of this machine's, until it is told to end."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from distil import interrupts
from distil.errors import UsageError
from distil.viewer.app import create_app
from distil.viewer.guard import TOKEN, Guard, allowed_names, in_url, is_every_address
from distil.viewer.viewer import Viewer

_BACKLOG = 128
_START_SECONDS = 10.0


def bind(host: str, port: int, may_be_another: bool) -> socket.socket:
    """Listen at an address; `may_be_another` port where that one is taken.

    Raises UsageError where that cannot be.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host {host}: there is no such address") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":  # there it would share the port with another server
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        if may_be_another and port:
            return bind(host, 0, may_be_another=False)
        raise UsageError(
            f"cannot serve at {in_url(host)}:{port}: {os.strerror(error.errno or 0)}; "
            "choose another --port, or 0 for any that is free"
        ) from None
    return listening


def url_of(listening: socket.socket, host: str, token: str | None = None, path: str = "") -> str:
    """What to open in a browser for a page, by its path without the first slash, with its query if any."""
    name = socket.gethostname().lower() if is_every_address(host) else in_url(host)
    query = f"{'&' if '?' in path else '?'}{TOKEN}={token}" if token else ""
    return f"http://{name}:{listening.getsockname()[1]}/{path}{query}"


@contextmanager
def serving(viewer: Viewer, listening: socket.socket, host: str) -> Iterator[None]:
    """While inside, pages are served by threads of this process."""
    port = listening.getsockname()[1]
    app = Guard(create_app(viewer), allowed_names(host), viewer.token, f"distil_view_{port}")
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="pages", daemon=True)
    thread.start()
    give_up_at = time.monotonic() + _START_SECONDS
    while not server.started and thread.is_alive() and time.monotonic() < give_up_at:
        time.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(timeout=3)


def serve_until_interrupted(
    viewer: Viewer, listening: socket.socket, host: str, ready: Callable[[], object]
) -> None:
    """Serve; `ready` is called once pages can be asked for. Ends at a signal, without waiting for readers."""
    woken, wake = os.pipe()
    try:
        with interrupts.interruptible(lambda: os.write(wake, b".")), serving(viewer, listening, host):
            ready()
            os.read(woken, 1)
    except KeyboardInterrupt:
        return
