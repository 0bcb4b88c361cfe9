r"""A question about a picture with one short answer: the row asks, `\boxed{…}` answers, exact match."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from distil.errors import SampleError
from distil.records import Json, Score
from distil.tasks.base import ColumnNames, Metric, Rows, Task, choose_columns
from distil.tasks.boxed import stated_answers

USER_PROMPT = """\
{question}

Look closely: what matters may be small, or turned.
Give your final answer, as short as it can be, in this form:
\\boxed{answer}"""

_GUESSED: Mapping[str, ColumnNames] = {
    "question": (
        ("question",),
        re.compile(r"question|query|problem|instruction|prompt|user"),
        "'question'",
    ),
    "answer": (("answer", "answers"), re.compile(r"answers?|groundtruth|solution|target"), "'answer'"),
}
_TEX_WORD = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|rm|bf)\b")
_TEX_SIGN = re.compile(r"\\([%#&_])|\\?[${}]|\\[,;:! ]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_ARTICLE = re.compile(r"^(?:an?|the) (?=.)")
_OUTER = " \t\n\r.,;:!?'\"`´‘’“”«»()[]"


def _match_rows(matches: Sequence[float], num_traces: int) -> Rows:
    right = sum(match == 1 for match in matches)
    return {"answered right": f"{right} of {num_traces} ({right / num_traces:.0%})"}


EXACT_MATCH = Metric(
    name="exact_match",
    heading="right",
    cell="{:.0f}",
    label="exact match",
    text="{:.0f}",
    over_many=_match_rows,
    worst=0.0,
)


@dataclass(frozen=True)
class VisualQuestions(Task):
    """Visual question answering: any rows with a picture, a question and its answer."""

    name: str = "vqa"
    user_prompt: str = USER_PROMPT
    metrics: tuple[Metric, ...] = (EXACT_MATCH,)
    fields: tuple[str, ...] = tuple(_GUESSED)
    needed_in_prompt: tuple[str, ...] = ("question",)
    drawn_data: str | None = "scenes"
    passed: str | None = EXACT_MATCH.name
    difficulty: str | None = "difficulty"

    def choose_columns(self, columns: Collection[str], asked: Mapping[str, str]) -> Mapping[str, str]:
        """The columns of question and answer, but for those that are read without being told."""
        return choose_columns(_GUESSED, columns, asked)

    def prompt_fields(self, row: Mapping[str, Json]) -> Mapping[str, str]:
        """The row's question; raises SampleError."""
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise SampleError(f"column 'question' is no text: {question!r}")
        return {"question": question.strip()}

    def truth(self, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """The answers that count, the first of them the usual one; raises SampleError where there is none."""
        column = next((name for name in ("answer", "answers") if name in row), None)
        if column is None:
            raise SampleError("the row has no column 'answer'")
        value = row[column]
        texts = [_plain_text(each) for each in (value if isinstance(value, list) else [value])]
        answers = list(dict.fromkeys(text for text in texts if text))
        if not answers:
            raise SampleError(f"column {column!r} holds no text or number: {value!r}")
        return {"answer": answers[0]} | ({"others": answers[1:]} if answers[1:] else {})

    def parse_answer(self, response: str) -> Mapping[str, Json] | None:
        r"""The last `\boxed{…}` that is not empty, else the last `<answer>…</answer>`."""
        for bodies in stated_answers(response):
            filled = [body.strip() for body in bodies if body.strip()]
            if filled:
                return {"answer": filled[-1]}
        return None

    def score(self, answer: Mapping[str, Json] | None, truth: Mapping[str, Json]) -> Score:
        """1.0 for an answer that is one of those that count, both normalised, else 0.0."""
        right = answer is not None and normalised(answer["answer"]) in {
            normalised(each) for each in (truth["answer"], *truth.get("others", ()))
        }
        return Score(float(right), answer is not None, {EXACT_MATCH.name: float(right)})

    def text(self, value: Mapping[str, Json]) -> str:
        answer, others = value.get("answer"), value.get("others")
        if not isinstance(answer, str):
            return "not stated"
        return " / ".join([answer, *map(str, others)]) if isinstance(others, list) else answer

    def reward_text(self, value: float) -> str:
        return "1 (right)" if value == 1 else f"{value:g}"


VQA = VisualQuestions()


def normalised(answer: str) -> str:
    """An answer as it is compared: width, case, TeX, outer punctuation, an article and white space aside.

    A number is one however it is written: `1,200`, `1200.0` and `１２００` are the same.
    """
    text = unicodedata.normalize("NFKC", answer)
    text = _TEX_SIGN.sub(lambda match: match[1] or " ", _TEX_WORD.sub(" ", text))
    text = " ".join(text.casefold().strip(_OUTER).split())
    text = _ARTICLE.sub("", text)
    return _number(text) or text


def _number(text: str) -> str | None:
    """A number in its shortest form, None for anything else."""
    if not re.fullmatch(r"[+-]?(?:0|[1-9][\d,]{0,30})(?:\.\d{0,30})?", text):
        return None  # nor is what has zeros in front: a code, not an amount
    try:
        value = Decimal(_THOUSANDS.sub("", text))
    except InvalidOperation:
        return None
    return f"{value:f}".rstrip("0").rstrip(".") if "." in f"{value:f}" else f"{value:f}".lstrip("+")


def _plain_text(value: Json) -> str | None:
    """A text or a number of a row as a text, None for what is neither or empty."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return text.strip() or None
