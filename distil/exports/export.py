"""Picked traces → a folder that a trainer reads: replayed by many processes, written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from distil import __version__
from distil.errors import SourceError, ToolError, TraceError, UsageError
from distil.exports.attribution import is_attribution
from distil.exports.card import CARD, card_json, card_text, read_contents
from distil.exports.conversation import Conversation, check_roles, conversation_of
from distil.exports.files import PICTURES, file_sha256
from distil.exports.form import Facts, Form, Target
from distil.exports.formats import FORMATS
from distil.exports.options import ExportOptions
from distil.exports.pictures import shown
from distil.exports.plots import FOLDER as PLOTS
from distil.exports.plots import NO_PLOTS, can_plot, draw_plots
from distil.exports.selection import TRAIN, Pick, Selected, Step
from distil.exports.to_hf import card_head
from distil.exports.tokens import Lengths, row_tokens
from distil.interrupts import interruptible
from distil.records import ExportFormat, Frame, Json, StopReason, Student, ToolMode
from distil.replay.processes import each_trace
from distil.replay.replay import Executors, Sources
from distil.store.atomic import folder_errors, json_bytes
from distil.store.trace_file import StoredTrace, read_trace, trace_name

MANIFEST = "export.json"
FORMAT = "distil-export/1"
_MIN_PIXEL_FRAME_PX = (
    100_000  # the students' processors make pictures of less than 65,536 larger, and boxes would not follow
)
NOTHING_TO_TRAIN = "nothing in it is left to train"


@dataclass(frozen=True, slots=True)
class Refused:
    """A trace that must not be exported: it is edited, or its pictures are not what the teacher saw."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A sound trace that is left out."""

    path: Path
    reason: str


Found = Conversation | Refused | LeftOut


@dataclass
class Report:
    """What became of the picked traces."""

    num_picked: int = 0
    num_rows: Counter[str] = field(default_factory=Counter)  # by split
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    exported: list[Path] = field(default_factory=list)
    rows_sha256: Any = field(default_factory=hashlib.sha256)  # of which traces they are, in their order
    num_pictures: int = 0
    num_turns: int = 0
    num_masked_turns: int = 0
    lengths: Lengths = field(default_factory=Lengths)

    @property
    def num_refused(self) -> int:
        return self.refused.total()

    def as_json(self) -> dict[str, Json]:
        """As the manifest has it."""
        return {
            "picked": self.num_picked,
            "rows": dict(sorted(self.num_rows.items())),
            "left_out": dict(sorted(self.left_out.items())),
            "refused": self.num_refused,
            "refused_by_reason": dict(sorted(self.refused.items())),
            "pictures": self.num_pictures,
            "turns": self.num_turns,
            "masked_turns": self.num_masked_turns,
            "tokens": self.lengths.as_json(),
        }


@dataclass(frozen=True)
class Job:
    """How an export is done; `max_workers` and `overwrites` show in nothing that it writes."""

    out: Path
    command: str  # that makes the same export again
    dataset_path: str | None = None  # where the dataset is now
    limit: int | None = None  # of rows
    max_workers: int = 1
    overwrites: bool = False


def export_traces(
    selected: Selected,
    options: ExportOptions,
    job: Job,
    look: Callable[[Found], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Write the rows of picked traces, in their order, and what a trainer needs beside them.

    `look` gets what became of each trace, `tell` a line where a process was ended from outside. Raises
    UsageError where the options do not go together, something else is at `job.out`, or no row is left.
    """
    _check_options(options)
    _check_free(job)
    options = replace(options, has_attribution=_says_whose(selected))
    work = partial(conversation_at, options=options)
    with interruptible(lambda: None) as interruption, _whole_or_nothing(job.out.absolute()) as folder:

        def look_at(found: Iterable[Found]) -> Iterator[Found]:
            for result in found:
                interruption.check()
                look(result)
                yield result

        target = Target(folder, job.out.absolute())
        form = FORMATS[options.format](target, options)
        picks = selected.picks
        traces = each_trace(work, [pick.path for pick in picks], job.max_workers, job.dataset_path, tell)
        report = Report(left_out=Counter(selected.left_out))
        with closing(traces) as found, closing(form):
            _add_rows(report, form, zip(picks, look_at(found), strict=False), options, job.limit)
        if not report.num_rows[TRAIN]:
            raise UsageError(f"no trace is left to export: {_why_none(report)}")
        text = _write_beside(form, target, job, options, report)
        _write_card(text, target, job, selected, report)
        (folder / MANIFEST).write_bytes(json_bytes(_manifest(options, job, report, folder)))
        _check_free(job)  # another export may have come to the same place in the meantime
    return report


def _says_whose(selected: Selected) -> bool:
    return any(column.source == "row" and is_attribution(column.heading) for column in selected.columns)


def _check_options(options: ExportOptions) -> None:
    form = FORMATS[options.format]
    if options.call_form not in form.call_forms:
        raise UsageError(
            f"--call_form {options.call_form.value}: the format {options.format.value} has no such form"
        )
    is_native, is_25 = options.call_form is ToolMode.NATIVE, options.student is Student.QWEN25_VL
    if is_native and is_25 and options.format is ExportFormat.VERL:
        raise UsageError(
            "--call_form native: the chat template of Qwen2.5-VL, which verl uses, leaves native calls out"
        )
    limit = options.image_max_pixels
    if options.coordinates is Frame.PIXEL and limit is not None and limit < _MIN_PIXEL_FRAME_PX:
        raise UsageError(
            f"--image_max_pixels {limit} with --coordinates pixel: the student makes pictures of less than "
            f"{_MIN_PIXEL_FRAME_PX} pixels larger, and the boxes would be wrong"
        )


def _add_rows(
    report: Report,
    form: Form,
    found: Iterable[tuple[Pick, Found]],
    options: ExportOptions,
    limit: int | None,
) -> None:
    for pick, result in found:
        report.num_picked += 1
        if isinstance(result, Refused):
            report.refused[_general(result.reason)] += 1
        elif isinstance(result, LeftOut):
            report.left_out[result.reason] += 1
        else:
            form.add(result, pick.split)
            _count(report, result, pick.split, options)
            report.exported.append(pick.path)
            report.rows_sha256.update(f"{pick.split} {result.origin['trace_sha256']}\n".encode())
            if len(report.exported) == limit:
                break


def _general(reason: str) -> str:
    """A reason without what is of one trace or of one machine alone."""
    return re.sub(r"\b\d+\b", "N", re.sub(r"(?<![\w.])/[^\s:;,]+", "PATH", reason))


def _write_beside(form: Form, target: Target, job: Job, options: ExportOptions, report: Report) -> str:
    """What a trainer needs beside the rows; the text that says how it is started."""
    facts = Facts(dict(sorted(report.num_rows.items())), report.lengths.to_set, report.num_masked_turns > 0)
    head = card_head(facts) if options.format is ExportFormat.HF else ""
    return head + _readme(job, options, report, form.guide(facts))


def _write_card(text: str, target: Target, job: Job, selected: Selected, report: Report) -> None:
    """The data card: behind the text that says how to start, and as JSON with the hashes of all else."""
    contents = read_contents(selected, report.exported)
    name = "replayed" if job.limit is None else f"replayed, --limit {job.limit}"
    written = Step(name, len(selected.picks), len(report.exported))
    selected = replace(selected, steps=(*selected.steps, written))
    card = card_json(selected, contents, report.lengths.counts, report.as_json(), job.command)
    card["selection_sha256"] = report.rows_sha256.hexdigest()
    pictures = draw_plots(card, target.folder) if can_plot() else {}
    text += "\n" + card_text(card, pictures, "" if can_plot() else NO_PLOTS)
    (target.folder / "README.md").write_text(text, encoding="utf-8")
    card["files"] = _files_sha256(target.folder)
    (target.folder / CARD).write_bytes(json_bytes(card))


def _count(report: Report, conversation: Conversation, split: str, options: ExportOptions) -> None:
    report.num_rows[split] += 1
    report.num_pictures += len(conversation.pictures())
    report.num_turns += len(conversation.turns)
    report.num_masked_turns += sum(not turn.is_trained for turn in conversation.turns)
    report.lengths.counts.append(row_tokens(conversation.messages(), options))


def conversation_at(path: Path, sources: Sources, executors: Executors, options: ExportOptions) -> Found:
    """The conversation of one trace file, or why there is none."""
    try:
        trace = read_trace(path)
        reason = None if options.takes_all else _reason_to_leave_out(trace)
        if reason is not None:
            return LeftOut(path, reason)
        return _conversation(trace, sources, executors, options)
    except (TraceError, SourceError, ToolError) as error:
        return Refused(path, str(error))
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        return Refused(path, f"a field cannot be read: {error!r}")


def _conversation(
    trace: StoredTrace, sources: Sources, executors: Executors, options: ExportOptions
) -> Found:
    if not trace.is_unedited:
        raise TraceError("its content does not fit its integrity_sha256: it was edited")
    name = trace_name(trace.sample_id)
    if trace.path.name != name:
        raise TraceError(f"it is of row {trace.sample_id}, whose file is {name}")
    pictures = shown(trace, sources.of(trace), executors.of(trace), options)
    conversation = conversation_of(trace, pictures, options)
    if conversation is None:
        return LeftOut(trace.path, NOTHING_TO_TRAIN)
    check_roles(conversation.messages())
    return conversation


def _reason_to_leave_out(trace: StoredTrace) -> str | None:
    """Why a trace is no example to learn from unless it is asked for; None for one that is."""
    metadata = trace.json["metadata"]
    if metadata["stop_reason"] != StopReason.ANSWERED:
        return f"it ended without an answer ({metadata['stop_reason']})"
    return None if metadata["parse_success"] else "its answer cannot be read"


def _why_none(report: Report) -> str:
    reasons = [f"{count} left out, {reason}" for reason, count in sorted(report.left_out.items())]
    return "; ".join([*reasons, *([f"{report.num_refused} refused"] if report.num_refused else [])])


def _readme(job: Job, options: ExportOptions, report: Report, guide: str) -> str:
    num_rows = ", ".join(f"{count:,} {split}" for split, count in sorted(report.num_rows.items()))
    tokens = report.lengths.as_json()
    return f"""\
# Traces for {options.format.value}

{num_rows} rows with {report.num_pictures:,} pictures, made by distil {__version__}:

```bash
{job.command}
```

A row has about {tokens["median"]:,} tokens, the longest {tokens["longest"]:,}, estimated rather too high:
the length to set is **{tokens["to_set"]:,}**. Boxes are {_frame_text(options)}.
`id` is the file of a row's trace, `trace_sha256` its `integrity_sha256`.

## Start

{guide}
"""


def _frame_text(options: ExportOptions) -> str:
    if options.coordinates is Frame.PIXEL:
        return "pixels of the pictures as they lie here"
    return "thousandths of a picture's width and height"


def _manifest(options: ExportOptions, job: Job, report: Report, folder: Path) -> dict[str, Json]:
    return {
        "format": FORMAT,
        "distil": __version__,
        "command": job.command,
        "options": options.as_json(),
        "counts": report.as_json(),
        "files": _files_sha256(folder),
    }


def _files_sha256(folder: Path) -> dict[str, Json]:
    """The hashes of the files but the pictures, whose names are their hashes."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for within in ("data", PLOTS):
        files += sorted(path for path in (folder / within).glob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _check_free(job: Job) -> None:
    """Raise UsageError where something is at the place that must stay."""
    if not job.out.exists() and not job.out.is_symlink():
        return
    if not job.overwrites:
        raise UsageError(f"--out {job.out} exists already; --overwrite replaces an export")
    written = None if job.out.is_symlink() else _written_into(job.out)
    if written is None:
        raise UsageError(f"--out {job.out} is no export of distil: it is not replaced")
    others = [path.name for path in job.out.iterdir() if path.name not in written and path.name[0] != "."]
    if others:
        raise UsageError(
            f"--out {job.out} holds {min(others)!r}, which no export has written: it is not replaced"
        )


def _written_into(folder: Path) -> set[str] | None:
    """What an export has put into its folder, and Python beside it; None for a folder that is no export."""
    try:
        manifest: Mapping[str, Json] = json.loads((folder / MANIFEST).read_bytes())
        files = [Path(name).parts[0] for name in manifest["files"]] if manifest["format"] == FORMAT else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return None if files is None else {MANIFEST, PICTURES, "__pycache__", *files}


@contextlib.contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into, which is at `out` afterwards; where the block raises, nothing has changed."""
    folder, replaced = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    with folder_errors(out):
        _remove_left_behind(out)
        folder.mkdir(parents=True)
    try:
        with folder_errors(out):
            yield folder
            if out.exists():
                out.rename(replaced)
            folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _remove_left_behind(out: Path) -> None:
    """Remove what exports to the same place have left that were killed; of a former one what is replaced."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*.*"):
        _, number, kind = folder.name.rsplit(".", 2)
        is_useless = kind == "tmp" or (kind == "old" and out.exists())
        if is_useless and number.isdigit() and not _is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return pid != os.getpid()
