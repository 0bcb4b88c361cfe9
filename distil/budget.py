"""What a run has spent, over all its resumes, and the limits that it must not pass.

Every answered request is a line in `spending.jsonl`. Before a request leaves, the most that it can come to is
reserved; what is in flight counts as spent until it is answered. So spending passes a limit at most by what
a server bills beyond the reservation of requests that were already sent.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Protocol

from distil.errors import BudgetExceeded, UsageError
from distil.records import Json

SPENDING = "spending.jsonl"
_FIRST_PROMPT_TOKENS = 4_000  # reserved for a prompt before any is known: a photo and the question
_MILLION = 1_000_000
_UNREPORTED = "the server does not report its tokens; use --max_calls"


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


class Prices(Protocol):
    """What tokens cost."""

    def cost_usd(self, tokens: Tokens) -> float | None:
        """The cost in USD, None where it cannot be known."""
        ...


@dataclass(frozen=True, slots=True)
class FixedPrices:
    """USD per million tokens, as `--price_per_million` states them."""

    input_usd: float
    output_usd: float
    cached_usd: float

    def cost_usd(self, tokens: Tokens) -> float | None:
        if tokens.prompt is None or tokens.completion is None:
            return None
        cached = tokens.cached or 0
        total = (tokens.prompt - cached) * self.input_usd + cached * self.cached_usd
        return (total + tokens.completion * self.output_usd) / _MILLION


@dataclass(frozen=True, slots=True)
class ProviderPrices:
    """Prices of the library `genai-prices`, by the model's name and the server's address."""

    model: str
    api_base: str

    def cost_usd(self, tokens: Tokens) -> float | None:
        if tokens.prompt is None or tokens.completion is None:
            return None
        from genai_prices import Usage, calc_price  # noqa: PLC0415 - an extra, slow to import

        usage = Usage(
            input_tokens=tokens.prompt, output_tokens=tokens.completion, cache_read_tokens=tokens.cached or 0
        )
        try:
            price = calc_price(usage, self.model, provider_api_url=self.api_base)
        except (LookupError, ValueError):
            return None
        return float(price.total_price)


def parse_prices(text: str) -> FixedPrices:
    """Read `IN,OUT` or `IN,OUT,CACHED_IN`, USD per million tokens; raises ValueError."""
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) not in (2, 3) or not all(0 <= number < float("inf") for number in numbers):
        raise ValueError("use IN,OUT or IN,OUT,CACHED_IN, USD per million tokens")
    return FixedPrices(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else numbers[0])


def find_prices(fixed: FixedPrices | None, model: str, api_base: str) -> Prices | None:
    """The stated prices, else those of the provider at `api_base`, else None."""
    if fixed is not None:
        return fixed
    try:
        import genai_prices  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return None
    provider = ProviderPrices(model, api_base)
    return provider if provider.cost_usd(Tokens(prompt=1000, completion=1000)) is not None else None


def read_tokens(usage: Mapping[str, Json] | None) -> Tokens:
    """The tokens of a chat completion's `usage`."""
    usage = usage or {}
    cached = _count(_details(usage, "prompt_tokens_details").get("cached_tokens"))
    return Tokens(
        prompt=_count(usage.get("prompt_tokens")),
        cached=_count(usage.get("prompt_cache_hit_tokens")) if cached is None else cached,
        completion=_count(usage.get("completion_tokens")),
        reasoning=_count(_details(usage, "completion_tokens_details").get("reasoning_tokens")),
    )


def _details(usage: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    value = usage.get(name)
    return value if isinstance(value, dict) else {}


def _count(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a run folder, over all its resumes; None for no limit."""

    max_cost_usd: float | None = None
    max_total_tokens: int | None = None
    max_calls: int | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What answered requests came to; the `unknown_…` are requests that do not say."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0
    unknown_tokens: int = 0
    unknown_cost: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, tokens: Tokens, cost_usd: float | None) -> Spent:
        """With one more answered request."""
        return Spent(
            calls=self.calls + 1,
            prompt_tokens=self.prompt_tokens + (tokens.prompt or 0),
            cached_tokens=self.cached_tokens + (tokens.cached or 0),
            completion_tokens=self.completion_tokens + (tokens.completion or 0),
            reasoning_tokens=self.reasoning_tokens + (tokens.reasoning or 0),
            cost_usd=self.cost_usd + (cost_usd or 0.0),
            unknown_tokens=self.unknown_tokens + (tokens.total is None),
            unknown_cost=self.unknown_cost + (cost_usd is None),
        )


class Budget:
    """Counts and bounds a run folder's requests; safe from many threads."""

    def __init__(self, folder: Path, limits: Limits, prices: Prices | None, max_tokens: int) -> None:
        """`max_tokens` is the most that one reply can have. Raises UsageError for a limit without a price."""
        if limits.max_cost_usd is not None and prices is None:
            raise UsageError(
                "--max_cost_usd needs prices, and this model's at this address are not known: state them by "
                "--price_per_million IN,OUT[,CACHED_IN] (providers' prices: pip install -e '.[prices]')"
            )
        self._path = folder / SPENDING
        self._limits, self._prices, self._max_tokens = limits, prices, max_tokens
        self.spent = read_spent(self._path)
        self.has_prices = prices is not None
        self._largest_prompt = _FIRST_PROMPT_TOKENS
        self._in_flight = 0
        self._changed = threading.Condition()

    @contextmanager
    def request(self) -> Iterator[list[Mapping[str, Json] | None]]:
        """Around one request: append its `usage` to the yielded list, or nothing if it was not answered.

        Waits while requests in flight could use up what is left; raises BudgetExceeded when none is in
        flight and one more does not fit.
        """
        self._reserve()
        usages: list[Mapping[str, Json] | None] = []
        try:
            yield usages
        finally:
            with self._changed:
                self._in_flight -= 1
                for usage in usages:
                    self._count(read_tokens(usage))
                self._changed.notify_all()

    def count(self, usage: Mapping[str, Json] | None) -> None:
        """Count a request that was answered outside `request`: the probe."""
        with self._changed:
            self._count(read_tokens(usage))

    def cost_usd(self, tokens: Tokens) -> float | None:
        """What tokens cost, None where it is not known."""
        return None if self._prices is None else self._prices.cost_usd(tokens)

    def _reserve(self) -> None:
        with self._changed:
            while (limit := self._passed_limit()) is not None:
                if self._in_flight == 0:
                    raise BudgetExceeded(limit)
                self._changed.wait()
            self._in_flight += 1

    def _passed_limit(self) -> str | None:
        """Which limit one more request could pass, in words, or None."""
        limits, spent, requests = self._limits, self.spent, self._in_flight + 1
        if limits.max_calls is not None and spent.calls + requests > limits.max_calls:
            return f"--max_calls {limits.max_calls}: {spent.calls} made"
        most = Tokens(prompt=self._largest_prompt, completion=self._max_tokens)
        if limits.max_total_tokens is not None:
            if spent.unknown_tokens:
                return f"--max_total_tokens cannot be kept: {_UNREPORTED}"
            if spent.total_tokens + requests * (most.total or 0) > limits.max_total_tokens:
                return f"--max_total_tokens {limits.max_total_tokens}: {spent.total_tokens} used"
        if limits.max_cost_usd is not None and self._prices is not None:
            if spent.unknown_cost:
                return f"--max_cost_usd cannot be kept: {_UNREPORTED}"
            if spent.cost_usd + requests * (self._prices.cost_usd(most) or 0.0) > limits.max_cost_usd:
                return f"--max_cost_usd {limits.max_cost_usd:g}: {spent.cost_usd:.4f} spent"
        return None

    def _count(self, tokens: Tokens) -> None:
        cost_usd = self.cost_usd(tokens)
        self.spent = self.spent.plus(tokens, cost_usd)
        self._largest_prompt = max(self._largest_prompt, tokens.prompt or 0)
        line = json.dumps(asdict(tokens) | {"cost_usd": cost_usd})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_spent(path: Path) -> Spent:
    """What earlier runs into a folder have spent."""
    spent = Spent()
    if not path.exists():
        return spent
    names = [item.name for item in fields(Tokens)]
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            spent = spent.plus(Tokens(*(entry[name] for name in names)), entry["cost_usd"])
        except (ValueError, KeyError, TypeError):
            # A line that a kill cut off: a request that was answered and whose size is lost.
            spent = replace(spent, calls=spent.calls + 1)
    return spent
