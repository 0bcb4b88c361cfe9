"""What a run came to: added up as its samples end, kept in its record, shown at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from distil.records import Json, Outcome
from distil.spending.estimate import Measured
from distil.store.summary import Totals, TraceSummary
from distil.teacher.climber import LevelState


@dataclass
class RunTotals:
    """What a run came to; memory does not grow with its samples but by 16 bytes each (see `Totals`)."""

    folder: Path
    num_skipped: int  # that had a trace already
    measured: Measured
    level: LevelState
    whole: Totals = field(default_factory=Totals)  # of the folder: what was there already, and this run's
    traces: Totals = field(default_factory=Totals)  # of this run
    stopped_by: str | None = None  # the limit, or the worthless samples, that ended the run early
    models: Mapping[str, int] = field(default_factory=dict)  # replies by the name that they give their model
    warnings: Sequence[str] = ()  # what is suspicious

    def add(self, outcome: Outcome[TraceSummary]) -> None:
        """Count a sample that ended."""
        if outcome.result is not None:
            self.traces.add(outcome.result)
            self.whole.add(outcome.result)
            self.measured.add(outcome.result.seconds, outcome.result.billed_tokens, outcome.result.cost_usd)
        self.measured.num_failed += outcome.failure is not None
        self.stopped_by = self.stopped_by or outcome.stopped

    def as_dict(self) -> dict[str, Json]:
        """The totals as the run record keeps them."""
        return {
            "seconds": round(self.measured.seconds, 3),
            "num_finished": self.traces.num_traces,
            "num_failed": self.measured.num_failed,
            "spent": asdict(self.measured.spent_after),
            "stopped_by": self.stopped_by,
            "requests_at_once": self.level.as_dict(),
            "models": dict(self.models),
            "warnings": list(self.warnings),
        }
