"""python_code_tool: a program of the teacher's own, run in the sandbox on the current picture."""

from __future__ import annotations

import ast
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from distil.errors import SandboxUnavailable, ToolError
from distil.records import Json
from distil.sandbox.exchange import ExecResult
from distil.tools.base import (
    Applied,
    BoxFrame,
    Resolved,
    Scene,
    SeenSizes,
    Tool,
    function_schema,
    required_argument,
)

_EXAMPLE = '{"code": "result_image = image.crop((100, 100, 500, 500))"}'
_DESCRIPTION = (
    "Run Python code on the most recent image. `image` is that image (a PIL image), `Image` (PIL) and `np` "
    "(numpy) are at hand; PIL, numpy and the standard library can be imported. Assign the new picture to "
    "`result_image`. What the code prints is returned. There is no file, network or process access."
)
_IMPORTS = {"Image": "from PIL import Image", "np": "import numpy as np"}


class Executor(Protocol):
    """What runs model-written code: `distil.sandbox.Sandbox`."""

    workers: int  # how many runs there are at once

    def run(self, code: str, picture: Image.Image) -> ExecResult:
        """Run code on a picture; what the code does wrong is in the result."""
        ...


@dataclass(frozen=True)
class PythonCodeTool(Tool):
    """Run `code` with the current picture as `image` and take `result_image`."""

    executor: Executor | None = field(default=None, repr=False, compare=False)
    name: str = "python_code_tool"
    work: AbstractContextManager[object] = field(default=nullcontext(), init=False, repr=False, compare=False)
    runs_code = True

    def __post_init__(self) -> None:
        if self.executor is not None:
            # Its own bound, or code that only waits would keep others from the cores.
            object.__setattr__(self, "work", threading.BoundedSemaphore(self.executor.workers))

    def schema(self, boxes: BoxFrame) -> Mapping[str, Json]:
        code = {"type": "string", "description": "The Python code. It must assign `result_image`."}
        return function_schema(self.name, _DESCRIPTION, {"code": code}, ["code"])

    def resolve(self, raw: Mapping[str, Json], seen: SeenSizes, boxes: BoxFrame) -> Resolved:
        """Stored `code` is the teacher's, without its Markdown fence and with the imports it leaves out."""
        code = required_argument(raw, "code", _EXAMPLE)
        if not isinstance(code, str) or not code.strip():
            raise ToolError(f"code must be a text with Python code; example: {_EXAMPLE}")
        return Resolved({"code": self_contained(unfenced(code))})

    def apply(self, arguments: Mapping[str, Json], scene: Scene) -> Applied:
        if self.executor is None:
            raise SandboxUnavailable("there is no sandbox to run code in")
        result = self.executor.run(arguments["code"], scene.current)
        if result.picture is None:
            raise ToolError(result.message.removeprefix("Error: "), result.stdout)
        return Applied(scene.replaced(result.picture), result.stdout)

    def restores(self, arguments: Mapping[str, Json]) -> bool:
        return True

    def recipe(self, arguments: Mapping[str, Json], image: Image.Image) -> Image.Image:
        """Code runs in the executor instead of by `exec`; raises ValueError where it fails."""
        if self.executor is None:
            return image
        result = self.executor.run(arguments["code"], image)
        if result.picture is None:
            raise ValueError(result.message)
        return result.picture


def unfenced(code: str) -> str:
    """The code without the ``` fence that models put around it; anything else is left as it is."""
    lines = code.strip().splitlines()
    if len(lines) < 2 or not lines[0].startswith("```") or lines[-1].strip() != "```":
        return code
    return "\n".join(lines[1:-1]) + "\n"


def self_contained(code: str) -> str:
    """The code with imports of `Image` and `np` where it uses them unbound.

    The sandbox has both at hand, but the restore recipe's scope has not: stored code must run in either.
    Chance is seeded from the code, so what runs here must be what is stored.
    The imports go onto the first line where Python allows it, so that line numbers stay the teacher's.
    """
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code  # it will fail, and say why, when it runs
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    imports = "; ".join(line for name, line in _IMPORTS.items() if name in used - bound)
    if not imports:
        return code
    on_first_line = f"{imports}; {code.lstrip()}"
    try:
        ast.parse(on_first_line)
    except SyntaxError:
        return f"{imports}\n{code}"
    return on_first_line
