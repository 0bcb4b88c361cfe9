"""A student without weights: the processor of Qwen3-VL or Qwen2.5-VL, and a tiny model of the family.

    python student.py qwen3_vl|qwen2_5_vl FOLDER

is run by the interpreter of the environment `trl`. The vocabulary is Qwen's own, from the wheel of dashscope, the chat
template TRL's copy of the student's, byte for byte: TRL knows a template by comparing texts.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [  # from id 151643 on
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
PLAIN = [  # one token each, but not special: they stay when a text is decoded without special tokens
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
]
NUM_IDS = 151936  # with padding, as the real models have it
PATCH_PX = {"qwen3_vl": 16, "qwen2_5_vl": 14}
CLASSES = {"qwen3_vl": "Qwen3VL", "qwen2_5_vl": "Qwen2_5_VL"}
WIDTH = 16  # of the tiny model


def make_student(family: str, folder: Path) -> None:
    """Write processor and config into a new folder."""
    folder.mkdir(parents=True)
    tokenizer(Path(package_folder("dashscope")) / "resources" / "qwen.tiktoken").save(
        str(folder / "tokenizer.json")
    )
    shutil.copy(
        Path(package_folder("trl")) / "chat_templates" / f"{family}.jinja", folder / "chat_template.jinja"
    )
    files = {
        "tokenizer_config.json": tokenizer_config(family),
        "preprocessor_config.json": picture_config(family),
        "video_preprocessor_config.json": video_config(family),
        "config.json": model_config(family),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def package_folder(name: str) -> str:
    """Where a package lies, without importing it."""
    found = importlib.util.find_spec(name)
    assert found is not None and found.submodule_search_locations, name
    return found.submodule_search_locations[0]


def tokenizer(vocabulary: Path) -> Tokenizer:
    """The byte-level BPE tokenizer of a vocabulary whose lines are a token in base64 and its rank."""
    ranks = {}
    for line in vocabulary.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = letters_of_bytes()
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [pair_of(token, ranks) for token in ranks if len(token) > 1]
    made = Tokenizer(
        models.BPE(
            vocab={written[token]: rank for token, rank in ranks.items()},
            merges=[(written[left], written[right]) for left, right in merges],
        )
    )
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN])
    return made


def letters_of_bytes() -> dict[int, str]:
    """The visible letter that stands for each byte in a byte-level vocabulary."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + at) for at, byte in enumerate(others)}


def pair_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that the last merge joins to this one."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(parts[at] + parts[at + 1], len(ranks)) for at in range(len(parts) - 1)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def tokenizer_config(family: str) -> dict[str, object]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": f"{CLASSES[family]}Processor",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 262144,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }


def picture_config(family: str) -> dict[str, object]:
    # The limits of the real processors: 256 KiPx to 16 MiPx, and 56² to 3584² pixels.
    least, most = (65536, 16777216) if family == "qwen3_vl" else (3136, 12845056)
    mean, deviation = [0.5] * 3, [0.5] * 3
    if family == "qwen2_5_vl":
        mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": f"{CLASSES[family]}Processor",
        "size": {"shortest_edge": least, "longest_edge": most},
        "patch_size": PATCH_PX[family],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": mean,
        "image_std": deviation,
    }


def video_config(family: str) -> dict[str, object]:
    kind = "Qwen3VLVideoProcessor" if family == "qwen3_vl" else "Qwen2VLVideoProcessor"
    pictures = picture_config(family)
    kept = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "processor_class")
    return {"video_processor_type": kind, **{name: pictures[name] for name in kept}}


def model_config(family: str) -> dict[str, object]:
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": NUM_IDS,
        "max_position_embeddings": 262144,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "patch_size": PATCH_PX[family],
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 2304}
    else:
        vision |= {"fullatt_block_indexes": [0], "window_size": 112}
        text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 1, 1]}
    ids = {
        name: 151643 + SPECIAL.index(f"<|{name}|>")
        for name in ("vision_start", "vision_end", "image_pad", "video_pad")
    }
    return {
        "model_type": family,
        "architectures": [f"{CLASSES[family]}ForConditionalGeneration"],
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
        "tie_word_embeddings": True,
        "text_config": {"model_type": f"{family}_text"} | text,
        "vision_config": {"model_type": family if family == "qwen3_vl" else f"{family}_vision"} | vision,
    }


if __name__ == "__main__":
    make_student(sys.argv[1], Path(sys.argv[2]))
