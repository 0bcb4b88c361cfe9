"""Whole conversations with every real part between a reply's body and the verdict on its trace.

The dataset, solver, journal, writer, reader, replay and verify are the program's own, put together as a run
puts them together. Only the way of a body to the reader may be short-cut, since a server costs more time
than all the rest.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import datasets
import pytest
from PIL import Image
from replayed import replay
from scripted_teacher import ScriptedTeacher, is_probe, says

from distil.commands.flags import RunFlags, ViewFlags, add_flags, read_flags
from distil.errors import FolderError
from distil.pictures import picture_facts
from distil.records import Outcome, Reply, SampleId
from distil.replay.replay import Executors, Sources
from distil.replay.verify import Verdict, verify_trace
from distil.run.plan import Plan
from distil.run.settle import settle, what_is_asked
from distil.run.solver import RolloutSolver, open_budget, open_rows
from distil.run.threads import run_samples
from distil.sandbox.sandbox import Sandbox
from distil.source.rows import Source
from distil.store.claim import Claim
from distil.store.folder import RunFolder
from distil.store.summary import TraceSummary
from distil.store.trace_file import read_trace
from distil.tasks import TASKS
from distil.teacher.address import Address
from distil.teacher.attempts import AttemptFailed
from distil.teacher.client import Teacher, _parsed
from distil.teacher.slots import Slots
from distil.terminal.terminal import Terminal
from distil.terminal.traces import view

Body = bytes | Exception  # what a request is answered with: a completion, or what the client makes of none
ASSISTANT = b'{"role": "assistant"'
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
KEY = "EMPTY"
RECIPE = re.search(r"```python\n(.*?)```", README, re.DOTALL)


def quiet() -> Terminal:
    return Terminal(file=io.StringIO(), width=150)


@dataclass(frozen=True)
class Run:
    """A plan with what a run of it has open."""

    plan: Plan
    source: Source
    folder: RunFolder
    sandbox: Sandbox | None


@dataclass
class Bodies:
    """Answers each turn of a conversation with its body, read as a server's reply is read."""

    run: Run
    bodies: Sequence[Body]
    breaks: dict[int, Exception] = field(
        default_factory=dict
    )  # by turn, from 1: raised instead of its answer
    requests: list[list[bytes]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    turn_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.budget = open_budget(
            self.run.plan.flags.budget, self.run.plan.teacher(KEY), self.run.folder.spending
        )

    @contextmanager
    def asking(self, *_: float, offers_tools: bool = True) -> Iterator[Any]:
        yield self

    def close(self) -> None:
        pass

    def ask(self, messages: Sequence[bytes], seed: int) -> Reply:
        turn = sum(message.startswith(ASSISTANT) for message in messages)
        self.requests.append(list(messages))
        with self.budget.request() as request:
            request.sent()
            body = self.breaks.get(turn + 1) or self.bodies[min(turn, len(self.bodies) - 1)]
            if isinstance(body, Exception):
                raise body
            try:
                reply = _parsed(body, request)
            except AttemptFailed as failed:
                raise failed.error from None
        self.replies.append(reply)
        return reply


class Bench:
    """Where conversations are held: one dataset, one sandbox, and runs that were set up by their flags."""

    def __init__(self, dataset: Path, folder: Path, sandbox: Sandbox | None = None) -> None:
        self.dataset, self.folder, self.sandbox = dataset, folder, sandbox
        self.sources, self.executors = Sources(), Executors()
        self._server = ScriptedTeacher(self._answer)
        self._served: Sequence[Body] = ()
        self._runs: dict[tuple[str, ...], Run] = {}
        self._num_folders = 0
        self._folders: list[RunFolder] = []

    def __enter__(self) -> Bench:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()
        self.executors.__exit__()

    def run_with(self, *flags: str) -> Run:
        """A run with these flags, into a new folder."""
        if flags not in self._runs:
            parser = argparse.ArgumentParser()
            add_flags(parser, RunFlags())
            path = self._new_folder()
            given = ["--dataset_path", str(self.dataset), "--output_dir", str(path), *flags]
            namespace = parser.parse_args([*given, "--num_samples", "0", "--price_per_million", "1,2"])
            given_flags = read_flags(namespace, RunFlags())
            sandbox = self.sandbox if "python_code" in given_flags.tools.tools else None
            address = Address((self._server.api_base,), KEY)
            with what_is_asked(given_flags, quiet().say) as asked:
                source, _ = open_rows(given_flags.samples, TASKS[asked.task], quiet().say)
                plan, output = settle(given_flags, asked, source, address, quiet().say)
            self._runs[flags] = Run(plan, source, RunFolder(output, plan.facts()), sandbox)
        run = self._runs[flags]
        self._folders.append(RunFolder(Claim(self._new_folder()), run.plan.facts()))
        return replace(run, folder=self._folders[-1])

    def reopened(self, run: Run) -> Run:
        """The run with its folder read anew, as if it had been killed."""
        self._folders[self._folders.index(run.folder)] = folder = RunFolder(
            run.folder._claim, run.plan.facts()
        )
        return replace(run, folder=folder)

    def clear(self) -> None:
        """Close and remove the folders of all runs so far."""
        for folder in self._folders:
            folder.close()
            shutil.rmtree(folder.path)
        self._folders = []

    def _new_folder(self) -> Path:
        self._num_folders += 1
        path = self.folder / f"run-{self._num_folders}"
        path.mkdir()
        return path

    def _answer(self, request: dict[str, Any]) -> Any:
        if is_probe(request) or not self._served:
            return says("yes")
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        return self._served[min(turn, len(self._served) - 1)]

    def solve(
        self, run: Run, row: int, bodies: Sequence[Body], breaks: dict[int, Exception] | None = None
    ) -> tuple[Outcome[TraceSummary] | FolderError, Bodies]:
        """What becomes of a row whose teacher gives these bodies, and what was asked."""
        teacher = Bodies(run, bodies, breaks or {})
        return self._outcome(run, row, cast(Teacher, teacher)), teacher

    def solve_over_http(
        self, run: Run, row: int, bodies: Sequence[Body]
    ) -> Outcome[TraceSummary] | FolderError:
        """The same with a server and the client in between."""
        self._served = bodies
        settings = run.plan.teacher(KEY)
        settings = replace(settings, patience=replace(settings.patience, max_retries=0))
        budget = open_budget(run.plan.flags.budget, settings, run.folder.spending)
        slots, offered = Slots.unlimited(), run.plan.settings.prompt().native_tools
        with Teacher(settings, offered, slots, budget, run.plan.api_bases) as teacher:
            outcome = self._outcome(run, row, teacher)
        self._served = ()
        return outcome

    def _outcome(self, run: Run, row: int, teacher: Teacher) -> Outcome[TraceSummary] | FolderError:
        try:
            solver = RolloutSolver(run.plan, run.source, run.folder, teacher, run.sandbox)
            (outcome,) = run_samples([SampleId(row)], solver.solve, 1)
            return outcome
        except FolderError as error:
            return error

    def check_trace(self, path: Path, asked: Bodies, shown: bool = True) -> dict[str, Any]:
        """Assert that a trace can be read, shown, replayed and restored, and says what the teacher said."""
        stored = read_trace(path)
        assert stored.is_unedited
        assert [turn.reply for turn in stored.turns] == list(map(_as_stored, asked.replies))
        found = verify_trace(path, self.sources, self.executors)
        assert found.verdict is Verdict.MATCHED, found
        if shown:
            assert view(path, ViewFlags(verbose=True), quiet()) == 0
            assert view(path.parent, ViewFlags(batch=True, verbose=True), quiet()) == 0
        replayed = replay(stored, self.sources.of(stored), self.executors.of(stored))
        messages = [json.dumps(message).encode() for message in replayed.messages()]
        last = asked.requests[-1 if len(asked.requests) == len(asked.replies) else -2]
        assert messages[: len(last)] == last
        assert messages[len(last)].startswith(ASSISTANT)
        _check_portable([_strict_json(message) for message in last])
        trace: dict[str, Any] = json.loads(path.read_bytes())
        by_chance = any(
            "random" in call.get("code", "") for call in trace["tool_calls_log"]
        )  # needs the seed
        restores = trace["metadata"]["recipe_restores"] and not by_chance
        if restores and all(call["success"] for call in trace["tool_calls_log"]):
            restored, final = restore(path), replayed.scene.current
            assert picture_facts(restored) == picture_facts(final), (restored, final)
        return trace


def _strict_json(text: bytes | str) -> Any:
    """The value of a JSON text, without what only Python takes for JSON."""
    value = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates
    return value


def _check_portable(messages: list[Any]) -> None:
    """Assert that any server takes the messages: each call has an id of its own and is answered, in order."""
    for number, message in enumerate(messages, start=1):
        calls = message.get("tool_calls", [])
        ids = [call["id"] for call in calls]
        assert len(set(ids)) == len(ids) and all(isinstance(call_id, str) and call_id for call_id in ids)
        for call in calls:
            assert isinstance(_strict_json(call["function"]["arguments"]), dict)
            assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", call["function"]["name"])
        answers, following = messages[number : number + len(ids)], messages[number + len(ids) :]
        assert [answer.get("tool_call_id") for answer in answers] == ids
        assert all(isinstance(answer["content"], str) for answer in answers)
        if message["role"] == "assistant":
            assert calls or isinstance(message["content"], str)
            assert [other["role"] for other in following[:1]] in ([], ["user"], ["assistant"])


def restore(path: Path) -> Image.Image:
    """The final picture by the restore recipe as the README writes it."""
    assert RECIPE is not None
    scope: dict[str, Any] = {"json": json, "datasets": datasets}
    with redirect_stdout(io.StringIO()):
        exec(RECIPE[1].replace("'trace_00000.json'", repr(str(path))), scope)
    picture: Image.Image = scope["image"]
    return picture


def _as_stored(reply: Reply) -> Reply:
    """A reply as a trace keeps it: why a call could not be read is told in the call's message alone."""
    return replace(reply, calls=tuple(replace(call, problem=None) for call in reply.calls))


def read_figures(summary: TraceSummary) -> dict[str, Any]:
    """What a summary has in common with one that is read from the trace: all that every trace says."""
    names = [item.name for item in fields(summary) if item.default is MISSING]
    return {name: getattr(summary, name) for name in names}
