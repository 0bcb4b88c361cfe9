"""Solves one sample; and what a run works with, opened from its flags or its plan: rows, sandbox, teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from distil.commands.flags import BudgetFlags, CodeFlags, SampleFlags, ToolFlags
from distil.embedded.launch import DEFAULT_KIND, NAMES_OF_DATA, drawn_data
from distil.errors import RunHalted, UsageError
from distil.lazy_picture import PIXEL_WORK, memory_bytes
from distil.process import trim_memory
from distil.records import Json, Reply, SampleId, ToolMode
from distil.rollout import Conversation, RolloutSettings, run_conversation
from distil.run.finished import summary_of
from distil.run.plan import Plan, code_limits
from distil.run.suspicion import Tally
from distil.sandbox.sandbox import Sandbox
from distil.source.rows import Source, open_source
from distil.source.saved import IMAGE_COLUMN
from distil.spending.budget import Budget, Measure, calls_of, cost_of, tokens_of
from distil.spending.prices import find_prices
from distil.store.claim import Claim
from distil.store.folder import WITHOUT_TOOLS, RunFolder
from distil.store.spending import SpendingFile
from distil.store.summary import TraceSummary
from distil.store.trace_settings import TraceSettings
from distil.tasks import TASKS
from distil.tasks.base import Task
from distil.tasks.rewards import reward_error
from distil.teacher.client import Teacher, TeacherSettings
from distil.teacher.models import AnsweredModels
from distil.teacher.slots import Slots
from distil.tools.python_code import Executor
from distil.tools.toolbox import load_tools

Accept = Callable[[Mapping[str, Json]], bool]  # a finished trace to whether it is accepted


class RolloutSolver:
    """Solves one row at a time, in any thread, and writes its trace."""

    def __init__(
        self,
        plan: Plan,
        source: Source,
        folder: RunFolder,
        teacher: Teacher,
        sandbox: Sandbox | None = None,
    ) -> None:
        self.plan, self.source, self.folder = plan, source, folder
        self.teacher, self.sandbox = teacher, sandbox
        self.accept: Accept | None = None  # set where it is asked which traces are accepted
        self.rollout = rollout_settings(plan.settings, sandbox)
        self.models = AnsweredModels()
        settings, is_blind = plan.settings, plan.seems_blind
        self.tally = Tally(
            settings.max_tokens, settings.max_turns, is_blind, settings.coordinates, settings.crop_from
        )

    def solve(self, sample_id: SampleId) -> TraceSummary:
        """Load the row, run its rollout, write its trace; raises RunHalted where that has no point.

        Raises BudgetExceeded where what is left of a limit does not finish it.
        """
        num_paid = self.folder.journal.num_turns(sample_id)
        with self.teacher.budget.sample(num_paid, self.plan.settings.max_turns):
            if self.halt is not None:
                raise RunHalted(self.halt)
            return self._solved(sample_id)

    def _solved(self, sample_id: SampleId) -> TraceSummary:
        started = time.perf_counter()
        sample_seconds = self.plan.flags.teacher.sample_timeout_seconds
        offers_tools = bool(self.plan.settings.tool_schemas)
        with self.teacher.asking(sample_seconds, offers_tools=offers_tools) as teacher:
            conversation = self._opening(sample_id)
            journal = self.folder.journal.of(sample_id, conversation.sample.picture.file_sha256)
            is_resumed = journal.is_resumed
            ask_or_recall = journal.journaled(teacher.ask)

            def ask_noted(messages: Sequence[bytes], seed: int) -> Reply:
                reply = ask_or_recall(messages, seed)
                self.models.note(reply.model)
                return reply

            rollout = run_conversation(conversation, ask_noted)
        trace = self.folder.write_trace(rollout)
        seconds = round(time.perf_counter() - started, 4)
        self.folder.write_timing(sample_id, seconds, teacher.turn_seconds)
        summary = summary_of(rollout, self.rollout, self.teacher.budget.cost_usd)
        is_accepted = None if self.accept is None else self.accept(trace)
        summary = replace(summary, seconds=seconds, is_resumed=is_resumed, is_accepted=is_accepted)
        self.tally.add(summary, reward_error(trace["reward_score"]))
        return summary

    def _opening(self, sample_id: SampleId) -> Conversation:
        """The sample's first messages; its photo is decoded once for them, and so checked before it costs."""
        decode = self.source.read(sample_id)
        with PIXEL_WORK:
            sample = decode(None)
            trim_memory(memory_bytes(sample.picture.image))
            return Conversation.start(sample, self.rollout)

    def warnings(self) -> list[str]:
        """All that is suspicious about the run, a line each."""
        found = (
            self.plan.sight_warning,
            self.models.warning(),
            self.folder.journal.warning(),
            *self.tally.warnings(),
        )
        return [warning for warning in found if warning is not None]

    @property
    def halt(self) -> str | None:
        """Why no further sample should be started, or None."""
        return None if self.plan.flags.samples.keep_going else self.tally.halt

    def drain(self) -> float:
        """Ask nothing more, at once; returns for how many seconds what is in flight is waited for."""
        seconds = self.plan.flags.teacher.grace_seconds
        self.teacher.drain(seconds)
        return seconds

    def without_tools(self) -> RolloutSolver:
        """What asks each row once more in one turn without tools: beside it scores say what tools gain.

        These traces have other settings, so they lie in a folder of their own within the run's, which is such
        a folder as a run without tools makes: it is verified, shown and gone on with like any other. What
        they take is counted with all else in the run's folder. Raises UsageError where that cannot be
        written, or another run writes to it.
        """
        settings = replace(
            self.plan.settings,
            tool_mode=ToolMode.NONE,
            max_turns=1,
            states_size=False,
            tool_schemas=(),
            keep_pictures=False,
            code=None,
        )
        claim = Claim(self.folder.path / WITHOUT_TOOLS, spending=self.folder.spending)
        # No answer without tools is nothing to stop for: it is what they are asked for.
        samples = replace(self.plan.flags.samples, keep_going=True)
        flags = replace(self.plan.flags, samples=samples)
        plan = replace(self.plan, flags=flags, settings=settings, output_dir=str(claim.path))
        return RolloutSolver(plan, self.source, RunFolder(claim, plan.facts(), plan.on_change), self.teacher)


@contextmanager
def open_sandbox(tools: ToolFlags, code: CodeFlags, tell: Callable[[str], None]) -> Iterator[Sandbox | None]:
    """The started sandbox where the code tool is offered; raises SandboxUnavailable, UsageError."""
    if not any(tool.runs_code for tool in load_tools(tools.tools)):
        yield None
        return
    limits = code_limits(code)
    bounds = (limits.timeout_seconds, limits.memory_bytes, code.sandbox_workers)
    with Sandbox(*bounds, unsafe=limits.unsafe_exec) as sandbox:
        sandbox.start()
        tell(sandbox.layers.text)
        yield sandbox


def dataset_path(flags: SampleFlags, task: Task) -> str:
    """Where the dataset is opened from: without one, what is drawn for the task; raises UsageError."""
    if flags.dataset_path:
        return flags.dataset_path
    if task.drawn_data is None:
        raise UsageError(f"the task {task.name} has no data of its own: say which by --dataset_path")
    return drawn_data(task.drawn_data)


def open_rows(flags: SampleFlags, task: Task, tell: Callable[[str], None]) -> tuple[Source, Sequence[int]]:
    """The dataset and the rows that are selected; raises SourceError or UsageError."""
    _refuse_columns_of_other_tasks(flags, task)
    source = open_source(dataset_path(flags, task), tell, _asked_columns(flags, (IMAGE_COLUMN,)))
    source.choose(task.choose_columns(source.columns, _asked_columns(flags, task.fields)))
    _tell_guesses(source, _asked_columns(flags, (IMAGE_COLUMN, *task.fields)), tell)
    among = _rows_meant(flags, source, tell)
    if flags.target_acc is not None:
        return source, source.select("random", 0, flags.seed, among)  # any of them may be drawn
    indices = source.select(flags.order, flags.num_samples, flags.seed, among)
    if among is not None and flags.num_samples > len(among):
        tell("All of these are taken.")
    elif flags.num_samples > len(source):
        tell(f"The dataset has {len(source)} rows: all of them are taken.")
        if flags.dataset_path is None:
            kind = "" if task.drawn_data == DEFAULT_KIND else f" --kind {task.drawn_data}"
            tell(
                f"More {NAMES_OF_DATA[task.drawn_data or DEFAULT_KIND]}: "
                f"distil signs{kind} --output_dir DIR --num_rows N"
            )
    return source, indices


def _rows_meant(flags: SampleFlags, source: Source, tell: Callable[[str], None]) -> Sequence[int] | None:
    """The rows that `--where_row` leaves to choose from, None where it says nothing; raises UsageError."""
    if flags.where_row is None:
        return None
    from distil.run.conditions import rows_that_meet  # noqa: PLC0415 - SQLite, which few runs need

    rows = rows_that_meet(flags.where_row, source.cells)
    tell(f"--where_row: {len(rows):,} of the dataset's {len(source):,} rows")
    return rows


def _refuse_columns_of_other_tasks(flags: SampleFlags, task: Task) -> None:
    known = {field for other in TASKS.values() for field in other.fields}
    for field in _asked_columns(flags, sorted(known.difference(task.fields))):
        raise UsageError(
            f"--{field}_column says nothing to the task {task.name}: leave it out, or see --task"
        )


def _asked_columns(flags: SampleFlags, fields: Sequence[str]) -> dict[str, str]:
    """The columns that the user named, by what they are to be taken for."""
    asked = {field: getattr(flags, f"{field}_column", None) for field in fields}
    return {field: column for field, column in asked.items() if column is not None}


def _tell_guesses(source: Source, asked: Mapping[str, str], tell: Callable[[str], None]) -> None:
    guessed = {field: column for field, column in source.chosen.items() if field not in asked}
    if guessed:
        texts = [f"{field} is {column!r}" for field, column in guessed.items()]
        flags = ", ".join(f"--{field}_column" for field in guessed)
        tell(f"Columns, guessed by name and type: {', '.join(texts)} (others: {flags})")


def open_budget(flags: BudgetFlags, teacher: TeacherSettings, spending: SpendingFile) -> Budget:
    """The budget of a folder; raises UsageError for a cost limit without prices."""
    prices = find_prices(flags.price_per_million, teacher.model, teacher.api_base)
    limits: dict[Measure, float | None] = {
        calls_of: flags.max_calls,
        tokens_of: flags.max_total_tokens,
        cost_of: flags.max_cost_usd,
    }
    budget = Budget(teacher.max_tokens, prices, limits, spending.record)
    budget.read(spending.entries())
    return budget


def open_teacher(plan: Plan, teacher: TeacherSettings, spending: SpendingFile) -> Teacher:
    """The teacher of a plan, asked with `plan.teacher(key)`; a context manager."""
    slots = Slots(plan.flags.samples.max_workers, plan.flags.samples.fixed_workers)
    budget = open_budget(plan.flags.budget, teacher, spending)
    return Teacher(teacher, plan.settings.prompt().native_tools, slots, budget, plan.api_bases)


def rollout_settings(settings: TraceSettings, executor: Executor | None) -> RolloutSettings:
    """What every rollout shares; code runs in `executor`."""
    return RolloutSettings(
        TASKS[settings.task],
        settings.prompt(),
        settings.toolbox(executor),
        settings.max_turns,
        settings.seed,
        settings.keep_pictures,
    )
