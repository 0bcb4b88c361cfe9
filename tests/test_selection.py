"""Selection for exports: filters in a fixed order, counted; splits that never share a photo."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from builders import file_bytes, noise, row, saved, smooth
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageOps
from scripted_teacher import ScriptedTeacher, is_probe, says

from distil.cli import main, read_command
from distil.commands.flags import ExportFlags, SelectionFlags, _band
from distil.errors import UsageError
from distil.exports.filters import Candidate, balanced, best, first
from distil.exports.near_duplicates import near_pairs
from distil.exports.selection import VALIDATION, Selected, select_traces, validation_members
from distil.records import SampleId
from distil.store.marks import append_mark
from distil.store.trace_file import trace_name
from distil.store.trace_settings import json_sha256

FORMATS = ["trl", "verl", "llamafactory", "ms_swift", "openai", "hf"]


def write(folder: Path, index: int, rollout: int = 0, **says: Any) -> Path:
    """A trace with what selection reads; `says` are the columns of its row but for those named here."""
    stop, photo = says.pop("stop", "answered"), says.pop("photo", f"photo {index}")
    score, text = says.pop("score", 1.0), says.pop("text", "I see.")
    sample_id = SampleId(index, rollout)
    trace = {
        "format": "distil-trace/1",
        "dataset_path": "/data/photos",
        **sample_id.as_json(),
        "sample_data": says,
        "conversation_log": [{"turn": 1, "response": text}],
        "tool_calls_log": [],
        "final_response": text,
        "reward_score": {"score": score, "parse_success": stop == "answered"},
        "metadata": {"stop_reason": stop, "parse_success": stop == "answered", "settings_sha256": "s"},
        "settings": {"task": "geolocation"},
        "dataset": {"fingerprint": "f"},
        "image": {"file_sha256": photo, "width_px": 100, "height_px": 100},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / trace_name(sample_id)
    path.write_text(json.dumps(trace), encoding="utf-8")
    return path


def chosen(
    folders: Path | Sequence[Path], where: str | None = None, takes_all: bool = False, **flags: Any
) -> Selected:
    paths = (folders,) if isinstance(folders, Path) else tuple(folders)
    return select_traces(
        ExportFlags(paths=paths, where=where, all=takes_all, selection=SelectionFlags(**flags))
    )


def names(selected: Selected) -> list[str]:
    return [path.stem.removeprefix("trace_") for path in selected.picks]


def counts(selected: Selected) -> list[tuple[str, int, int]]:
    return [(step.name, step.before, step.after) for step in selected.steps]


# --- rollouts of a row ---


def candidate(position: int, **changes: Any) -> Candidate:
    facts = {
        "path": Path(f"trace_{position:05d}.json"), "position": position, "row": ("a",), "rollout": position,
        "photo": "p", "num_pixels": 1, "score": 0.5, "reason_out": None, "mark": None,
        "is_wanted": True, "passes": False, "value": None, "place": (),
    }  # fmt: skip
    return Candidate(**{**facts, **changes})


scores = st.none() | st.sampled_from([0.0, 0.5, 0.5, 0.9, 1.0])
rollouts = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), scores), max_size=30)


@given(rollouts, st.integers(1, 4))
def test_the_best_rollouts_of_a_row_stay_and_of_equals_the_earlier(found: Any, most: int) -> None:
    everyone = [
        candidate(position, row=(row,), rollout=rollout, score=score)
        for position, (row, rollout, score) in enumerate(found)
    ]
    kept = best(most, everyone)
    assert [each.position for each in kept] == sorted(each.position for each in kept)
    rows: dict[Any, list[Candidate]] = defaultdict(list)
    for each in everyone:
        rows[each.row].append(each)
    for mine in rows.values():
        ours = [each for each in mine if each in kept]
        assert len(ours) == min(most, len(mine))
        for out in (each for each in mine if each not in kept):
            for each in ours:
                scored = [-1.0 if one.score is None else one.score for one in (each, out)]
                assert scored[0] > scored[1] or (scored[0] == scored[1] and each.rollout <= out.rollout)
    assert Counter(each.row for each in first(most, everyone)) == Counter(each.row for each in kept)


def test_rollouts_are_those_of_a_row_in_all_folders(tmp_path: Path) -> None:
    for number, folder in enumerate(["a", "b"]):
        for index in range(3):
            write(tmp_path / folder, index, score=0.5 + (index == number) / 4)
    both = [tmp_path / "a", tmp_path / "b"]
    found = chosen(both, best_of=1)
    assert [(path.parent.name, path.name) for path in found.picks] == [
        ("a", "trace_00000.json"),
        ("a", "trace_00002.json"),
        ("b", "trace_00001.json"),
    ]
    assert names(chosen(both, max_per_sample=1)) == ["00000", "00001", "00002"]
    assert names(chosen([*both, tmp_path / "a", tmp_path / "." / "b"])) == ["00000", "00001", "00002"] * 2


def test_a_rollout_without_an_answer_takes_no_place_among_the_best(tmp_path: Path) -> None:
    write(tmp_path, 7, 0, score=1.0, stop="max_turns")
    write(tmp_path, 7, 1, score=0.1)
    found = chosen(tmp_path, best_of=1)
    assert names(found) == ["00007_r1"]
    assert found.left_out == {"it ended without an answer (max_turns)": 1}
    assert names(chosen(tmp_path, best_of=1, takes_all=True)) == ["00007"]


def test_a_row_is_taken_by_the_share_of_all_its_rollouts_that_pass(tmp_path: Path) -> None:
    for index, passing in enumerate([0, 1, 2, 4]):
        for rollout in range(4):
            write(tmp_path, index, rollout, score=1.0 if rollout < passing else 0.0)
    write(tmp_path, 4, score=1.0)
    write(tmp_path, 5, score=0.0)

    def rows_in(band: str, **more: Any) -> set[str]:
        found = chosen(tmp_path, pass_rate=_band(band), accept="score > 0.8", **more)
        return {name[:5] for name in names(found)}

    assert rows_in("0.2..0.8") == {"00001", "00002"}
    assert rows_in("..0") == {"00000", "00005"} and rows_in("1..") == {"00003", "00004"}
    assert rows_in("0.25..0.25", where="score = 1") == {"00001"}  # of all, not of those that `where` leaves
    write(tmp_path, 1, 4, stop="truncated", score=0.0)
    assert rows_in("0.2..0.2") == {"00001"}


def test_a_share_is_taken_as_exactly_as_it_is_written(tmp_path: Path) -> None:
    for index, passing in enumerate([1, 2]):
        for rollout in range(3):
            write(tmp_path, index, rollout, score=1.0 if rollout < passing else 0.0)

    def rows_in(low: float, high: float) -> set[str]:
        found = chosen(tmp_path, pass_rate=_band(f"{low}..{high}"), accept="score > 0.8")
        return {name[:5] for name in names(found)}

    assert rows_in(0.5, 2 / 3) == {"00001"} == rows_in(2 / 3, 1)
    assert rows_in(0, 1 / 3) == {"00000"}
    assert _band("0.20..") == "0.2..1" and _band(".0..00.5") == "0..0.5"


def test_repeats_of_a_row_are_dropped_and_those_of_other_rows_stay(tmp_path: Path) -> None:
    for index in (0, 1):
        for rollout, text in enumerate(["A", "B", "A"]):
            write(tmp_path, index, rollout, text=text)
    assert names(chosen(tmp_path, drop_repeats=True)) == ["00000", "00000_r1", "00001", "00001_r1"]


# --- columns that are read for other filters too ---


def test_any_column_can_be_balanced_and_split_by_one_that_other_filters_read_too(tmp_path: Path) -> None:
    for index in range(24):
        write(tmp_path, index, score=float(index % 3 > 0), country=f"c{index % 4}", x=float(index % 3 > 0))

    for more in ({}, {"split_by": "country", "validation": 0.3}):
        balanced_by = {name: chosen(tmp_path, balance=name, **more).picks for name in ("score", "x")}
        assert balanced_by["score"] == balanced_by["x"] and len(balanced_by["x"]) == 16
    for splitting in ("score", "score,country", "country, score,country", "Score"):
        same = splitting.lower().replace("score", "x")
        sides = [chosen(tmp_path, validation=0.4, split_by=names).picks for names in (splitting, same)]
        assert sides[0] == sides[1]
    scores = defaultdict(set)
    for path, split in chosen(tmp_path, validation=0.4, split_by="score").picks.items():
        scores[split].add(json.loads(path.read_text())["reward_score"]["score"])
    assert scores == {"train": {1.0}, "validation": {0.0}}


# --- marks ---


def test_what_is_marked_drop_is_not_exported_unless_it_is_asked_for(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path, index)
    append_mark(tmp_path, SampleId(1), "drop")
    append_mark(tmp_path, SampleId(2), "keep", note="fine")
    assert names(chosen(tmp_path)) == ["00000", "00002", "00003"]
    assert names(chosen(tmp_path, ignore_marks=True)) == ["00000", "00001", "00002", "00003"]
    assert names(chosen(tmp_path, only_kept=True)) == ["00002"]
    append_mark(tmp_path, SampleId(1), None)
    assert len(names(chosen(tmp_path))) == 4


# --- balance ---


@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), max_size=40),
    st.none() | st.integers(1, 6),
    st.integers(0, 3),
)
def test_each_value_has_as_many_as_the_rarest_or_as_are_asked_for(
    values: list[Any], most: int | None, seed: int
) -> None:
    everyone = [candidate(position, value=value) for position, value in enumerate(values)]
    there = Counter(value for value in values if value is not None)
    room = most or min(there.values(), default=0)
    kept = balanced(most, seed, everyone)
    assert Counter(each.value for each in kept) == {value: min(room, n) for value, n in there.items()}
    assert kept == balanced(most, seed, everyone)
    assert [each.position for each in kept] == sorted(each.position for each in kept)


def test_a_balance_is_drawn_by_the_seed(tmp_path: Path) -> None:
    for index in range(40):
        write(tmp_path, index, country="x" if index < 36 else "y")
    drawn = {tuple(names(chosen(tmp_path, balance="country", seed=seed))) for seed in range(5)}
    assert len(drawn) > 1 and all(len(each) == 8 for each in drawn)
    assert not all(each[:4] == ("00000", "00001", "00002", "00003") for each in drawn)


# --- splits ---


def of_photo(photo: str, place: tuple[Any, ...] = ()) -> Candidate:
    return candidate(0, photo=photo, place=place)


members = st.lists(
    st.builds(
        of_photo,
        st.sampled_from("abcdefghij"),
        st.tuples(st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)),
    ),
    min_size=1,
    max_size=40,
)


@given(
    members,
    st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("abcdefghij")), max_size=5),
    st.floats(0.01, 0.9),
    st.sampled_from([None, 2.5]),
    st.integers(0, 5),
)
def test_what_belongs_together_is_never_on_both_sides(
    found: list[Candidate], near: list[tuple[str, str]], share: float, step: float | None, seed: int
) -> None:
    flags = SelectionFlags(validation=share, split_by="x,y", split_step=step, seed=seed)
    try:
        numbers = validation_members(found, near, flags)
    except UsageError:
        return  # all belong together
    assert 0 < len(numbers) < len(found)
    sides = [number in numbers for number in range(len(found))]

    def cell(value: int | None) -> Any:
        return value if step is None or value is None else value // step

    photos: dict[str, set[bool]] = defaultdict(set)
    cells: dict[Any, set[bool]] = defaultdict(set)
    for member, side in zip(found, sides, strict=True):
        photos[member.photo].add(side)
        if member.place != (None, None):
            cells[tuple(map(cell, member.place))].add(side)
    assert all(len(each) == 1 for each in (*photos.values(), *cells.values()))
    assert all(len(photos[one] | photos[other]) < 2 for one, other in near if {one, other} <= photos.keys())


@given(st.integers(20, 200), st.sampled_from([0.05, 0.1, 0.5]), st.integers(0, 3))
def test_validation_has_the_share_that_is_asked_for(number: int, share: float, seed: int) -> None:
    found = [of_photo(f"photo {each}") for each in range(number)]
    flags = SelectionFlags(validation=share, seed=seed)
    chosen_for = validation_members(found, [], flags)
    assert len(chosen_for) == max(1, round(share * number))
    more = [*found, *(of_photo(f"later {each}") for each in range(number // 10))]
    stay = validation_members(more, [], flags) & set(range(number))
    # More photos move few of those that were there.
    assert len(stay - chosen_for) <= max(2, number * share / 5)


def test_a_photo_of_several_rows_and_runs_is_on_one_side(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for index in range(20):
            for rollout in range(2):
                write(tmp_path / folder, index, rollout, photo=f"photo {index // 2}")
    found = chosen([tmp_path / "a", tmp_path / "b"], validation=0.2)
    sides = defaultdict(set)
    for path, split in found.picks.items():
        sides[json.loads(path.read_text())["image"]["file_sha256"]].add(split)
    assert all(len(each) == 1 for each in sides.values())
    assert sum(split == VALIDATION for split in found.picks.values()) == 16


def test_a_split_by_place_keeps_countries_or_cells_whole(tmp_path: Path) -> None:
    for index in range(60):
        write(tmp_path, index, country=f"c{index % 6}", x=float(index), y=1.0)

    def sides(**splitting: Any) -> dict[str, set[Any]]:
        found: dict[str, set[Any]] = defaultdict(set)
        for path, split in chosen(tmp_path, validation=0.2, **splitting).picks.items():
            data = json.loads(path.read_text())["sample_data"]
            found[split].add(data["country"] if splitting["split_by"] == "country" else data["x"] // 10)
        return found

    for splitting in ({"split_by": "country"}, {"split_by": "x, y", "split_step": 10.0}):
        found = sides(**splitting)
        assert found["validation"] and not found["validation"] & found["train"]
    with pytest.raises(UsageError, match="no column 'contry'; did you mean country"):
        sides(split_by="contry")
    with pytest.raises(UsageError, match="all traces belong together"):
        sides(split_by="y")


# --- near-duplicates ---


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=20),
    st.lists(st.tuples(st.integers(0, 19), st.sets(st.integers(0, 63), max_size=12)), max_size=20),
    st.integers(0, 10),
)
def test_pairs_are_those_that_differ_in_few_bits(
    numbers: list[int], flips: list[tuple[int, set[int]]], distance: int
) -> None:
    for position, bits in flips:
        if numbers:
            number = numbers[position % len(numbers)]
            numbers.append(number ^ sum(1 << bit for bit in bits))
    unique = sorted(set(numbers))
    expected = {
        (one, other)
        for one in unique
        for other in unique
        if one < other and (one ^ other).bit_count() <= distance
    }
    found = list(near_pairs(numbers, distance))
    assert set(found) == expected and len(found) == len(expected)


def photos() -> list[bytes]:
    """A photo, it smaller, it badly compressed; another one; that one larger."""
    one, other = smooth(320, 240), ImageOps.flip(ImageOps.invert(smooth(320, 240)))
    one.paste(noise(100, 80, seed=1).resize((160, 120)), (10, 100))
    other.paste(noise(9, 7, seed=2).resize((200, 180)), (90, 20))
    return [
        file_bytes(one), file_bytes(one.resize((160, 120))), file_bytes(one, quality=20), file_bytes(other),
        file_bytes(other.resize((640, 480))),
    ]  # fmt: skip


def run(folder: Path, pictures: Sequence[bytes], **columns: Sequence[Any]) -> Path:
    """Traces of these photos, answered at once."""
    rows = [
        row(picture, **{name: cells[number] for name, cells in columns.items()})
        for number, picture in enumerate(pictures)
    ]

    features = {name: datasets.Value("string") for name in columns}
    dataset = saved(folder / "photos", rows, features)

    def script(request: Mapping[str, Any]) -> Any:
        return says("ok") if is_probe(request) else says("\\boxed{48.5, 2.25}")

    with ScriptedTeacher(script) as teacher:
        flags = ["--dataset_path", dataset, "--output_dir", folder / "traces", "--num_samples", 0]
        asked = ["run", "--api_base", teacher.api_base, *flags, "--tool_mode", "text", "--quiet"]
        assert main([str(each) for each in asked]) == 0
    return folder / "traces"


def add_rollout(path: Path, rollout: int, score: float) -> Path:
    """The same trace as a later rollout of its row, with another reward."""
    trace = json.loads(path.read_text(encoding="utf-8"))
    sample_id = SampleId(trace["sample_index"], rollout)
    trace = {name: value for name, value in trace.items() if name != "integrity_sha256"}
    trace |= sample_id.as_json() | {"reward_score": {**trace["reward_score"], "score": score}}
    trace["integrity_sha256"] = json_sha256(trace)
    later = path.with_name(trace_name(sample_id))
    later.write_text(json.dumps(trace), encoding="utf-8")
    return later


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run(tmp_path_factory.mktemp("seen"), photos(), country=["x", "x", "y", "y", "z"])
    add_rollout(folder / "trace_00000.json", 1, 0.25)
    return folder


@pytest.mark.parametrize(("text", "bits"), [("4", 4), ("4.0", 4), ("1e1", 10), ("32", 32)])
def test_a_number_of_bits_may_be_written_in_any_way(text: str, bits: int) -> None:
    _, flags = read_command(["export", "traces", "--format", "trl", "--near_bits", text])
    assert repr(flags.selection.near_bits) == str(bits)


def test_of_near_duplicates_the_largest_photo_stays_with_all_its_rollouts(seen: Path) -> None:
    found = chosen(seen, near_duplicates="drop")
    assert names(found) == ["00000", "00000_r1", "00004"]
    assert counts(found)[-1] == ("--near_duplicates drop --near_bits 4", 6, 3)


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_are_on_one_side_where_that_is_asked_for(seen: Path, seed: int) -> None:
    together = "together"
    found = chosen(seen, near_duplicates=together, validation=0.3, seed=seed)
    sides = dict(zip(names(found), found.picks.values(), strict=True))
    assert sides["00003"] == sides["00004"] != sides["00000"] == sides["00001"] == sides["00002"]


def test_photos_are_compared_by_a_package_that_may_be_missing(
    seen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distil.exports.near_duplicates.find_spec", lambda name: None)
    assert export(seen, tmp_path / "out", "--format", "trl", "--near_duplicates", "drop", expected=2)
    assert "pip install 'distil[export]'" in capsys.readouterr().err


# --- all together ---


def export(traces: Path, out: Path, *flags: object, expected: int = 0) -> Path:
    assert main(["export", str(traces), "--out", str(out), *map(str, flags)]) == expected
    return out


def test_filters_work_in_one_order_and_are_counted(tmp_path: Path) -> None:
    for index in range(8):
        for rollout in range(3):
            write(tmp_path, index, rollout, score=rollout / 2, country="a" if index < 6 else "b")
    write(tmp_path, 8, stop="max_turns")
    append_mark(tmp_path, SampleId(0, 2), "drop")
    found = chosen(
        tmp_path, where="score > 0", pass_rate="0.1..0.9", accept="score = 1", best_of=1,
        max_per_sample=1, balance="country", validation=0.25,
    )  # fmt: skip
    assert counts(found) == [
        ("not marked drop", 25, 24),
        ("with an answer", 24, 23),
        ("--where score > 0", 23, 15),
        ("--pass_rate 0.1..0.9 --accept score = 1", 15, 15),
        ("--best_of 1", 15, 8),
        ("--max_per_sample 1", 8, 8),
        ("--balance country", 8, 4),
    ]
    assert sum(split == VALIDATION for split in found.picks.values()) == 1


def test_rows_are_shuffled_by_the_seed_and_else_stay_in_order(tmp_path: Path) -> None:
    for index in range(20):
        write(tmp_path, index)
    in_order = names(chosen(tmp_path))
    shuffled = names(chosen(tmp_path, shuffle=True, seed=1))
    assert in_order == sorted(in_order) == sorted(shuffled) != shuffled
    assert shuffled == names(chosen(tmp_path, shuffle=True, seed=1))
    assert shuffled != names(chosen(tmp_path, shuffle=True, seed=2))


def test_more_folders_than_one_index_takes_are_exported_together(tmp_path: Path) -> None:
    folders = [tmp_path / f"run{number:02d}" for number in range(12)]
    for folder in folders:
        write(folder, 0)
    assert len(chosen(folders).picks) == 12
    assert len(chosen(folders, best_of=1).picks) == 1
    with pytest.raises(UsageError, match="at most 10 folders"):
        chosen(folders, where="score = 1")


def test_a_file_that_cannot_be_read_is_refused_whatever_is_asked_for(
    seen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, photos()[:2])
    (folder / "trace_00007.json").write_text("{half")
    out = export(
        folder, tmp_path / "out", "--format", "trl", "--where", "sample_index = 1", "--best_of", 1, expected=1
    )
    assert "trace_00007.json: refused" in capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    assert card["rows"] == {"train": 1} and sum(card["refused_by_reason"].values()) == 1


def test_a_dry_run_says_what_each_filter_leaves_and_writes_nothing(
    seen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--format", "trl", "--best_of", 1, "--where", "sample_index < 3", "--validation", 0.3)
    export(seen, tmp_path / "out", *flags, "--dry_run")
    said = capsys.readouterr().out
    assert "4 of 6 traces: --where sample_index < 3" in said and "3 of 4 traces: --best_of 1" in said
    assert "2 train, 1 validation traces would be exported; nothing is written" in said
    export(seen, tmp_path / "out", *flags, "--dry_run", "--json")
    given_back = json.loads(capsys.readouterr().out)
    assert given_back["picked"] == {"train": 2, "validation": 1}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--pass_rate", "0.2..0.8"), '--pass_rate: say what passes, as --accept "score > 0.8"'),
        (("--accept", "score > 0.8"), "--accept says what passes for --pass_rate"),
        (("--pass_rate", "0.8..0.2", "--accept", "1"), "use LOW..HIGH"),
        (("--balance_max", 3), "--balance_max: say which column"),
        (("--balance", "contry"), "there is no column 'contry'; did you mean country?"),
        (("--only_kept", "--ignore_marks"), "cannot both be"),
        (("--split_by", "country"), "--split_by: say how much is for validation"),
        (("--validation", 0.2, "--split_step", 5), "--split_step: say of which columns"),
        (("--validation", 1.5), "must be a share between 0 and 1"),
        (("--near_duplicates", "together"), "there is nothing to split"),
        (("--only_kept",), "no trace is left to export of 6: --only_kept: 0"),
        (("--where", "score > 2"), "no trace is left to export of 6"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    flags: tuple[object, ...], said: str, seen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        export(seen, tmp_path / "out", "--format", "trl", *flags, expected=2)
    except SystemExit as error:
        assert error.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_writes_both_splits_as_its_trainer_takes_them(
    name: str, seen: Path, tmp_path: Path
) -> None:
    out = export(seen, tmp_path / "out", "--format", name, "--validation", 0.3)
    manifest = json.loads((out / "export.json").read_text())
    assert manifest["counts"]["rows"] == {"train": 4, "validation": 2}
    page = (out / "README.md").read_text()
    if name == "llamafactory":
        info = json.loads((out / "dataset_info.json").read_text())
        assert [info[f"distil_{split}"]["file_name"] for split in ("train", "validation")] == [
            "train.jsonl",
            "validation.jsonl",
        ]
        assert "eval_dataset: distil_validation" in (out / "train.yaml").read_text()
    elif name == "trl":
        assert "('train', 'validation')" in (out / "train.py").read_text()
    elif name == "hf":
        found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in found.items()} == {"train": 4, "validation": 2}
    else:
        wanted = {"verl": "data.val_files=", "ms_swift": "--val_dataset", "openai": "validation.jsonl"}
        assert wanted[name] in page
    suffix = {"trl": "parquet", "verl": "parquet"}.get(name, "jsonl")
    assert name == "hf" or (out / f"validation.{suffix}").stat().st_size > 0
