"""Exports that are broken in one place each: what a check has to notice.

A mutation changes rows in a neutral form, whatever the format: the parts of each message, None for a picture.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PLACE = "<image>"
Row = dict[str, Any]
Mutation = Callable[[list[Row]], list[Row]]


# --- rows in neutral form


def read_rows(folder: Path) -> list[Row]:
    """The rows of an export."""
    table = folder / "train.parquet"
    if table.exists():
        rows = pq.read_table(table).to_pylist()
    else:
        lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    for row in rows:
        for message in row["messages"]:
            message["parts"] = _parts(message.pop("content"))
    return rows


def write_rows(folder: Path, rows: list[Row], written_by: Path) -> None:
    """Write rows as those of the export `written_by` are written."""
    table = written_by / "train.parquet"
    schema = pq.read_schema(table) if table.exists() else None
    is_typed = schema is not None and not pa.types.is_string(_content_type(schema))
    for row in rows:
        for message in row["messages"]:
            message["content"] = _content(message.pop("parts"), is_typed)
    if schema is not None:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "train.parquet")
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")


def _content_type(schema: pa.Schema) -> pa.DataType:
    messages = schema.field("messages").type
    return messages.value_type.field("content").type


def _parts(content: Any) -> list[str | None]:
    if isinstance(content, list):
        return [part["text"] if part["type"] == "text" else None for part in content]
    texts = content.split(PLACE)
    return [part for text in texts for part in (None, text)][1:]


def _content(parts: list[str | None], is_typed: bool) -> Any:
    if not is_typed:
        return "".join(PLACE if part is None else part for part in parts)
    return [
        {"type": "image", "text": None} if part is None else {"type": "text", "text": part} for part in parts
    ]


def _of(rows: list[Row], number: int) -> list[Row]:
    """The rows that a trace became."""
    return [row for row in rows if row["id"].partition("#")[0].endswith(f"trace_{number:05d}.json")]


def _assistants(row: Row) -> list[Row]:
    return [message for message in row["messages"] if message["role"] == "assistant"]


# --- mutations


def picture_dropped(rows: list[Row]) -> list[Row]:
    """A picture and its place are gone."""
    for row in _of(rows, 0):
        if len(row["images"]) > 1:
            del row["images"][1]
            parts = next(m["parts"] for m in row["messages"][2:] if None in m["parts"])
            parts.remove(None)
    return rows


def picture_without_place(rows: list[Row]) -> list[Row]:
    """A place is gone, its picture is not."""
    for row in _of(rows, 0):
        if len(row["images"]) > 1:
            next(m["parts"] for m in row["messages"][2:] if None in m["parts"]).remove(None)
    return rows


def place_without_picture(rows: list[Row]) -> list[Row]:
    """A picture is gone, its place is not."""
    for row in _of(rows, 0):
        del row["images"][-1]
    return rows


def pictures_swapped(rows: list[Row]) -> list[Row]:
    """Two pictures stand in each other's place."""
    for row in _of(rows, 0):
        row["images"][:2] = row["images"][:2][::-1]
    return rows


def place_in_text(rows: list[Row]) -> list[Row]:
    """A turn's text holds the word that stands for a picture."""
    for row in _of(rows, 3):
        _assistants(row)[0]["parts"].insert(0, f"{PLACE} ")
    return rows


def wrong_turn_trained(rows: list[Row]) -> list[Row]:
    """The turn with the failed call is trained."""
    its = _of(rows, 1)
    for row in its:
        for message in _assistants(row):
            if "loss" in message:
                message["loss"] = True
    if not any(
        "loss" in message for row in its for message in row["messages"]
    ):  # a row for each trained turn
        longest = copy.deepcopy(its[-1])
        ends = [at for at, message in enumerate(longest["messages"]) if message["role"] == "assistant"]
        del longest["messages"][ends[1] + 1 :]
        longest["images"] = longest["images"][: sum(m["parts"].count(None) for m in longest["messages"])]
        rows.append(longest)
    return rows


def turn_not_trained(rows: list[Row]) -> list[Row]:
    """A turn that is to be trained is not."""
    its = _of(rows, 1)
    for row in its:
        message = _assistants(row)[0]
        if "loss" in message:
            message["loss"] = False
    if not any("loss" in message for row in its for message in row["messages"]):
        rows.remove(its[0])
    return rows


def special_word_unescaped(rows: list[Row]) -> list[Row]:
    """What a teacher wrote is a command again."""
    for row in _of(rows, 2):
        for message in row["messages"]:
            message["parts"] = [
                part and part.replace("<\N{ZERO WIDTH SPACE}", "<") for part in message["parts"]
            ]
    return rows


def answer_cut(rows: list[Row]) -> list[Row]:
    """The last turn's end is missing."""
    for row in _of(rows, 5):
        parts = row["messages"][-1]["parts"]
        parts[-1] = parts[-1][: len(parts[-1]) // 2]
    return rows


def call_changed(rows: list[Row]) -> list[Row]:
    """A box is another."""
    for row in _of(rows, 0):
        parts = _assistants(row)[0]["parts"]
        parts[-1] = parts[-1].replace("[1", "[2", 1)
        assert "[2" in parts[-1]
    return rows


def row_lost(rows: list[Row]) -> list[Row]:
    """A trace is not there."""
    return [row for row in rows if row not in _of(rows, 4)]


MUTATIONS: dict[str, tuple[Mutation, int]] = {  # and the trace that each is about
    mutation.__name__: (mutation, number)
    for mutation, number in (
        (picture_dropped, 0),
        (picture_without_place, 0),
        (place_without_picture, 0),
        (pictures_swapped, 0),
        (call_changed, 0),
        (wrong_turn_trained, 1),
        (turn_not_trained, 1),
        (special_word_unescaped, 2),
        (place_in_text, 3),
        (row_lost, 4),
        (answer_cut, 5),
    )
}


def broken(export: Path, folder: Path, mutation: Mutation) -> Path:
    """A copy of an export with a mutation."""
    rows = mutation(read_rows(export))
    assert rows != read_rows(export), f"{mutation.__name__} changed nothing"
    return written_anew(export, folder, rows)


def written_anew(export: Path, folder: Path, rows: list[Row]) -> Path:
    """A copy of an export with other rows."""
    shutil.copytree(export, folder)
    write_rows(folder, rows, export)
    return folder


def with_strip(export: Path, folder: Path) -> Path:
    """A copy of an export in which a picture is a strip of 300:1."""
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 10), "red").save(buffer, "JPEG")

    def strip(rows: list[Row]) -> list[Row]:
        for row in _of(rows, 5):
            if isinstance(row["images"][0], dict):
                row["images"][0] = {"bytes": buffer.getvalue(), "path": None}
            else:
                row["images"][0] = str(folder / "strip.jpg")
        return rows

    broken(export, folder, strip)
    (folder / "strip.jpg").write_bytes(buffer.getvalue())
    return folder
