"""The tool registry: every tool that can be offered, one line each, by the name `--tools` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distil.errors import ToolError, UsageError
from distil.pictures import ViewRule, encode_sent, picture_facts
from distil.records import Json, Observation, RawCall, SentPicture, ToolCall
from distil.tools.base import BoxFrame, CropFrom, Scene, Tool, View
from distil.tools.rotate import RotateTool
from distil.tools.zoom import ZoomTool

TOOLS: tuple[tuple[str, Tool], ...] = (
    ("zoom", ZoomTool()),
    ("rotate", RotateTool()),
)

__all__ = ["TOOLS", "BoxFrame", "CropFrom", "Scene", "Tool", "Toolbox", "View", "load_tools"]

_MAX_QUOTED_CHARS = 200


def load_tools(names: str) -> tuple[Tool, ...]:
    """The tools named in a comma-separated list ("zoom,rotate"), or none for "none"; raises UsageError."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if wanted == ["none"]:
        return ()
    known = dict(TOOLS)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UsageError(f"--tools {names!r}: known tools are {', '.join(known)} (or none)")
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"--tools {names!r} names a tool twice")
    return tuple(known[name] for name in wanted)


@dataclass(frozen=True)
class Toolbox:
    """The tools that one run offers, with how its teacher sees pictures and states boxes."""

    tools: tuple[Tool, ...]
    boxes: BoxFrame
    rule: ViewRule
    states_size: bool = False

    def schemas(self) -> tuple[Mapping[str, Json], ...]:
        """The function schemas to offer, in the order of the tools."""
        return tuple(tool.schema(self.boxes) for tool in self.tools)

    def run(
        self, call: RawCall, scene: Scene, original: SentPicture, current: SentPicture
    ) -> tuple[ToolCall, Scene]:
        """Run one call of the teacher; a call that fails leaves the scene as it was.

        `original` and `current` are the scene's pictures as the teacher saw them.
        """
        view = View(scene, original.size, current.size)
        try:
            if call.problem is not None:
                raise ToolError(call.problem)
            tool = self._find(call.name)
            resolved = tool.resolve(call.arguments, view, self.boxes)
            observation, scene = self.observe(tool.name, resolved.arguments, scene)
        except ToolError as error:
            return ToolCall(call, {}, False, Observation(False, f"Error: {error}")), scene
        return ToolCall(call, resolved.arguments, resolved.clamped, observation), scene

    def observe(self, name: str, arguments: Mapping[str, Json], scene: Scene) -> tuple[Observation, Scene]:
        """Apply resolved arguments: the one function that sampling and replay share; raises ToolError."""
        scene = self._find(name).apply(arguments, scene)
        sent = encode_sent(scene.current, self.rule)
        message = "Success: Image processed successfully"
        if self.states_size:
            message += f". The image is now {sent.size[0]}×{sent.size[1]} pixels (width × height)."
        return Observation(True, message, picture_facts(scene.current), sent), scene

    def _find(self, name: str) -> Tool:
        for tool in self.tools:
            if tool.name == name:
                return tool
        offered = ", ".join(tool.name for tool in self.tools) or "none"
        raise ToolError(f"there is no tool called {name[:_MAX_QUOTED_CHARS]!r}; tools: {offered}")
