"""Traces in the terminal: one trace turn by turn, a folder as a list, a batch as totals."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from distil.commands.flags import ViewFlags
from distil.errors import TraceError, UsageError
from distil.index.index import TraceIndex
from distil.index.query import Query
from distil.messages.tags import split_thinking
from distil.records import Json, Protocol
from distil.store.summary import (
    Totals,
    TraceSummary,
    call_name,
    call_succeeded,
    mapping_of,
    metrics_of,
    read_summary,
    trace_answer,
    trace_calls,
    trace_truth,
    trace_turns,
    turn_text,
)
from distil.store.trace_file import find_trace_files, load_json
from distil.store.trace_settings import teacher_lines
from distil.tasks import task_to_show
from distil.tasks.base import Metric
from distil.tasks.rewards import reward_fields
from distil.terminal.bar import telling_bar
from distil.terminal.summary import plain_table, tokens_text, totals_table
from distil.terminal.terminal import Terminal, find_protocol
from distil.terminal.words import printable, short

if TYPE_CHECKING:
    from distil.terminal.pictures import ShownPictures

_OWN_CALL_KEYS = ("tool_arguments", "arguments", "code")


def view_all(flags: ViewFlags, terminal: Terminal) -> int:
    """Show trace files and folders of them, with pictures where the terminal takes any, as `view` does."""
    protocol = Protocol.NONE
    if not flags.json:
        protocol = find_protocol(flags.pictures, os.environ, sys.stdout.isatty())
    if protocol is Protocol.NONE:
        return max(view(path, flags, terminal) for path in flags.paths)
    from distil.terminal.pictures import ShownPictures  # noqa: PLC0415

    with ShownPictures(protocol, terminal, flags.dataset_path) as pictures:
        return max(view(path, flags, terminal, pictures) for path in flags.paths)


def view(path: Path, flags: ViewFlags, terminal: Terminal, pictures: ShownPictures | None = None) -> int:
    """Show a trace file or a folder of them; returns 1 where one is broken or of no known task, else 0.

    Raises UsageError where there is nothing to show.
    """
    if path.is_file():
        if flags.where:
            raise UsageError("--where chooses from a folder of traces; this is one trace")
        return _view_trace(path, flags.verbose, terminal, pictures)
    if not path.is_dir():
        raise UsageError(f"there is no file or folder {path}")
    files = find_trace_files(path)
    if not files:
        raise UsageError(f"{path} holds no trace_*.json")
    facts, broken = _load_facts(_chosen(path, flags.where) if flags.where else files)
    is_listed = flags.verbose or not flags.batch
    if terminal.gives_json:
        terminal.give(
            {
                "folder": str(path),
                "totals": _totals_document(_added_up(facts.values())),
                "traces": [_trace_document(*item) for item in facts.items()] if is_listed else [],
                "broken": broken,
            }
        )
        return 1 if broken else 0
    for message in broken:
        terminal.say(f"broken: {message}", "red")
    if is_listed:
        terminal.show(_list_table(list(facts.values())))
    if flags.batch and facts:
        terminal.show(totals_table(_added_up(facts.values()), title=str(path)))
        if pictures is not None:
            pictures.show_sheet(list(facts.items()))
    elif not flags.batch:
        terminal.say(f"{len(facts)} traces. One in full: give its file. Totals: --batch")
    return 1 if broken else 0


def _view_trace(path: Path, verbose: bool, terminal: Terminal, pictures: ShownPictures | None) -> int:
    trace = load_json(path)
    task, note = task_to_show(trace)
    if note is not None:
        terminal.say(f"{path}: {note}", "red")
    facts = read_summary(trace, task)
    if terminal.gives_json:
        own = {"truth": dict(trace_truth(trace)), "answer": dict(trace_answer(trace))}
        terminal.give(_trace_document(path, facts) | own)
    else:
        show = partial(pictures.show, path) if pictures else lambda _: None
        _show_trace(trace, facts, verbose, terminal, show)
    return 0 if note is None else 1


def _chosen(folder: Path, where: str) -> list[Path]:
    """The trace files that an expression is true of; raises UsageError where there is none."""
    with telling_bar(desc="index", delay=1) as tell_progress:
        index = TraceIndex.open([folder], tell_progress)
    with closing(index):
        files = [folder / str(name) for (name,) in index.rows(Query(where=where), ["file"])]
    if not files:
        raise UsageError(f"{folder} holds no trace of which this is true: {where}")
    return files


def _trace_document(path: Path, facts: TraceSummary) -> dict[str, Json]:
    """One trace's figures."""
    return {
        "path": str(path),
        **facts.sample_id.as_json(),
        "task": facts.task,
        "parse_success": facts.parse_success,
        "score": facts.score,
        "metrics": dict(facts.metrics),
        "turns": facts.turns,
        "stop_reason": facts.stop_reason,
        "calls": dict(facts.calls),
        "failed_calls": dict(facts.failed_calls),
        "prompt_tokens": facts.prompt_tokens,
        "completion_tokens": facts.completion_tokens,
    }


def _totals_document(totals: Totals) -> dict[str, Json]:
    """The totals over traces; means are null where there is none."""
    has_traces = totals.num_traces > 0
    return {
        "num_traces": totals.num_traces,
        "num_answers": totals.num_answers,
        "mean_score": totals.mean_score if has_traces else None,
        "metrics": {
            name: {"mean": statistics.fmean(values), "median": statistics.median(values)}
            for name, values in totals.values.items()
        },
        "mean_turns": totals.mean_turns if has_traces else None,
        "stop_reasons": dict(totals.stop_reasons),
        "num_with_calls": totals.num_with_calls,
        "calls": dict(totals.calls),
        "failed_calls": dict(totals.failed_calls),
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
    }


def _load_facts(files: Sequence[Path]) -> tuple[dict[Path, TraceSummary], list[str]]:
    """The figures of each trace, of a task that nobody has as stated; and what is wrong with which."""
    facts, broken = {}, []
    unknown: dict[str, list[Path]] = {}  # by what is said of their tasks
    for file in tqdm(files, unit="trace", leave=False, disable=len(files) < 2000):
        try:
            trace = load_json(file)
        except TraceError as error:
            broken.append(str(error))
            continue
        task, note = task_to_show(trace)
        facts[file] = read_summary(trace, task)
        if note is not None:
            unknown.setdefault(note, []).append(file)
    for note, those in unknown.items():
        more = f" and {len(those) - 1} more" if those[1:] else ""
        broken.append(f"{those[0]}{more}: {note}")
    return facts, broken


def _added_up(facts: Iterable[TraceSummary]) -> Totals:
    totals = Totals()
    for item in facts:
        totals.add(item)
    return totals


def _list_table(facts: Sequence[TraceSummary]) -> Table:
    table = Table(box=None, pad_edge=False)
    metrics = metrics_of(item.task for item in facts)
    headings = [metric.heading for metric in metrics]
    for name in ("sample", *headings, "score", "turns", "calls", "failed", "ended by"):
        table.add_column(name, justify="left" if name == "ended by" else "right")
    for item in facts:
        table.add_row(
            str(item.sample_id),
            *(_metric_cell(metric, item) for metric in metrics),
            f"{item.score:.3f}",
            str(item.turns),
            str(sum(item.calls.values())),
            str(sum(item.failed_calls.values())),
            item.stop_reason or "not stated",
        )
    return table


def _metric_cell(metric: Metric, facts: TraceSummary) -> str:
    if metric.name not in facts.metrics:  # another task's
        return ""
    return metric.cell.format(facts.metrics[metric.name]) if facts.parse_success else "no answer"


def _show_trace(
    trace: Mapping[str, Json],
    facts: TraceSummary,
    verbose: bool,
    terminal: Terminal,
    show_picture: Callable[[int], None],
) -> None:
    """A trace turn by turn; `show_picture` gets 0 for the photo, or a call's number, from 1."""
    table = _sample_table(trace, facts)
    terminal.show(Panel(table, title=f"sample {facts.sample_id}", title_align="left"))
    show_picture(0)
    calls = trace_calls(trace)
    for number, turn in enumerate(trace_turns(trace), start=1):
        terminal.show(_turn_panel(turn, number, calls, verbose))
        for made in _pictures_of(turn, number, calls):
            show_picture(made)
    terminal.show(Panel(_result_table(trace, facts), title="result", title_align="left"))
    if verbose and "settings" in trace:
        settings = printable(json.dumps(trace["settings"], ensure_ascii=False, indent=2))
        syntax = Syntax(settings, "json", word_wrap=True)
        terminal.show(Panel(syntax, title="settings", title_align="left"))


def _sample_table(trace: Mapping[str, Json], facts: TraceSummary) -> Table:
    table = plain_table()
    table.add_row("dataset", _text(f"{trace.get('dataset_path', 'not stated')}, row {facts.sample_id.index}"))
    image, settings = mapping_of(trace.get("image")), mapping_of(trace.get("settings"))
    if image:
        form = f"{image.get('mode')} {image.get('file_format')}"
        sent = _size_text(mapping_of(image.get("sent")))
        table.add_row("photo", _text(f"{_size_text(image)} {form}, sent as {sent}"))
    for heading, line in zip(("teacher", ""), teacher_lines(settings), strict=False):
        table.add_row(heading, _text(line))
    for name, value in mapping_of(trace.get("sample_data")).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        table.add_row(_text(name), _text(short(text)))
    return table


def _pictures_of(turn: Mapping[str, Json], number: int, calls: Sequence[Mapping[str, Json]]) -> Iterator[int]:
    """The numbers of a turn's calls that made a picture."""
    for position, call in enumerate(calls, start=1):
        if call.get("turn") == _turn_number(turn, number) and call_succeeded(call):
            yield position


def _turn_number(turn: Mapping[str, Json], position: int) -> int:
    stated = turn.get("turn")
    return stated if isinstance(stated, int) else position


def _turn_panel(
    turn: Mapping[str, Json], number: int, calls: Sequence[Mapping[str, Json]], verbose: bool
) -> RenderableType:
    number = _turn_number(turn, number)
    thinking, text = split_thinking(turn_text(turn))
    reasoning = [turn.get("reasoning") or thinking]
    reasoning += [f"{place}: {other}" for place, other in mapping_of(turn.get("other_reasoning")).items()]
    shorten = (lambda value: value) if verbose else short
    parts: list[RenderableType] = [
        _text(shorten(str(thought).strip()), style="dim italic") for thought in reasoning if thought
    ]
    if text.strip():
        parts.append(_text(shorten(text.strip())))
    parts += [_call_lines(call, verbose) for call in calls if call.get("turn") == number]
    not_run = turn.get("calls_not_run")
    parts += [_call_not_run_line(call) for call in not_run] if isinstance(not_run, list) else []
    title = f"turn {number}"
    if turn.get("finish_reason"):
        title += f", {turn['finish_reason']}"
    return Panel(
        Group(*parts), title=title, title_align="left", subtitle=_usage_text(turn), subtitle_align="right"
    )


def _usage_text(turn: Mapping[str, Json]) -> str | None:
    usage = mapping_of(turn.get("usage"))
    if not usage:
        return None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    prompt, completion = (count if isinstance(count, int) else None for count in counts)
    return f"tokens: {tokens_text(prompt, completion)}"


def _call_lines(call: Mapping[str, Json], verbose: bool) -> RenderableType:
    succeeded = call_succeeded(call)
    code = call.get("code")
    resolved = next((call[key] for key in _OWN_CALL_KEYS if key in call and key != "code"), None)
    head = Text.assemble(
        ("→ " if succeeded else "✗ ", "green" if succeeded else "red"), (call_name(call), "bold")
    )
    if resolved is not None and code is None:
        head.append_text(_text(f" {json.dumps(resolved, ensure_ascii=False)}"))
    raw = call.get("raw_arguments")
    lines: list[RenderableType] = [head]
    if code is not None:
        lines.append(Padding(Syntax(printable(str(code)), "python", word_wrap=True), (0, 0, 0, 4)))
    elif raw is not None and raw != resolved:
        lines.append(_text(f"    as written: {short(json.dumps(raw, ensure_ascii=False))}", style="dim"))
    if call.get("clamped"):
        lines.append(Text("    the box was cut to the picture", style="yellow"))
    if call.get("stdout"):
        lines.append(_text("    printed: " + short(str(call["stdout"]).rstrip()), style="dim"))
    if call.get("message") and (verbose or not succeeded):
        lines.append(_text(f"    {short(str(call['message']))}", style="dim" if succeeded else "red"))
    result = call.get("result")
    if isinstance(result, dict):
        text = f"    gave {_size_text(result)} {result.get('mode')}"
        lines.append(Text(f"{text}, pixels {str(result.get('pixel_sha256'))[:12]}", style="dim"))
    return Group(*lines)


def _call_not_run_line(call: Json) -> Text:
    arguments = json.dumps(mapping_of(call).get("arguments"), ensure_ascii=False)
    return _text(f"✗ not run: {call_name(mapping_of(call))} {short(arguments)}", style="dim")


def _result_table(trace: Mapping[str, Json], facts: TraceSummary) -> Table:
    table, (task, _) = plain_table(), task_to_show(trace)
    table.add_row("truth", _text(task.text(trace_truth(trace))))
    answer = task.text(trace_answer(trace))
    table.add_row("answer", _text(answer if facts.parse_success else "none that can be read"))
    if facts.parse_success:
        for metric in task.metrics:
            table.add_row(metric.label, metric.text.format(facts.metrics[metric.name]))
    table.add_row("score", task.reward_text(facts.score))
    for name, value in reward_fields(mapping_of(trace.get("reward_score"))).items():
        table.add_row(_text(name), _text(short(value if isinstance(value, str) else json.dumps(value))))
    table.add_row("turns", f"{facts.turns}, ended by {facts.stop_reason or 'a reason not stated'}")
    failed = sum(facts.failed_calls.values())
    table.add_row("tool calls", f"{sum(facts.calls.values())}, {failed} failed")
    table.add_row("tokens", tokens_text(facts.prompt_tokens, facts.completion_tokens))
    return table


def _size_text(picture: Mapping[str, Json]) -> str:
    return f"{picture.get('width_px')}×{picture.get('height_px')}"


def _text(text: str, style: str = "") -> Text:
    """Text of a teacher or a dataset: neither markup nor control characters of it reach the terminal."""
    return Text(printable(text), style=style)
