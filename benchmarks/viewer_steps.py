"""A viewer that is served and asked, in a process of its own; prints seconds, milliseconds and megabytes as JSON."""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

from distil.index.index import TraceIndex
from distil.viewer.server import bind, serving
from distil.viewer.viewer import Viewer

HOST = "127.0.0.1"
NUM_REQUESTS = 200  # after which memory is looked at again
PATHS = {
    "again": "/",
    "list": "/traces",
    "filter": "/api/rows?" + urlencode({"f": "score>=0.5", "sort": "-score"}),
    "search": "/api/rows?" + urlencode({"q": "bollard fence"}),
    "far": "/api/rows?" + urlencode({"sort": "-score", "offset": 90}),
}


def main() -> None:
    folder = Path(sys.argv[1])
    TraceIndex.open([folder]).close()  # made before: it is not what is measured
    found: dict[str, float] = {}
    began = time.monotonic()
    index = TraceIndex.open([folder])
    found["open_seconds"] = time.monotonic() - began
    with bind(HOST, 0, may_be_another=False) as listening:
        port = listening.getsockname()[1]
        with serving(Viewer((folder,), index), listening, HOST):
            found["first_seconds"] = ask(port, "/")
            time.sleep(2)  # until it has read where the run stands
            for name, path in PATHS.items():
                found[f"{name}_ms"] = 1000 * statistics.median(ask(port, path) for _ in range(5))
            found["map_ms"] = 1000 * ask(port, "/api/pairs")
            found["mb"] = megabytes()
            for _ in range(NUM_REQUESTS // len(PATHS)):
                for path in PATHS.values():
                    ask(port, path)
            found["mb_after"] = megabytes()
    print(json.dumps(found))


def ask(port: int, path: str) -> float:
    """The seconds until an answer is there as a whole."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(HOST, port, timeout=120)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status}")
    return time.monotonic() - began


def megabytes() -> float:
    """What this process holds now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
