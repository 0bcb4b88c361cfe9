"""What was asked for as data: flags, the settings of a trace and the plan of a run, there and back."""

from __future__ import annotations

import argparse
import io
import json
import pickle
from dataclasses import MISSING, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.cli import COMMANDS, main, read_command
from distil.commands.flags import (
    BudgetFlags,
    CodeFlags,
    RunFlags,
    add_flags,
    flags_from_json,
    flags_json,
    read_flags,
    stated_flags,
)
from distil.pictures import ResizeRule
from distil.records import CropFrom, Frame, OnChange, SampleId, ToolMode
from distil.rollout import RolloutSettings
from distil.run.plan import Plan
from distil.run.settle import settle, what_is_asked
from distil.run.solver import RolloutSolver, open_rows, open_teacher
from distil.spending.prices import FixedPrices
from distil.store.claim import Claim
from distil.store.folder import RunFolder
from distil.store.trace_settings import CodeLimits, TraceSettings
from distil.tasks import TASKS
from distil.teacher.address import Address
from distil.teacher.availability import Patience
from distil.teacher.client import TeacherSettings
from distil.terminal.terminal import Terminal
from distil.tools.toolbox import load_tools

KEY = "sk-of-nobody-123456"


def quiet() -> Terminal:
    return Terminal(file=io.StringIO(), width=200)


def parsed(*arguments: str, defaults: RunFlags | None = None) -> RunFlags:
    parser = argparse.ArgumentParser()
    add_flags(parser, defaults or RunFlags())
    return read_flags(parser.parse_args(arguments), defaults or RunFlags())


def zoom_once(request: dict[str, Any]) -> Any:
    if is_probe(request) or num_turns(request) == 0:
        return calls(("image_zoom_in_tool", {"bbox_2d": [100, 100, 600, 600]}))
    return says("\\boxed{1.5, 2.5}")


def settings_of_a_trace(**changes: Any) -> TraceSettings:
    settings = TraceSettings(
        task="geolocation",
        model="qwen2.5-vl",
        profile="qwen2.5-vl",
        tool_mode=ToolMode.TEXT,
        coordinates=Frame.REL1,
        crop_from=CropFrom.ORIGINAL,
        temperature=None,
        max_tokens=7,
        max_turns=3,
        seed=-1,
        sends_seed=False,
        view_rule=ResizeRule(max_area_px=10_000),
        states_size=True,
        system_prompt="s",
        user_prompt="u\n",
        tool_schemas=(),
        keep_pictures=True,
    )
    return replace(settings, **changes)


def there_and_back(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def test_no_flag_is_named_twice_in_a_command_and_each_is_read_back() -> None:
    flags = parsed("--seed", "5", "--max_tokens", "9", "--keep_going", "--price_per_million", "1,2,0.5")
    assert flags == replace(
        RunFlags(),
        samples=replace(RunFlags().samples, seed=5, keep_going=True),
        teacher=replace(RunFlags().teacher, max_tokens=9),
        budget=BudgetFlags(price_per_million=FixedPrices(1, 2, 0.5)),
    )
    names = [
        item.name
        for group in vars(RunFlags()).values()
        if hasattr(group, "__dict__")
        for item in fields(group)
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_what_no_flag_says_is_the_default_of_the_command(command: Any) -> None:
    taken = {"path": ("p",), "paths": ("p", "q"), "shell": ("zsh",)}
    positional = [taken[name] for name, flag, *_ in stated_flags(command.flags) if flag.is_positional]
    needed = {
        "signs": ["--output_dir", "p"],
        "export": ["--format", "trl", "p", "q"],
        "import": ["--output_dir", "p", "p", "q"],
    }
    required = needed.get(command.name, [*chain(*positional)])
    parser = argparse.ArgumentParser()
    add_flags(parser, command.flags)
    read = read_flags(parser.parse_args(required), command.flags)
    changed = {name for name, value in vars(read).items() if value != getattr(command.flags, name)}
    given = {flag.removeprefix("--") for flag in required if flag.startswith("--")} - {"format"}
    assert changed == given | (set(taken) & set(vars(read)))


def test_no_room_has_a_second_default_of_what_is_a_flag() -> None:
    flags = {*flags_json(RunFlags()), "timeout_seconds"} - {"model"}  # "" is no model, but none yet
    found = {
        item.name: item.default
        for room in (TeacherSettings, Patience, RolloutSettings, TraceSettings)
        for item in fields(room)
        if item.name in flags
    }
    assert len(found) >= 7 and set(found.values()) == {MISSING}, found


def test_flags_go_through_json_unchanged() -> None:
    flags = replace(
        RunFlags(),
        code=CodeFlags(unsafe_exec=True, sandbox_workers=3),
        budget=BudgetFlags(max_calls=2, price_per_million=FixedPrices(1, 2, 0.5)),
        keep_pictures=True,
        estimate_samples=4,
    )
    assert flags_from_json(RunFlags(), there_and_back(flags_json(flags))) == flags


@pytest.mark.parametrize(
    "settings",
    [
        settings_of_a_trace(),
        settings_of_a_trace(temperature=0.25, token_field="max_completion_tokens", teacher_note="a note"),
        settings_of_a_trace(
            code=CodeLimits(1.5, 2**30, True),
            tool_schemas=tuple(
                tool.schema(settings_of_a_trace().toolbox().boxes) for tool in load_tools("python_code,zoom")
            ),
        ),
    ],
    ids=["plain", "with what most have not", "with code"],
)
def test_the_settings_of_a_trace_go_through_json_unchanged(settings: TraceSettings) -> None:
    stored = there_and_back(settings.as_json())
    assert TraceSettings.from_json(stored) == settings
    assert TraceSettings.from_json(stored).as_json() == settings.as_json()
    assert settings.changes_from(stored) == []
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_settings_of_another_version_are_read_and_what_they_lack_or_add_is_a_change() -> None:
    settings = settings_of_a_trace()
    stored = there_and_back(settings.as_json()) | {"top_k": 5}
    del stored["sends_seed"]
    assert TraceSettings.from_json(stored) == replace(settings, sends_seed=True)
    assert settings.changes_from(stored) == ["sends_seed: null then, false now", "top_k: 5 then, null now"]
    assert settings.changes_from(stored, ignored=("sends_seed", "top_k")) == []


@pytest.mark.parametrize("name", ["task", "tool_mode", "view_rule", "tool_schemas", "seed", "coordinates"])
def test_settings_without_what_a_replay_needs_are_no_settings(name: str) -> None:
    stored = settings_of_a_trace().as_json()
    del stored[name]
    with pytest.raises(KeyError, match=name):
        TraceSettings.from_json(stored)


def test_the_names_of_settings_in_traces_are_those_that_traces_have_had_from_the_first_on() -> None:
    """Whatever the program calls them: under another name every trace that exists would be unreadable."""
    assert list(settings_of_a_trace().as_json()) == [
        "task", "model", "profile", "tool_mode", "coordinates", "crop_from", "temperature", "max_tokens",
        "max_turns", "seed", "sends_seed", "view_rule", "states_size", "system_prompt", "user_prompt",
        "tool_schemas", "keep_pictures",
    ]  # fmt: skip


def test_another_process_can_work_by_a_plan_that_came_as_bytes(photos: Path, tmp_path: Path) -> None:
    """The plan of a run, pickled or as JSON, gives the trace that the run itself writes."""
    with ScriptedTeacher(zoom_once) as server:
        common = ["--api_base", server.api_base, "--dataset_path", str(photos), "--max_workers", "1"]
        common += ["--price_per_million", "1,2", "--num_samples", "1"]
        assert main(["run", *common, "--output_dir", str(tmp_path / "run")]) == 0
        flags = parsed(*common, "--output_dir", str(tmp_path / "planned"))
        address = Address((server.api_base,), KEY)
        with what_is_asked(flags, quiet().say) as asked:
            source, _ = open_rows(flags.samples, TASKS[asked.task], quiet().say)
            plan, output = settle(flags, asked, source, address, quiet().say)
        assert pickle.loads(pickle.dumps(plan)) == plan
        assert KEY not in json.dumps(plan.as_json()) + repr(pickle.dumps(plan))
        received = Plan.from_json(there_and_back(plan.as_json()))
        assert received == plan
        del plan, source, output  # the lock of the folder goes with it
        _solve_first(received)
    (ours,) = (tmp_path / "planned").glob("trace_*.json")
    assert ours.read_bytes() == (tmp_path / "run" / ours.name).read_bytes()


def _solve_first(plan: Plan) -> None:
    """What a worker does that was given nothing but a plan and, by its environment, a key."""
    source, indices = open_rows(plan.flags.samples, TASKS[plan.settings.task], quiet().say)
    folder = RunFolder(Claim(Path(plan.output_dir)), plan.facts(), plan.on_change)
    with open_teacher(plan, plan.teacher(KEY), folder.spending) as teacher:
        RolloutSolver(plan, source, folder, teacher).solve(SampleId(indices[0]))
    folder.close()


def test_a_choice_of_an_enum_is_its_member_wherever_it_was_said(tmp_path: Path) -> None:
    chosen = {"on_change": OnChange.NEW, "tool_mode": ToolMode.TEXT, "coordinates": Frame.PIXEL}
    given = [word for name, value in chosen.items() for word in (f"--{name}", value.value)]
    config = tmp_path / "flags.toml"
    config.write_text("".join(f'{name} = "{value}"\n' for name, value in chosen.items()))
    typed = parsed(*given)
    _, read = read_command(["run", "--config", str(config)])
    for flags in (typed, read, flags_from_json(RunFlags(), there_and_back(flags_json(typed)))):
        said = vars(flags.samples) | vars(flags.tools)
        assert all(said[name] is value for name, value in chosen.items())
    assert parsed().tools.coordinates == "auto" and parsed().samples.on_change is OnChange.REFUSE
