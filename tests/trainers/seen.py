"""What a student gets of a row: for the loaders, which the trainers' own interpreters run.

A loader is a process that reads a job a line and writes an answer a line, both JSON:

    {"student": FOLDER, "settings": {…}, …}  →  {"rows": [ROW, …], "warnings": TEXT}  or  {"error": "ValueError: …"}

A ROW has `id`, `text` (decoded, each picture one `<|image_pad|>`), `trained` (decoded spans that the loss is on),
`num_tokens`, `num_pads` of each picture in the text, and `pictures` with size in pixels and look as the model gets them.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import io
import json
import logging
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

LOOK_SIDE = 8  # a picture's look: mean colours of so many fields across and down
PAD, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
_KEPT: list[Any] = []  # what must live as long as the process

Job = dict[str, Any]
Row = dict[str, Any]


def prepare_imports() -> None:
    """Before a trainer is imported: no network, and what it imports but the data code does not use.

    What trainers print, at import as well, goes to stderr; answers alone go to stdout.
    """
    _KEPT.append(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    torch.set_num_threads(1)
    try:
        import torchvision  # noqa: F401
    except (
        RuntimeError
    ):  # a CUDA build beside a CPU torch: its Python half asks for operators of its C++ half
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    sound = types.ModuleType("torchaudio")
    sound.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = sound
    _save_seconds()


def _save_seconds() -> None:
    """Read each tokenizer once, and give mapped rows names by chance: a hash of a tokenizer takes seconds."""
    import datasets.arrow_dataset
    import datasets.fingerprint
    import transformers

    for kind in (transformers.AutoTokenizer, transformers.AutoProcessor):
        kind.from_pretrained = _remembered(kind.from_pretrained)

    def by_chance(*_: Any) -> str:
        return datasets.fingerprint.generate_random_fingerprint()

    datasets.fingerprint.update_fingerprint = by_chance
    datasets.arrow_dataset.update_fingerprint = by_chance


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    made: dict[str, Any] = {}

    def remembered(*args: Any, **options: Any) -> Any:
        key = repr((args, sorted(options.items())))
        if key not in made:
            made[key] = function(*args, **options)
        return made[key]

    return remembered


def serve(load: Callable[[Job], list[Row]]) -> None:
    """Answer jobs until there are no more."""
    answers = _KEPT[0]
    for line in sys.stdin:
        answers.write(json.dumps(_answer(load, json.loads(line))) + "\n")
        answers.flush()


def _answer(load: Callable[[Job], list[Row]], job: Job) -> dict[str, Any]:
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stderr(_Both(log)):
            return {"rows": load(job), "warnings": log.getvalue()}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}", "warnings": log.getvalue()}
    finally:
        logging.getLogger().removeHandler(handler)


class _Both(io.TextIOBase):
    """Standard error, kept as well."""

    def __init__(self, kept: io.StringIO) -> None:
        self._kept = kept

    def write(self, text: str) -> int:
        self._kept.write(text)
        return sys.__stderr__.write(text) if sys.__stderr__ else len(text)

    def flush(self) -> None:
        if sys.__stderr__:
            sys.__stderr__.flush()


def row_seen(
    row_id: str, processor: Any, ids: Sequence[int], is_trained: Sequence[bool], pictures: dict[str, Any]
) -> Row:
    """What the student gets: `pictures` holds `pixel_values` and `image_grid_thw` where there are any."""
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = [int(token) for token in ids]
    pad = tokenizer.convert_tokens_to_ids(PAD)
    runs = [(token, len(list(group))) for token, group in groupby(ids)]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return {
        "id": row_id,
        "text": re.sub(f"(?:{re.escape(PAD)})+", PAD, text),
        "trained": trained_spans(tokenizer, ids, is_trained),
        "num_tokens": len(ids),
        "num_pads": [length for token, length in runs if token == pad],
        "pictures": looks(processor.image_processor, pictures),
    }


def trained_spans(tokenizer: Any, ids: Sequence[int], is_trained: Sequence[bool]) -> list[str]:
    """The decoded stretches of tokens that the loss is on."""
    spans = []
    for trained, group in groupby(zip(ids, is_trained, strict=True), key=lambda pair: bool(pair[1])):
        if trained:
            spans.append(tokenizer.decode([token for token, _ in group], skip_special_tokens=False))
    return spans


def looks(image_processor: Any, pictures: dict[str, Any]) -> list[dict[str, Any]]:
    """Size and look of each picture, its patches put together again and the normalisation undone."""
    if pictures.get("image_grid_thw") is None:
        return []
    found, start = [], 0
    for grid in pictures["image_grid_thw"].tolist():
        end = start + grid[0] * grid[1] * grid[2]
        found.append(_look(image_processor, pictures["pixel_values"][start:end], grid))
        start = end
    assert start == len(pictures["pixel_values"]), "patches that belong to no picture"
    return found


def _look(image_processor: Any, patches: Any, grid: list[int]) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    patch, merge, frames = (
        image_processor.patch_size,
        image_processor.merge_size,
        image_processor.temporal_patch_size,
    )
    _, rows, columns = grid
    parts = (
        patches.float()
        .numpy()
        .reshape(rows // merge, columns // merge, merge, merge, 3, frames, patch, patch)
    )
    planes = parts[:, :, :, :, :, 0].transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
    values = planes * np.asarray(image_processor.image_std) + np.asarray(image_processor.image_mean)
    picture = Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))
    return {"width_px": picture.width, "height_px": picture.height, "look": look_of(picture)}


def look_of(picture: Any) -> list[int]:
    """The mean colours of a picture's fields, row by row."""
    from PIL import Image

    small = picture.convert("RGB").resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BOX)
    return list(small.tobytes())
