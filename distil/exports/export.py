"""Picked traces → a folder that a trainer reads: replayed by many processes, written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from distil import __version__
from distil.commands.flags import ExportFlags, FormFlags, command_text
from distil.errors import SourceError, ToolError, TraceError, UsageError
from distil.exports.card import CARD, card_json, card_text, read_contents
from distil.exports.conversation import StudentConversation, conversation_of, is_attribution
from distil.exports.files import PICTURES, JsonLines, Tables, file_sha256
from distil.exports.form import ExportReport, Format, Target
from distil.exports.pictures import shown_calls
from distil.exports.plots import FOLDER as PLOTS
from distil.exports.plots import NO_PLOTS, can_plot, draw_plots
from distil.exports.selection import TRAIN, Selected, Step, reason_to_leave_out
from distil.exports.to_hf import HF, card_head
from distil.exports.to_llamafactory import LLAMAFACTORY
from distil.exports.to_ms_swift import MS_SWIFT
from distil.exports.to_openai import OPENAI
from distil.exports.to_trl import TRL
from distil.exports.to_verl import VERL
from distil.exports.tokens import row_tokens
from distil.interrupts import interruptible
from distil.records import ExportFormat, Frame, Json, ToolMode
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
_SAYS_NOTHING_OF_ROWS = ("max_workers", "overwrite", "json", "dry_run")
FORMATS: Mapping[ExportFormat, Format] = {
    ExportFormat.TRL: TRL,
    ExportFormat.VERL: VERL,
    ExportFormat.LLAMAFACTORY: LLAMAFACTORY,
    ExportFormat.MS_SWIFT: MS_SWIFT,
    ExportFormat.OPENAI: OPENAI,
    ExportFormat.HF: HF,
}


@dataclass(frozen=True, slots=True)
class NotExported:
    """A trace that is not in an export, and why.

    A sound one is left out; one that is edited, or whose pictures are not what the teacher saw, is refused.
    """

    path: Path
    reason: str
    is_refused: bool


Found = StudentConversation | NotExported


def export_traces(
    selected: Selected,
    asked: ExportFlags,
    look: Callable[[Found], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Write the rows of picked traces, in their order, and what a trainer needs beside them.

    `look` gets what became of each trace, `tell` a line where a process was ended from outside. Raises
    UsageError where the flags do not go together, something else is at `asked.out`, or no row is left.
    """
    _check(asked)
    _check_free(asked)
    out = asked.out.absolute()
    asked = replace(asked, form=replace(asked.form, has_attribution=_says_whose(selected)))
    with interruptible(lambda: None) as interruption, _whole_or_nothing(out) as folder:

        def look_at(found: Iterable[Found]) -> Iterator[Found]:
            for result in found:
                interruption.check()
                look(result)
                yield result

        target, report = Target(folder, out, asked.form), ExportReport(left_out=Counter(selected.left_out))
        work = partial(conversation_at, asked=asked)
        traces = each_trace(work, list(selected.picks), asked.max_workers, asked.dataset_path, tell)
        with closing(traces) as found:
            _write_rows(report, target, zip(selected.picks.items(), look_at(found), strict=False), asked)
        if not report.num_rows[TRAIN]:
            raise UsageError(f"no trace is left to export: {_why_none(report)}")
        _write_card(_text_beside(target, asked, report), target, asked, selected, report)
        (folder / MANIFEST).write_bytes(json_bytes(_manifest(asked, report, folder)))
        _check_free(asked)  # another export may have come to the same place in the meantime
    return report


def _command(asked: ExportFlags) -> str:
    """The command that makes the same export again."""
    return command_text("distil export", asked, ExportFlags(), _SAYS_NOTHING_OF_ROWS)


def _says_whose(selected: Selected) -> bool:
    return any(column.source == "row" and is_attribution(column.heading) for column in selected.columns)


def _check(asked: ExportFlags) -> None:
    form = asked.form
    is_native, is_25 = form.call_form is ToolMode.NATIVE, form.student == "qwen2.5-vl"
    if is_native and not FORMATS[asked.format].has_native:
        raise UsageError(f"--call_form native: the format {asked.format.value} has no such form")
    if is_native and is_25 and asked.format is ExportFormat.VERL:
        raise UsageError(
            "--call_form native: the chat template of Qwen2.5-VL, which verl uses, leaves native calls out"
        )
    limit = form.image_max_pixels
    if form.coordinates is Frame.PIXEL and limit is not None and limit < _MIN_PIXEL_FRAME_PX:
        raise UsageError(
            f"--image_max_pixels {limit} with --coordinates pixel: the student makes pictures of less than "
            f"{_MIN_PIXEL_FRAME_PX} pixels larger, and the boxes would be wrong"
        )


def _write_rows(
    report: ExportReport,
    target: Target,
    found: Iterable[tuple[tuple[Path, str], Found]],
    asked: ExportFlags,
) -> None:
    form = FORMATS[asked.format]
    rows: JsonLines | Tables = JsonLines(target.folder)
    if form.features is not None:
        rows = Tables(target.folder, form.features(asked.form), form.file)
    with closing(rows):
        for (path, split), result in found:
            report.num_picked += 1
            if isinstance(result, StudentConversation):
                rows.add(form.row(result, target), split)
                _count(report, path, split, result, asked)
            elif result.is_refused:
                report.refused[_general(result.reason)] += 1
            else:
                report.left_out[result.reason] += 1
            if len(report.exported) == asked.limit:
                break


def _count(
    report: ExportReport, path: Path, split: str, conversation: StudentConversation, asked: ExportFlags
) -> None:
    report.num_rows[split] += 1
    report.num_pictures += len(conversation.pictures())
    report.num_turns += len(conversation.turns)
    report.num_masked_turns += sum(not turn.is_trained for turn in conversation.turns)
    report.row_tokens.append(row_tokens(conversation.messages(), asked.form))
    report.exported.append(path)
    report.rows_sha256.update(f"{split} {conversation.origin['trace_sha256']}\n".encode())


def _general(reason: str) -> str:
    """A reason without what is of one trace or of one machine alone."""
    return re.sub(r"\b\d+\b", "N", re.sub(r"(?<![\w.])/[^\s:;,]+", "PATH", reason))


def _text_beside(target: Target, asked: ExportFlags, report: ExportReport) -> str:
    """How a trainer is started, as text; what it needs beside the rows is written."""
    head = card_head(report) if asked.format is ExportFormat.HF else ""
    return head + _readme(asked, report, FORMATS[asked.format].guide(target, report))


def _write_card(
    text: str, target: Target, asked: ExportFlags, selected: Selected, report: ExportReport
) -> None:
    """The data card: behind the text that says how to start, and as JSON with the hashes of all else."""
    contents = read_contents(selected, report.exported)
    name = "replayed" if asked.limit is None else f"replayed, --limit {asked.limit}"
    written = Step(name, len(selected.picks), len(report.exported))
    selected = replace(selected, steps=(*selected.steps, written))
    card = card_json(selected, contents, report, _command(asked))
    card["selection_sha256"] = report.rows_sha256.hexdigest()
    pictures = draw_plots(card, target.folder) if can_plot() else {}
    text += "\n" + card_text(card, pictures, "" if can_plot() else NO_PLOTS)
    (target.folder / "README.md").write_text(text, encoding="utf-8")
    card["files"] = _files_sha256(target.folder)
    (target.folder / CARD).write_bytes(json_bytes(card))


def conversation_at(path: Path, sources: Sources, executors: Executors, asked: ExportFlags) -> Found:
    """The conversation of one trace file, or why there is none."""
    try:
        trace = read_trace(path)
        ended = trace.json["metadata"]
        reason = None if asked.all else reason_to_leave_out(ended["stop_reason"], ended["parse_success"])
        conversation = None if reason else _conversation(trace, sources, executors, asked.form)
    except (TraceError, SourceError, ToolError) as error:
        return NotExported(path, str(error), is_refused=True)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        return NotExported(path, f"a field cannot be read: {error!r}", is_refused=True)
    return conversation or NotExported(path, reason or NOTHING_TO_TRAIN, is_refused=False)


def _conversation(
    trace: StoredTrace, sources: Sources, executors: Executors, form: FormFlags
) -> StudentConversation | None:
    if not trace.is_unedited:
        raise TraceError("its content does not fit its integrity_sha256: it was edited")
    name = trace_name(trace.sample_id)
    if trace.path.name != name:
        raise TraceError(f"it is of row {trace.sample_id}, whose file is {name}")
    photo, calls = shown_calls(trace, sources.of(trace), executors.of(trace), form)
    return conversation_of(trace, photo, calls, form)


def _why_none(report: ExportReport) -> str:
    reasons = [f"{count} left out, {reason}" for reason, count in sorted(report.left_out.items())]
    num_refused = report.refused.total()
    return "; ".join([*reasons, *([f"{num_refused} refused"] if num_refused else [])])


def _readme(asked: ExportFlags, report: ExportReport, guide: str) -> str:
    num_rows = ", ".join(f"{count:,} {split}" for split, count in sorted(report.num_rows.items()))
    tokens = report.as_json()["tokens"]
    frame = "thousandths of a picture's width and height"
    if asked.form.coordinates is Frame.PIXEL:
        frame = "pixels of the pictures as they lie here"
    return f"""\
# Traces for {asked.format.value}

{num_rows} rows with {report.num_pictures:,} pictures, made by distil {__version__}:

```bash
{_command(asked)}
```

A row has about {tokens["median"]:,} tokens, the longest {tokens["longest"]:,}, estimated rather too high:
the length to set is **{tokens["to_set"]:,}**. Boxes are {frame}.
`id` is the file of a row's trace, `trace_sha256` its `integrity_sha256`.

## Start

{guide}
"""


def _manifest(asked: ExportFlags, report: ExportReport, folder: Path) -> dict[str, Json]:
    return {
        "format": FORMAT,
        "distil": __version__,
        "command": _command(asked),
        "options": {
            "format": asked.format.value,
            "coordinates": asked.form.coordinates.value,
            "image_max_pixels": asked.form.image_max_pixels,
            "reasoning": asked.form.reasoning,
            "errors": asked.form.errors,
            "call_form": asked.form.call_form.value,
            "student": asked.form.student,
            "all": asked.all,
            "attribution": asked.form.has_attribution,
        },
        "counts": report.as_json(),
        "files": _files_sha256(folder),
    }


def _files_sha256(folder: Path) -> dict[str, Json]:
    """The hashes of the files but the pictures, whose names are their hashes."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for within in ("data", PLOTS):
        files += sorted(path for path in (folder / within).glob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _check_free(asked: ExportFlags) -> None:
    """Raise UsageError where something is at the place that must stay."""
    if not asked.out.exists() and not asked.out.is_symlink():
        return
    if not asked.overwrite:
        raise UsageError(f"--out {asked.out} exists already; --overwrite replaces an export")
    written = None if asked.out.is_symlink() else _written_into(asked.out)
    if written is None:
        raise UsageError(f"--out {asked.out} is no export of distil: it is not replaced")
    others = [path.name for path in asked.out.iterdir() if path.name not in written and path.name[0] != "."]
    if others:
        raise UsageError(
            f"--out {asked.out} holds {min(others)!r}, which no export has written: it is not replaced"
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
