"""Known attacks that are tried at start, through the path that every code takes."""

from __future__ import annotations

_CANARY = """
try:
    {attempt}
    print("escaped")
except OSError:
    print("held")
result_image = image
"""
CANARIES = {  # {file}: a file that is there
    "file": _CANARY.replace("{attempt}", "open({file!r})").replace("{file!r}", "'{file}'"),
    "socket": _CANARY.replace("{attempt}", "import socket; socket.socket()"),
    "process": _CANARY.replace("{attempt}", "import os; os.fork() or os._exit(0)"),
}
