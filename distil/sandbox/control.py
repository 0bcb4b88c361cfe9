"""What the control socket carries; standard library only, the server imports this file by path."""

from __future__ import annotations

import struct

COMMAND = struct.Struct("<cI")  # T (taken) or D (to be killed), and a child's number
NUMBER = struct.Struct("<I")
