"""What a trace says that was sent is what was sent; the names of models; folders of several settings."""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import teacher_settings
from conftest import photo_bytes, save_photos
from scripted_teacher import ScriptedTeacher, calls, is_probe, num_turns, says

from distil.cli import COMMANDS
from distil.commands.flags import add_flags, read_flags
from distil.errors import TeacherError, TeacherRefused, UsageError
from distil.run.distillation import run_distillation
from distil.teacher.client import Teacher
from distil.teacher.models import AnsweredModels, nearest_names
from distil.terminal.terminal import Terminal

MODES = (
    ("run", ()),
    ("run", ("--tool_mode", "native")),
    ("run", ("--tool_mode", "text")),
    ("one-turn", ()),
    ("with-tools", ("--tool_mode", "native")),
)
MODE_NAMES = ["auto", "native", "text", "one turn", "with pictures"]


@pytest.fixture(scope="module")
def few_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(
        tmp_path_factory.mktemp("few") / "photos", [photo_bytes(n, (64, 48)) for n in range(4)]
    )


def distil(server: ScriptedTeacher, photos: Path, folder: Path, *flags: str, command: str = "run") -> Any:
    """A run in this process: its exit code and what it printed; raises what a door would print."""
    parser = argparse.ArgumentParser()
    defaults = next(door.flags for door in COMMANDS if door.name == command)
    add_flags(parser, defaults)
    given = ["--api_base", server.api_base, "--dataset_path", str(photos), "--output_dir", str(folder)]
    values = parser.parse_args([*given, "--max_workers", "1", *flags])
    output = io.StringIO()
    failed: UsageError | TeacherRefused | None = None
    code = 2
    try:
        code = run_distillation(read_flags(values, defaults), Terminal(file=output, width=1000))
    except (UsageError, TeacherRefused) as error:
        failed = type(error)(str(error))
    if code:
        gc.collect()  # the lock of the folder goes with the last that refers to it, perhaps an error
    if failed is not None:
        raise failed
    return code, output.getvalue()


def answers(request: dict[str, Any]) -> Any:
    """A call where tools are offered natively, then an answer; depends on nothing but the request."""
    if "tools" in request and num_turns(request) == 0:
        return calls(("image_rotate_tool", {"angle": 90}))
    return says("\\boxed{1.5, 2.5}")


def refusing(*names: str, since: int = 0) -> Callable[[dict[str, Any]], Any]:
    """A script that refuses fields by name, from the request with this number on."""
    numbers = itertools.count()

    def script(request: dict[str, Any]) -> Any:
        refused = [name for name in names if name in request]
        if next(numbers) >= since and refused:
            return 400, {"error": {"message": f"Unsupported parameter: '{refused[0]}' is not supported."}}
        return answers(request)

    return script


def traces(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("trace_*.json"))]


def records(folder: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads((folder / "run_record.json").read_text())["runs"]
    return runs


def assert_settings_are_what_was_sent(settings: dict[str, Any], requests: list[dict[str, Any]]) -> None:
    assert requests
    for request in requests:
        assert request.get("temperature") == settings["temperature"]
        assert ("seed" in request) == settings["sends_seed"]
        assert request[settings.get("token_field", "max_tokens")] == settings["max_tokens"]
        assert len({"max_tokens", "max_completion_tokens"} & set(request)) == 1


# --- settings that were sent ---


@pytest.mark.parametrize("refused", [(), ("temperature",), ("seed",), ("max_tokens",),
                                     ("max_tokens", "seed", "temperature")], ids=lambda names: "+".join(names) or "none")  # fmt: skip
@pytest.mark.parametrize(("command", "flags"), MODES, ids=MODE_NAMES)
def test_the_settings_of_every_trace_are_what_the_server_was_asked(
    command: str, flags: tuple[str, ...], refused: tuple[str, ...], few_photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(refusing(*refused)) as server:
        code, _ = distil(server, few_photos, tmp_path / "out", *flags, "--num_samples", "2", command=command)
        assert code == 0
        sampled = [request for request in server.requests if not is_probe(request)]
        probes = [request for request in server.requests if is_probe(request)]
        made = traces(tmp_path / "out")
        assert len(made) == 2
        for trace in made:
            assert_settings_are_what_was_sent(trace["settings"], sampled)
        assert len(probes) == 1 + len(refused), "one probe, repeated for each field that is refused"
        (record,) = records(tmp_path / "out")
        assert record["spent"]["answered"]["requests"] == 1 + len(sampled), "the probe is counted"
        distil(server, few_photos, tmp_path / "out", *flags, "--num_samples", "4", command=command)
    again = [request for request in server.requests if is_probe(request)]
    assert again == probes, "a resume asks no second one"
    assert len({trace["metadata"]["settings_sha256"] for trace in traces(tmp_path / "out")}) == 1
    assert_settings_are_what_was_sent(
        traces(tmp_path / "out")[3]["settings"], [r for r in server.requests if not is_probe(r)]
    )


def test_a_mode_that_is_told_uses_what_the_asking_run_found_out(few_photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(refusing("seed")) as server:
        distil(server, few_photos, tmp_path, "--num_samples", "1")
        distil(server, few_photos, tmp_path, "--num_samples", "2", "--tool_mode", "native")
    assert sum(map(is_probe, server.requests)) == 2, "one, and again without the seed"
    assert [trace["settings"]["sends_seed"] for trace in traces(tmp_path)] == [False, False]


def test_a_told_mode_that_the_server_refuses_is_an_error_before_any_sample(
    few_photos: Path, tmp_path: Path
) -> None:
    def script(request: dict[str, Any]) -> Any:
        return (
            (400, {"error": {"message": "tool choice requires a parser"}}) if "tools" in request else says("")
        )

    with ScriptedTeacher(script) as server:
        with pytest.raises(TeacherRefused, match="requires a parser"):
            distil(server, few_photos, tmp_path, "--tool_mode", "native")
    assert all(map(is_probe, server.requests))
    assert not (tmp_path / "failed_samples.jsonl").exists()


def test_a_probe_that_does_not_fit_the_budget_is_not_asked_in_any_mode(
    few_photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(answers) as server:
        for command, flags in MODES:
            with pytest.raises(UsageError, match="nothing can be asked within the budget"):
                distil(server, few_photos, tmp_path, "--max_total_tokens", "10", *flags, command=command)
    assert server.requests == []


@pytest.mark.parametrize(("command", "flags"), MODES, ids=MODE_NAMES)
def test_a_field_that_is_refused_in_mid_run_stops_it_and_is_asked_about_anew(
    command: str, flags: tuple[str, ...], few_photos: Path, tmp_path: Path
) -> None:
    num_before = 2 if command == "one-turn" or "text" in flags else 3  # the probe and one sample
    with ScriptedTeacher(refusing("seed", since=num_before)) as server:
        with pytest.raises(TeacherRefused, match="refuses a request field that was taken before") as caught:
            distil(server, few_photos, tmp_path, *flags, command=command)
        assert "'seed' is not supported" in str(caught.value)
        assert "Run again with --on_change keep (or another --output_dir)" in str(caught.value)
        assert [trace["settings"]["sends_seed"] for trace in traces(tmp_path)] == [True]
        # One may be an odd sample, two are the server; a third may leave before the run is given up.
        assert len(server.requests) - num_before in (2, 3)
        assert records(tmp_path)[-1]["probe"]["refuses_fields"] is True
        with pytest.raises(UsageError, match="sends_seed: true then, false now"):
            distil(server, few_photos, tmp_path, *flags, command=command)
        code, _ = distil(server, few_photos, tmp_path, *flags, "--on_change", "keep", command=command)
        assert code == 0
        assert records(tmp_path)[-1]["probe"]["refuses_fields"] is False
        num_probes = sum(map(is_probe, server.requests))
        distil(server, few_photos, tmp_path, *flags, "--on_change", "keep", command=command)
        assert sum(map(is_probe, server.requests)) == num_probes
    assert [trace["settings"]["sends_seed"] for trace in traces(tmp_path)] == [True, False, False, False]


def test_an_odd_conversation_whose_error_names_a_field_fails_alone(few_photos: Path, tmp_path: Path) -> None:
    odd = itertools.count()

    def script(request: dict[str, Any]) -> Any:
        if next(odd) == 2:
            return 400, {"error": {"message": "unknown character in: the temperature here …"}}
        return answers(request)

    with ScriptedTeacher(script) as server:
        code, _ = distil(server, few_photos, tmp_path, command="one-turn")
        assert code == 1 and len(traces(tmp_path)) == 3
        assert_settings_are_what_was_sent(traces(tmp_path)[0]["settings"], server.requests)
        assert records(tmp_path)[-1]["probe"]["refuses_fields"] is False


def test_a_client_that_may_not_adapt_sends_every_request_alike() -> None:
    with ScriptedTeacher(refusing("temperature")) as server:
        with Teacher(teacher_settings(server.api_base, "EMPTY", "m")) as teacher:
            with pytest.raises(TeacherError):
                teacher.ask([b'{"role": "user", "content": "q"}'], 0)
            with pytest.raises(TeacherRefused):
                teacher.ask([b'{"role": "user", "content": "q"}'], 0)
            assert teacher.refuses_fields
    assert ["temperature" in request for request in server.requests] == [True, True]


# --- a model that the server does not list ---


def test_a_model_that_is_not_listed_is_told_with_the_nearest_names(few_photos: Path, tmp_path: Path) -> None:
    listed = ("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-32B-Instruct", "bge-m3", "whisper-1")
    with ScriptedTeacher(answers, models=listed) as server:
        _, text = distil(server, few_photos, tmp_path, "--model", "qwen3-vl-32b", "--num_samples", "1")
    (line,) = (line for line in text.splitlines() if "does not list" in line)
    assert text.index(line) < text.index("Model: ")
    assert line.startswith("Warning: the server does not list the model qwen3-vl-32b")
    assert "lists: Qwen/Qwen3-VL-32B-Instruct, Qwen/Qwen3-VL-8B-Instruct" in line
    assert "boxes are taken as rel1000 (profile qwen-vl" in line
    assert len(traces(tmp_path)) == 1, "providers have aliases: the run goes on"


@pytest.mark.parametrize("models", [("m", "n"), ()])
def test_a_model_that_is_listed_and_an_empty_list_are_nothing_to_tell(
    models: tuple[str, ...], few_photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(answers, models=models) as server:
        _, text = distil(server, few_photos, tmp_path, "--model", "m", "--num_samples", "1")
    assert "list" not in text.replace("listed", "")


@pytest.mark.parametrize("status", [200, 403, 404, 501])
def test_a_list_that_cannot_be_read_is_passed_over(status: int, few_photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(answers, listing=(status, {"error": {"message": "no list"}})) as server:
        for number in ("1", "2"):
            code, text = distil(server, few_photos, tmp_path, "--model", "m", "--num_samples", number)
            assert code == 0 and "does not list" not in text


@pytest.mark.parametrize(
    ("model", "nearest"),
    [
        ("gpt-4o", "openai/gpt-4o"),
        ("GPT-4.1", "openai/gpt-4.1"),
        ("llava", "llava:latest"),
        ("openai/gpt4o", "openai/gpt-4o"),
        ("Qwen3-VL-235B", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
    ],
)
def test_the_nearest_name_is_the_one_that_was_meant(model: str, nearest: str) -> None:
    names = ["bge-m3", "openai/gpt-4o-mini", "openai/gpt-4o", "openai/gpt-4.1", "llava:latest", "qwen2.5vl:7b",
             "Qwen/Qwen3-VL-235B-A22B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"]  # fmt: skip
    assert nearest_names(model, names)[0] == nearest


# --- the model that replies ---


def named(names: Callable[[dict[str, Any]], str | None]) -> Callable[[dict[str, Any]], Any]:
    def script(request: dict[str, Any]) -> Any:
        return answers(request) | {"model": names(request)}

    return script


def test_the_replys_own_model_is_kept_turn_by_turn_and_an_alias_is_no_warning(
    few_photos: Path, tmp_path: Path
) -> None:
    with ScriptedTeacher(named(lambda _: "served-2026-01")) as server:
        _, text = distil(server, few_photos, tmp_path, "--num_samples", "2")
    models = [[turn["model"] for turn in trace["conversation_log"]] for trace in traces(tmp_path)]
    assert models == [["served-2026-01"] * 2] * 2
    assert "more than one model" not in text
    assert records(tmp_path)[-1]["models"] == {"served-2026-01": 4}
    assert "more than one model" not in " ".join(records(tmp_path)[-1]["warnings"])


def test_a_reply_without_a_model_has_none_in_its_trace(few_photos: Path, tmp_path: Path) -> None:
    with ScriptedTeacher(named(lambda _: None)) as server:
        distil(server, few_photos, tmp_path, "--num_samples", "1")
    assert all("model" not in turn for turn in traces(tmp_path)[0]["conversation_log"])
    assert records(tmp_path)[-1]["models"] == {}


def test_a_change_of_the_model_in_mid_run_is_told_once_and_at_the_end(
    few_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = itertools.count()

    def model(request: dict[str, Any]) -> str | None:
        return None if is_probe(request) else ("a", "a", "b", "c", "a", "b", "b", "b")[next(numbers)]

    with ScriptedTeacher(named(model)) as server:
        code, text = distil(server, few_photos, tmp_path)
    assert code == 0
    output = capsys.readouterr()
    told = (text + output.out + output.err).count("replies came from the model a, and now one came from b")
    assert told == 1
    assert "Warning: replies came from more than one model: a (3), b (4), c (1)" in text
    assert records(tmp_path)[-1]["models"] == {"a": 3, "b": 4, "c": 1}
    assert any("a (3), b (4), c (1)" in text for text in records(tmp_path)[-1]["warnings"])


def test_paid_turns_of_an_earlier_run_count_as_replies(few_photos: Path, tmp_path: Path) -> None:
    def breaks(request: dict[str, Any]) -> Any:
        if not is_probe(request) and num_turns(request) == 1:
            return 400, {"error": {"message": "no"}}
        return answers(request) | {"model": "old"}

    with ScriptedTeacher(breaks) as server:
        distil(server, few_photos, tmp_path, "--num_samples", "1")
        server.script = named(lambda _: "new")
        _, text = distil(server, few_photos, tmp_path, "--num_samples", "1")
    (trace,) = traces(tmp_path)
    assert [turn["model"] for turn in trace["conversation_log"]] == ["old", "new"]
    assert "more than one model: new (1), old (1)" in text


def test_journals_and_traces_from_before_the_model_was_kept_are_read(
    few_photos: Path, tmp_path: Path
) -> None:
    def breaks(request: dict[str, Any]) -> Any:
        if not is_probe(request) and num_turns(request) == 1:
            return 400, {"error": {"message": "no"}}
        return answers(request)

    with ScriptedTeacher(breaks) as server:
        distil(server, few_photos, tmp_path, "--num_samples", "1")
        (journal,) = (tmp_path / "journal").glob("*.jsonl")
        turn = json.loads(journal.read_text())
        assert turn["reply"].pop("model") == "m"
        header = {name: turn[name] for name in ("sample_index", "settings_sha256", "file_sha256")}
        journal.unlink()  # and a file a sample, whose header said of all its turns what they were made with
        journal = journal.with_name("sample_00000.jsonl")
        turn = {name: turn[name] for name in ("request_sha256", "reply")}
        journal.write_text("".join(json.dumps(line) + "\n" for line in (header, turn)))
        server.script, server.requests[:] = answers, []
        code, _ = distil(server, few_photos, tmp_path, "--num_samples", "1")
    assert code == 0 and len(server.requests) == 1, "the paid turn is used"
    (trace,) = traces(tmp_path)
    assert ["model" in turn for turn in trace["conversation_log"]] == [False, True]


def test_many_threads_that_see_one_change_tell_it_once() -> None:
    models, lines = AnsweredModels(), []
    models.tell = lines.append
    for name in ("a", None, "a", "b", "a", "b", "c"):
        models.note(name)
    assert len(lines) == 1 and models.counts == {"a": 3, "b": 2, "c": 1}


# --- folders of several settings ---

STEPS = [(choice, tokens) for choice in ("refuse", "new", "keep", "redo") for tokens in ("64", "32")]


def state(folder: Path) -> dict[str, bytes]:
    """All traces in the folder and in those beside it."""
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for path in sorted(folder.parent.glob(f"{folder.name}*/trace_*.json"))
    }


def limits_by_folder(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, data in state(folder).items():
        found.setdefault(name.partition("/")[0], []).append(str(json.loads(data)["settings"]["max_tokens"]))
    return found


def take_step(server: ScriptedTeacher, photos: Path, folder: Path, step: tuple[str, str]) -> str:
    """Run with a choice and settings; asserts what each choice promises, whatever the folder holds."""
    choice, tokens = step
    before = state(folder)
    server.requests.clear()
    flags = ("--num_samples", "2", "--max_tokens", tokens, "--on_change", choice)
    try:
        code, text = distil(server, photos, folder, *flags, command="one-turn")
    except UsageError as error:
        assert choice == "refuse", f"{choice} is no answer to itself: {error}"
        assert "--on_change new, keep or redo" in str(error)
        assert state(folder) == before and server.requests == [], "nothing is changed, nothing is paid"
        return "refused"
    assert code == 0
    after, found = state(folder), limits_by_folder(folder)
    used = Path(text.split("Traces: ")[1].splitlines()[0]).name
    changed = {name for name in after if before.get(name) != after[name]}
    assert set(before) <= set(after) and all(name.startswith(f"{used}/") for name in changed)
    assert sum(not is_probe(request) for request in server.requests) == len(changed), "nothing is paid twice"
    assert len(found[used]) == 2
    assert used == folder.name or choice == "new"
    if choice == "keep":
        assert not changed & set(before)
    else:
        assert set(found[used]) == {tokens}, "not mixed"
    if choice in ("new", "refuse"):
        assert not changed & set(before), "what is there stays"
    return used


def test_every_sequence_of_choices_keeps_what_each_promises(few_photos: Path, tmp_path: Path) -> None:
    """All pairs of steps after a first run of one sample; a step that is repeated asks for nothing more."""
    outcomes = Counter[str]()
    with ScriptedTeacher(answers) as server:
        origin, once, twice = (tmp_path / name / "out" for name in ("origin", "once", "twice"))
        flags = ("--num_samples", "1", "--max_tokens", "64")
        distil(server, few_photos, origin, *flags, command="one-turn")
        for first in STEPS:
            shutil.copytree(origin.parent, once.parent)
            outcomes[take_step(server, few_photos, once, first)] += 1
            for second in STEPS:
                shutil.copytree(once.parent, twice.parent)
                used = take_step(server, few_photos, twice, second)
                outcomes[used] += 1
                if second[0] in ("new", "redo"):
                    assert take_step(server, few_photos, twice, second) == used
                    assert server.requests == [], (first, second)
                shutil.rmtree(twice.parent)
            shutil.rmtree(once.parent)
    assert set(outcomes) >= {"refused", "out", "out-2"}, outcomes


def test_new_after_keep_goes_into_a_folder_of_its_own(few_photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ScriptedTeacher(answers) as server:
        distil(server, few_photos, out, "--num_samples", "1", "--max_tokens", "64")
        distil(server, few_photos, out, "--num_samples", "2", "--max_tokens", "32", "--on_change", "keep")
        kept = state(out)
        new = ("--num_samples", "2", "--max_tokens", "32", "--on_change", "new")
        code, text = distil(server, few_photos, out, *new)
        assert code == 0 and f"Traces: {out}-2" in text
        assert limits_by_folder(out) == {"out": ["64", "32"], "out-2": ["32", "32"]}
        assert {name: data for name, data in state(out).items() if name in kept} == kept
        server.requests.clear()
        distil(server, few_photos, out, *new)
    assert server.requests == [], "the second time nothing is asked, not even the probe"


def test_paid_turns_of_other_settings_are_no_free_folder(few_photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def breaks(request: dict[str, Any]) -> Any:
        if not is_probe(request) and num_turns(request) == 1:
            return 400, {"error": {"message": "no"}}
        return answers(request)

    with ScriptedTeacher(breaks) as server:
        distil(server, few_photos, out, "--num_samples", "1", "--max_tokens", "64")
        (path,) = (out / "journal").iterdir()
        journal = path.read_bytes()
        server.script = answers
        distil(server, few_photos, out, "--num_samples", "1", "--max_tokens", "32", "--on_change", "new")
        assert path.read_bytes() == journal
        assert limits_by_folder(out) == {"out-2": ["32"]}
        server.requests.clear()
        distil(server, few_photos, out, "--num_samples", "1", "--max_tokens", "64", "--on_change", "new")
    assert limits_by_folder(out) == {"out": ["64"], "out-2": ["32"]}
    assert len(server.requests) == 1, "it goes on from the paid turn, and recalls the probe"


def test_a_new_folder_has_a_budget_of_its_own(few_photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--num_samples", "1", "--max_calls", "3")
    with ScriptedTeacher(answers) as server:
        assert distil(server, few_photos, out, *flags)[0] == 0
        code, _ = distil(server, few_photos, out, *flags, "--tools", "rotate", "--on_change", "new")
    assert code == 0 and set(limits_by_folder(out)) == {"out", "out-2"}


@pytest.mark.parametrize("damage", ["{", '{"sample_index": 0}'])
def test_a_trace_that_tells_nothing_of_its_settings_is_no_free_folder(
    damage: str, few_photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "trace_00000.json").write_text(damage)
    with ScriptedTeacher(answers) as server:
        code, text = distil(server, few_photos, out, "--num_samples", "1", "--on_change", "new")
    assert code == 0 and f"Traces: {out}-2" in text
    assert (out / "trace_00000.json").read_text() == damage
