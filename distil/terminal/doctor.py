"""`distil doctor`: what a teacher can do and what this machine offers, found by trying it."""

from __future__ import annotations

from dataclasses import asdict, replace

from rich.table import Table
from rich.text import Text

from distil.commands.flags import AUTO, DoctorFlags, TeacherFlags
from distil.doctor.findings import Examination
from distil.doctor.interview import ask_models_soon, examine
from distil.errors import SandboxUnavailable, TeacherRefused, UsageError
from distil.records import Json
from distil.sandbox.sandbox import Sandbox
from distil.teacher.address import Address, find_teacher, served
from distil.teacher.availability import Patience
from distil.teacher.client import TeacherSettings
from distil.teacher.connection import shown_url
from distil.teacher.models import with_model
from distil.teacher.profile import Profile
from distil.terminal.terminal import Terminal
from distil.terminal.words import one_line

_READY, _NEEDS_ATTENTION, _CANNOT_RUN = 0, 1, 2
_READS_SIGNS = "The embedded sign reader boxes writing, not the doctor's marks: its frame is known, pixel."
_Document = dict[str, Json]
_STYLES = {"yes": "green", "on": "green", "partly": "yellow", "not asked": "dim"}


def examine_all(flags: DoctorFlags, terminal: Terminal) -> int:
    """Check what the flags name, each whatever becomes of the other; returns the worse exit code.

    Raises TeacherRefused or UsageError where no teacher can be asked, SandboxUnavailable where there is none.
    """
    unavailable: SandboxUnavailable | None = None
    document: _Document = {}
    exit_code = _READY
    if flags.sandbox:
        try:
            exit_code = show_sandbox(terminal, document)
        except SandboxUnavailable as error:
            unavailable = error
            document["sandbox"] = None
    if flags.names_teacher:
        exit_code = max(exit_code, show_teacher(flags, terminal, document))
    if terminal.gives_json:
        terminal.give(document | {"exit_code": _CANNOT_RUN if unavailable else exit_code})
    if unavailable is not None:
        raise unavailable
    return exit_code


def show_sandbox(terminal: Terminal, document: _Document) -> int:
    """Start the sandbox, show its layers and return 0; raises SandboxUnavailable where there is none."""
    with Sandbox() as sandbox:
        sandbox.start()
        rows = list(sandbox.layers.rows)
        document["sandbox"] = {name: {"status": status, "detail": detail} for name, status, detail in rows}
        terminal.show(_table(("layer", "status", "detail"), rows))
    terminal.say("Model-written code can be contained here.")
    return _READY


def show_teacher(flags: DoctorFlags, terminal: Terminal, document: _Document) -> int:
    """Examine each replica of the teacher and show what was found: the worst exit code of them.

    0 ready, 1 with the flags shown, 2 cannot run. A replica that cannot be asked needs attention; raises
    TeacherRefused or UsageError where none can be asked.
    """
    with served(find_teacher(flags.api_base), terminal.say) as address:
        settings = _settings(flags, address)
        exit_codes, refusals = [], []
        servers: list[_Document] = []
        document["servers"] = servers
        for api_base in address.api_bases:
            try:
                found, asked = _examined(replace(settings, api_base=api_base), flags, terminal)
            except TeacherRefused as error:
                refusals.append(error)
                continue
            if address.note is not None and found.found_frame.frame is None:
                terminal.say(_READS_SIGNS)
                found = replace(found, warnings=())
            servers.append(_examination_document(found, shown_url(asked.api_base)))
            terminal.say(f"Model: {asked.model} at {shown_url(asked.api_base)}")
            exit_codes.append(_show(found, terminal))
        if not exit_codes:
            raise refusals[0]
        for refusal in refusals:
            terminal.say(f"A replica cannot be asked: {refusal}", "yellow")
        return max(*exit_codes, _NEEDS_ATTENTION if refusals else _READY)


def _settings(flags: DoctorFlags, address: Address) -> TeacherSettings:
    """As a run asks by default, where the doctor has no flag of its own."""
    of_a_run = TeacherFlags()
    return TeacherSettings(
        address.api_base,
        address.api_key,
        temperature=of_a_run.temperature,
        max_tokens=flags.max_tokens,
        patience=Patience(
            timeout_seconds=flags.request_timeout_seconds,
            turn_timeout_seconds=of_a_run.turn_timeout_seconds,
            max_outage_seconds=of_a_run.max_outage_seconds,
        ),
    )


def _examined(
    settings: TeacherSettings, flags: DoctorFlags, terminal: Terminal
) -> tuple[Examination, TeacherSettings]:
    """What was found out, and how it was asked; raises TeacherRefused or UsageError."""
    names, problem = ask_models_soon(settings)
    if flags.model is None and problem is not None:
        raise UsageError(problem)
    settings = with_model(replace(settings, model=flags.model or ""), names, problem)
    frame = None if flags.coordinates == AUTO else flags.coordinates
    with terminal.waiting("Asking the teacher"):
        return examine(settings, (names, problem), frame), settings


def _show(found: Examination, terminal: Terminal) -> int:
    rows = [(finding.probe, finding.result.value, finding.detail) for finding in found.findings]
    terminal.show(_table(("probe", "result", "detail"), rows))
    terminal.say(f"Requests: {found.num_requests}")
    terminal.say(f"Profile by name: {_profile_text(found.profile)}")
    terminal.say(f"Frame found: {_frame_text(found)}")
    for suggestion in found.suggestions:
        word = "Needed" if suggestion.is_needed else "Suggested"
        terminal.say(f"{word}: {suggestion.flag} ({suggestion.why})")
    for warning in found.warnings:
        terminal.say(f"Warning: {warning}")
    for problem in found.problems:
        terminal.say(f"The main job cannot run: {problem}", "bold red")
    if found.problems:
        return _CANNOT_RUN
    needed = [suggestion.flag for suggestion in found.suggestions if suggestion.is_needed]
    if needed:
        terminal.say(f"The main job can run, with {' '.join(needed)}", "yellow")
    else:
        terminal.say("The main job can run.", "yellow" if found.warnings else "green")
    return _NEEDS_ATTENTION if needed or found.warnings else _READY


def _examination_document(found: Examination, url: str) -> _Document:
    """What was found out about one server."""
    return {
        "api_base": url,
        "model": found.model,
        "profile": found.profile.name,
        "tool_mode": found.tool_mode.value,
        "coordinates": None if found.found_frame.frame is None else found.found_frame.frame.value,
        "findings": [asdict(finding) for finding in found.findings],
        "suggestions": [asdict(suggestion) for suggestion in found.suggestions],
        "warnings": list(found.warnings),
        "problems": list(found.problems),
        "num_requests": found.num_requests,
    }


def _profile_text(profile: Profile) -> str:
    size = "; picture sizes are stated in words" if profile.states_size else ""
    area = f"; pictures of at most {profile.rule.max_area_px} pixels" if profile.rule.max_area_px else ""
    return f"{profile.name} (boxes {profile.frame.value}; {profile.token_field}{area}{size})"


def _frame_text(found: Examination) -> str:
    frame = found.found_frame
    if frame.frame is None:
        return "none"
    sure = "sure" if frame.is_sure else "likely"
    return f"{frame.frame.value} ({sure}: {frame.num_hits} marks hit, mean overlap {frame.overlap:.2f})"


def _table(headings: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> Table:
    table = Table(*headings, box=None, pad_edge=False)
    for name, status, detail in rows:
        table.add_row(Text(name), Text(status, style=_STYLES.get(status, "red")), Text(one_line(detail)))
    return table
