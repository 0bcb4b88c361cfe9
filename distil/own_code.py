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
from pathlib import Path
from typing import Any

from distil import tasks
from distil.errors import Caught, UsageError
from distil.records import Frame, Json
from distil.tasks.base import Task
from distil.tasks.rewards import Reward, with_reward
from distil.tools.base import BoxFrame, Tool
from distil.tools.own import OwnTool
from distil.tools.toolbox import with_own_tools

REWARD_FUNCTION = "compute_score"  # as verl calls it where nothing else is said
_OF_A_TASK = ("name", "user_prompt", "truth", "parse_answer", "score")
_OF_A_TOOL = ("name", "schema", "resolve", "apply")
_run_files: dict[str, str] = {}  # their hashes by their names, for as long as the command runs


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
        files = _Files(stack)
        chosen, task_file = _chosen_task(task, files, stack)
        tool_files: dict[str, Mapping[str, Json]] = {}
        for path in [part.strip() for part in (tool_modules or "").split(",") if part.strip()]:
            loaded = files.load(path, "--tool_module")
            tools = _tools_of(loaded)
            stack.enter_context(with_own_tools(tools))
            tool_files |= dict.fromkeys((tool.name for tool in tools), loaded.facts)
        found, reward_file = (None, None) if reward is None else _reward(reward, files)
        stack.enter_context(with_reward(found))
        yield OwnCode(chosen, task_file, tool_files, reward_file)


def other_files(stated: Json) -> list[str]:
    """The files of a trace's `settings.own_code` that are at hand, and are others by now."""
    if not isinstance(stated, dict):
        return []
    files = [stated.get("task"), *(stated.get("tools") or []), stated.get("reward")]
    then = {str(file["file"]): file["sha256"] for file in files if isinstance(file, dict)}
    return [name for name, sha256 in then.items() if _run_files.get(name, sha256) != sha256]


@dataclass(frozen=True)
class _Loaded:
    """A file that was run, and what tells it from others."""

    module: types.ModuleType
    path: str
    flag: str
    facts: Mapping[str, Json]


class _Files:
    """The files of one command, each run once, whatever it is named for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._loaded: dict[Path, _Loaded] = {}

    def load(self, path_text: str, flag: str) -> _Loaded:
        """Run a file as a module; raises UsageError with the line that went wrong."""
        path = Path(path_text).expanduser()
        if path.resolve() not in self._loaded:
            self._loaded[path.resolve()] = self._run(path, flag)
        return self._loaded[path.resolve()]

    def _run(self, path: Path, flag: str) -> _Loaded:
        try:
            source = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{flag} {path}: {error.strerror or error}") from None
        sha256 = hashlib.sha256(source).hexdigest()
        module = types.ModuleType(f"distil_own_{path.stem}_{sha256[:12]}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module  # dataclasses look for it there
        self._stack.callback(sys.modules.pop, module.__name__, None)
        # Not by an import, which may take older bytecode: what is hashed is what runs.
        with Caught() as caught:
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102
        if caught.error is not None:
            raise UsageError(f"{flag} {path} cannot be run: {caught.text(str(path))}")
        return self._told(_Loaded(module, str(path), flag, {"file": path.name, "sha256": sha256}))

    def _told(self, loaded: _Loaded) -> _Loaded:
        file = str(loaded.facts["file"])
        _run_files[file] = str(loaded.facts["sha256"])
        self._stack.callback(_run_files.pop, file, None)
        return loaded

    def import_module(self, name: str, asked: str) -> _Loaded:
        """A module by its name, from where Python finds it; raises UsageError."""
        with Caught() as caught:
            module = importlib.import_module(name)
            path = str(module.__file__)
            sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            return self._told(_Loaded(module, path, "--reward", {"file": name, "sha256": sha256}))
        raise UsageError(f"--reward {asked}: {name!r} cannot be imported: {caught.text(name)}")


def _chosen_task(
    asked: str | None, files: _Files, stack: ExitStack
) -> tuple[Task, Mapping[str, Json] | None]:
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
    loaded = files.load(path, "--task")
    task = _named_task(loaded, name)
    if task.name in tasks.TASKS:
        raise UsageError(f"--task {asked}: there is a task called {task.name!r} already; rename yours")
    tasks.TASKS[task.name] = task
    stack.callback(tasks.TASKS.pop, task.name, None)
    return task, loaded.facts


def _named_task(loaded: _Loaded, name: str) -> Task:
    found: dict[str, Task] = {}
    for attribute, task in _objects_of(loaded, Task, _OF_A_TASK).items():
        if not isinstance(task.name, str) or not task.name:
            raise UsageError(f"--task {loaded.path}: the name of {attribute} is no text: {task.name!r}")
        found[attribute] = task
    fitting = {task.name: task for attribute, task in found.items() if name in ("", attribute, task.name)}
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    there = ", ".join(sorted({task.name for task in found.values()}))
    if not there:
        raise UsageError(f"--task {loaded.path}: no task in it: one is a subclass of distil.tasks.base.Task")
    raise UsageError(
        f"--task {loaded.path}:NAME: the tasks in it are {there}" + (f", and not {name!r}" if name else "")
    )


def _tools_of(loaded: _Loaded) -> list[Tool]:
    """The tools that a file defines, each name once; raises UsageError."""
    tools = {tool.name: tool for tool in _objects_of(loaded, Tool, _OF_A_TOOL).values()}
    if not tools:
        raise UsageError(
            f"--tool_module {loaded.path}: no tool in it: one is a subclass of distil.tools.base.Tool"
        )
    for name, tool in tools.items():
        with Caught() as caught:
            stated = tool.schema(BoxFrame(Frame.PIXEL))["function"]["name"]
            if stated != name:
                raise ValueError(f"the schema of {name!r} calls it {stated!r}")
        if caught.error is not None:
            raise UsageError(f"--tool_module {loaded.path}: {caught.text(loaded.path)}")
    return [OwnTool(tool, loaded.path) for tool in tools.values()]


def _objects_of(loaded: _Loaded, kind: Any, needed: Collection[str]) -> dict[str, Any]:
    """What a module defines of a kind, by the names it has there; a class is called without arguments.

    Raises UsageError for one that lacks what it must have.
    """
    found: dict[str, Any] = {}
    for attribute, value in vars(loaded.module).items():
        own = value if isinstance(value, type) else type(value)
        if attribute.startswith("_") or own.__module__ != loaded.module.__name__ or kind not in own.__mro__:
            continue
        missing = [name for name in needed if getattr(own, name, None) is getattr(kind, name)]
        if missing:
            raise UsageError(f"{loaded.flag} {loaded.path}: {own.__name__} has no {', '.join(missing)}")
        found[attribute] = _called(value, loaded) if isinstance(value, type) else value
    return found


def _called(make: Callable[[], Any], loaded: _Loaded) -> Any:
    with Caught() as caught:
        return make()
    raise UsageError(f"{loaded.flag} {loaded.path}: {caught.text(loaded.path)}")


def _reward(asked: str, files: _Files) -> tuple[Reward, Mapping[str, Json]]:
    where, colon, name = asked.rpartition(":")
    if not colon or name.endswith(".py"):
        where, name = asked, REWARD_FUNCTION
    if where.endswith(".py") or "/" in where:
        loaded = files.load(where, "--reward")
    else:
        loaded = files.import_module(where, asked)
    function = getattr(loaded.module, name, None)
    if not callable(function):
        raise UsageError(f"--reward {asked}: {loaded.path} has no function {name!r}")
    reward = Reward(name, function, loaded.path, str(loaded.facts["sha256"]))
    return reward, {"function": name, **loaded.facts}
