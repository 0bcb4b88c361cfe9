"""Tasks, tools and rewards of the user's own files, put into the registries for as long as a command runs.

Such a file runs in this process and may do anything. Only a flag has one imported: a trace names the files
that its run had, for a person to find them, and nothing ever follows such a name.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from distil import tasks
from distil.errors import Caught, ToolError, UsageError
from distil.records import Frame, Json, mapping_of
from distil.tasks.base import Task
from distil.tasks.rewards import REWARDS, Reward
from distil.tools.base import BoxFrame, Tool
from distil.tools.toolbox import TOOLS, all_tools

REWARD_FUNCTION = "compute_score"  # as verl calls it where nothing else is said
_OF_A_TASK = ("name", "user_prompt", "truth", "parse_answer", "score")
_OF_A_TOOL = ("name", "schema", "resolve", "apply")
_run_files: dict[str, str] = {}  # their hashes by their names, for as long as the command runs

Loaded = tuple[types.ModuleType, Mapping[str, Json]]  # a file that was run, and what tells it from others
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class OwnCode:
    """The task of a run, and which files of the user's own had what."""

    task: Task
    task_file: Mapping[str, Json] | None = None
    tool_files: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)  # by the names of their tools
    reward_file: Mapping[str, Json] | None = None

    def as_json(self, offered: Collection[str]) -> dict[str, Json] | None:
        """As a trace's settings have it, of the tools those that are offered; None without own code."""
        files = [self.tool_files[name] for name in offered if name in self.tool_files]
        unique = list({str(file["sha256"]): dict(file) for file in files}.values())
        found = {
            "task": self.task_file and dict(self.task_file),
            "tools": unique,
            "reward": self.reward_file and dict(self.reward_file),
        }
        return {name: value for name, value in found.items() if value} or None

    def not_offered(self, offered: Collection[str]) -> list[str]:
        """The tools of own files that are not among those that are offered."""
        return [name for name in self.tool_files if name not in offered]


@contextmanager
def own_code(task: str | None, tool_modules: str | None, reward: str | None) -> Iterator[OwnCode]:
    """Have the task, tools and reward that flags name; raises UsageError where that cannot be.

    `task` is the name of one that there is, or FILE:NAME, `tool_modules` files with commas between, `reward`
    MODULE:FUNCTION or FILE:FUNCTION.
    """
    with ExitStack() as stack:
        chosen, task_file = _chosen_task(task, stack)
        tool_files: dict[str, Mapping[str, Json]] = {}
        for path in [part.strip() for part in (tool_modules or "").split(",") if part.strip()]:
            module, facts = _run(path, "--tool_module", stack)
            tools = _tools_of(module)
            _offer(tools, stack)
            tool_files |= dict.fromkeys((tool.name for tool in tools), facts)
        reward_file = None if reward is None else _have_reward(reward, stack)
        yield OwnCode(chosen, task_file, tool_files, reward_file)


def other_files(stated: Json) -> list[str]:
    """The files of a trace's `settings.own_code` that are at hand, and are others by now."""
    own = mapping_of(stated)
    files = [own.get("task"), *(own.get("tools") or []), own.get("reward")]
    then = {str(file["file"]): file["sha256"] for file in files if isinstance(file, dict)}
    return [name for name, sha256 in then.items() if _run_files.get(name, sha256) != sha256]


def _have(registry: dict[str, ValueT], name: str, value: ValueT, stack: ExitStack) -> None:
    """Have it in a registry for as long as the stack is open."""
    registry[name] = value
    stack.callback(registry.pop, name, None)


def _run(path_text: str, flag: str, stack: ExitStack) -> Loaded:
    """Run a file as a module, once, whatever it is named for; raises UsageError with the line that fails."""
    path = Path(path_text).expanduser()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}") from None
    sha256 = hashlib.sha256(source).hexdigest()
    module = types.ModuleType(f"distil_own_{path.stem}_{sha256[:12]}")
    module.__file__ = str(path)
    known = sys.modules.get(module.__name__)
    if known is not None and Path(str(known.__file__)).resolve() == path.resolve():
        return known, {"file": path.name, "sha256": sha256}
    _have(sys.modules, module.__name__, module, stack)  # dataclasses look for it there
    # Not by an import, which may take older bytecode: what is hashed is what runs.
    with Caught() as caught:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    if caught.error is not None:
        raise UsageError(f"{flag} {path} cannot be run: {caught.text(str(path))}")
    return _told(module, path.name, sha256, stack)


def _imported(name: str, asked: str, stack: ExitStack) -> Loaded:
    """A module by its name, from where Python finds it; raises UsageError."""
    with Caught() as caught:
        module = importlib.import_module(name)
        sha256 = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
        return _told(module, name, sha256, stack)
    raise UsageError(f"--reward {asked}: {name!r} cannot be imported: {caught.text(name)}")


def _told(module: types.ModuleType, file: str, sha256: str, stack: ExitStack) -> Loaded:
    _have(_run_files, file, sha256, stack)
    return module, {"file": file, "sha256": sha256}


def _chosen_task(asked: str | None, stack: ExitStack) -> tuple[Task, Mapping[str, Json] | None]:
    name = asked or tasks.DEFAULT_TASK
    if name in tasks.TASKS:
        return tasks.TASKS[name], None
    path, colon, name = name.rpartition(":")
    if name.endswith(".py"):
        path, name = asked or "", ""
    elif not colon:
        raise UsageError(
            f"--task {asked}: the tasks are {', '.join(tasks.TASKS)}; one of your own file is FILE:NAME"
        )
    module, facts = _run(path, "--task", stack)
    task = _named_task(module, name)
    if task.name in tasks.TASKS:
        raise UsageError(f"--task {asked}: there is a task called {task.name!r} already; rename yours")
    _have(tasks.TASKS, task.name, task, stack)
    return task, facts


def _named_task(module: types.ModuleType, name: str) -> Task:
    found: dict[str, Task] = _objects_of(module, "--task", Task, _OF_A_TASK)
    for attribute, task in found.items():
        if not isinstance(task.name, str) or not task.name:
            raise UsageError(f"--task {module.__file__}: the name of {attribute} is no text: {task.name!r}")
    fitting = {task.name: task for attribute, task in found.items() if name in ("", attribute, task.name)}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    there = ", ".join(sorted({task.name for task in found.values()}))
    if not there:
        raise UsageError(
            f"--task {module.__file__}: no task in it: one is a subclass of distil.tasks.base.Task"
        )
    raise UsageError(
        f"--task {module.__file__}:NAME: the tasks in it are {there}"
        + (f", and not {name!r}" if name else "")
    )


def _tools_of(module: types.ModuleType) -> list[Tool]:
    """The tools that a file defines, each name once; raises UsageError."""
    file = str(module.__file__)
    found = _objects_of(module, "--tool_module", Tool, _OF_A_TOOL).values()
    tools: dict[str, Tool] = {tool.name: tool for tool in found}
    if not tools:
        raise UsageError(f"--tool_module {file}: no tool in it: one is a subclass of distil.tools.base.Tool")
    for name, tool in tools.items():
        with Caught() as caught:
            stated = tool.schema(BoxFrame(Frame.PIXEL))["function"]["name"]
            if stated != name:
                raise ValueError(f"the schema of {name!r} calls it {stated!r}")
        if caught.error is not None:
            raise UsageError(f"--tool_module {file}: {caught.text(file)}")
    return [cast(Tool, OwnTool(tool, file)) for tool in tools.values()]


def _offer(tools: list[Tool], stack: ExitStack) -> None:
    """Have these tools beside those that there are; raises UsageError where a name is taken already."""
    for tool in tools:
        if tool.name in {*TOOLS, *(each.name for each in all_tools())}:
            raise UsageError(f"--tool_module: there is a tool called {tool.name!r} already; rename one")
        _have(TOOLS, tool.name, lambda _, tool=tool: tool, stack)  # type: ignore[misc]


def _objects_of(module: types.ModuleType, flag: str, kind: Any, needed: Collection[str]) -> dict[str, Any]:
    """What a module defines of a kind, by the names it has there; a class is called without arguments.

    Raises UsageError for one that lacks what it must have.
    """
    found: dict[str, Any] = {}
    for attribute, value in vars(module).items():
        own = value if isinstance(value, type) else type(value)
        if attribute.startswith("_") or own.__module__ != module.__name__ or kind not in own.__mro__:
            continue
        missing = [name for name in needed if getattr(own, name, None) is getattr(kind, name)]
        if missing:
            raise UsageError(f"{flag} {module.__file__}: {own.__name__} has no {', '.join(missing)}")
        found[attribute] = _called(value, module, flag) if isinstance(value, type) else value
    return found


def _called(make: Callable[[], Any], module: types.ModuleType, flag: str) -> Any:
    with Caught() as caught:
        return make()
    raise UsageError(f"{flag} {module.__file__}: {caught.text(module.__file__)}")


def _have_reward(asked: str, stack: ExitStack) -> Mapping[str, Json]:
    """Have the reward that is asked for; what a trace's settings say of it."""
    where, colon, name = asked.rpartition(":")
    if not colon or name.endswith(".py"):
        where, name = asked, REWARD_FUNCTION
    is_file = where.endswith(".py") or "/" in where
    module, facts = _run(where, "--reward", stack) if is_file else _imported(where, asked, stack)
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"--reward {asked}: {module.__file__} has no function {name!r}")
    _have(REWARDS, name, Reward(name, function, str(module.__file__), str(facts["sha256"])), stack)
    return {"function": name, **facts}


@dataclass(frozen=True)
class OwnTool:
    """A tool of such a file; all it raises is a failed call: the teacher is told, and the sample goes on."""

    tool: Tool
    file: str

    def __getattr__(self, name: str) -> Any:
        if name == "tool":
            raise AttributeError(name)  # while a copy is made, which has nothing yet
        found = getattr(self.tool, name)
        if name in ("resolve", "apply", "restate"):
            return partial(self._or_fail, found)
        return partial(self._or_none, found) if name in ("box_of", "angle_of") else found

    def _or_fail(self, method: Callable[..., Any], *given: Any) -> Any:
        with Caught() as caught:
            return method(*given)
        if isinstance(caught.error, ToolError):
            raise caught.error
        raise ToolError(f"{self.tool.name} failed: {caught.text(self.file)}")

    def _or_none(self, method: Callable[..., Any], *given: Any) -> Any:
        with Caught():
            return method(*given)
        return None
