"""Tokens as servers report them, how few of them can be, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial

from distil.records import Json, Size, mapping_of

_MILLION = 1_000_000
_MAX_COUNT = 10**12  # what is more is no figure: it would use up any budget, and floats cannot hold its cost
# English has four to five characters a token; JSON, code and other scripts have fewer. The thriftiest
# teachers take 64 tokens for a picture, those that count pixels fewer for a tiny one (a token for 28×28 or
# 32×32 of them, as it is sent).
_MAX_CHARS_PER_TOKEN = 5
_MIN_PICTURE_TOKENS = 64
_MAX_PX_PER_TOKEN = 48 * 48

PICTURES_DROPPED = "the server seems to drop pictures: a text-only model, or a wrong chat template"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one request or of many; None where the server did not report them, never 0."""

    prompt: int | None = None
    cached: int | None = None  # of the prompt
    completion: int | None = None
    reasoning: int | None = None  # of the completion

    @property
    def total(self) -> int | None:
        """Prompt and completion, None where either is not known."""
        return None if self.prompt is None or self.completion is None else self.prompt + self.completion

    @property
    def known(self) -> int:
        """Prompt and completion as far as they are known."""
        return (self.prompt or 0) + (self.completion or 0)


CostUsd = Callable[[Tokens], float | None]  # what tokens cost, None where it cannot be known


@dataclass(frozen=True, slots=True)
class FixedPrices:
    """USD per million tokens, as `--price_per_million` states them."""

    input_usd: float
    output_usd: float
    cached_usd: float

    def __str__(self) -> str:
        return f"{self.input_usd},{self.output_usd},{self.cached_usd}"  # what `parse_prices` reads

    def cost_usd(self, tokens: Tokens) -> float | None:
        if tokens.prompt is None or tokens.completion is None:
            return None
        cached = tokens.cached or 0
        total = (tokens.prompt - cached) * self.input_usd + cached * self.cached_usd
        return (total + tokens.completion * self.output_usd) / _MILLION


def parse_prices(text: str) -> FixedPrices:
    """Read `IN,OUT` or `IN,OUT,CACHED_IN`, USD per million tokens; raises ValueError."""
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) not in (2, 3) or not all(0 <= number < float("inf") for number in numbers):
        raise ValueError("use IN,OUT or IN,OUT,CACHED_IN, USD per million tokens")
    return FixedPrices(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else numbers[0])


def find_prices(fixed: FixedPrices | None, model: str, api_base: str) -> CostUsd | None:
    """The stated prices, else those of the provider at `api_base`, else None."""
    if fixed is not None:
        return fixed.cost_usd
    try:
        import genai_prices  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return None
    cost_usd = partial(_providers_cost_usd, model, api_base)
    return cost_usd if cost_usd(Tokens(prompt=1000, completion=1000)) is not None else None


def _providers_cost_usd(model: str, api_base: str, tokens: Tokens) -> float | None:
    """What the library `genai-prices` says, by the model's name and the server's address."""
    if tokens.prompt is None or tokens.completion is None:
        return None
    from genai_prices import Usage, calc_price  # noqa: PLC0415 - an extra, slow to import

    usage = Usage(
        input_tokens=tokens.prompt, output_tokens=tokens.completion, cache_read_tokens=tokens.cached or 0
    )
    try:
        price = calc_price(usage, model, provider_api_url=api_base)
    except (LookupError, ValueError):
        return None
    return float(price.total_price)


def read_tokens(usage: Mapping[str, Json] | None) -> Tokens:
    """The tokens of a chat completion's `usage`."""
    usage = usage or {}
    prompt = token_count(usage.get("prompt_tokens"))
    cached = token_count(mapping_of(usage.get("prompt_tokens_details")).get("cached_tokens"))
    return Tokens(
        prompt=prompt,
        cached=_part(token_count(usage.get("prompt_cache_hit_tokens")) if cached is None else cached, prompt),
        completion=_completion(usage, prompt),
        reasoning=token_count(mapping_of(usage.get("completion_tokens_details")).get("reasoning_tokens")),
    )


def _completion(usage: Mapping[str, Json], prompt: int | None) -> int | None:
    """All that the teacher wrote; Gemini and xAI count reasoning, which they bill, in the total alone."""
    completion, total = token_count(usage.get("completion_tokens")), token_count(usage.get("total_tokens"))
    if prompt is None or total is None or total <= prompt + (completion or 0):
        return completion
    return total - prompt


def stored_tokens(entry: Mapping[str, Json]) -> Tokens:
    """The tokens of an entry that holds the fields of `Tokens`."""
    tokens = Tokens(*(token_count(entry.get(item.name)) for item in fields(Tokens)))
    return replace(tokens, cached=_part(tokens.cached, tokens.prompt))


def _part(part: int | None, whole: int | None) -> int | None:
    """A part that is larger than its whole is no figure: it would make the rest cost less than nothing."""
    return None if part is not None and whole is not None and part > whole else part


def token_count(value: Json) -> int | None:
    """The number of tokens that a value states, None for what cannot be one."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT
    return value if is_count else None


def fewest_prompt_tokens(texts: Iterable[str], pictures: Iterable[Size]) -> int:
    """Tokens that no teacher goes below for these texts and pictures (sizes in pixels, as sent)."""
    num_chars = sum(len(" ".join(text.split())) for text in texts)
    tokens = [min(_MIN_PICTURE_TOKENS, width * height // _MAX_PX_PER_TOKEN) for width, height in pictures]
    return num_chars // _MAX_CHARS_PER_TOKEN + sum(tokens)
