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
class RowTotals:
    """What the rollouts of a run's rows came to, over all runs into the folder."""

    num_rows: int
    num_each: int  # rollouts that a row may have
    num_done: int  # rollouts that have their trace
    enough: int  # accepted traces that a row is to have
    target: int | None  # accepted traces that the run is to have
    condition: str | None  # which are accepted
    num_accepted: int = 0
    num_rows_enough: int = 0
    num_not_needed: int = 0  # rollouts that are not asked, as enough are accepted

    @property
    def misses_target(self) -> bool:
        """Whether there are fewer accepted traces than there were to be."""
        return self.target is not None and self.num_accepted < self.target

    def as_dict(self) -> dict[str, Json]:
        """As the run record keeps them."""
        accepted = {"num_accepted": self.num_accepted, "num_rows_enough": self.num_rows_enough}
        return {
            "num_rows": self.num_rows,
            **(accepted if self.condition is not None else {}),
            "num_not_needed": self.num_not_needed,
        }


@dataclass(frozen=True)
class AimTotals:
    """What a run came to that aims at a target, over all runs into the folder."""

    target: float
    num_samples: int  # rollouts that there are to be
    num_drawn: int  # rows
    num_counted: int  # rows of which something came
    reached: float | None
    column: str  # the bins are by
    why_missed: str | None  # None where the target is reached

    def as_dict(self) -> dict[str, Json]:
        """As the run record keeps them."""
        aim = asdict(self)
        return {"num_samples": aim.pop("num_samples"), "aim": aim}


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
    aim: AimTotals | None = None  # where the run aims at a target
    rows: RowTotals | None = None  # where a row may have several rollouts, or some are accepted
    without_tools: RunTotals | None = None  # what the rows that are asked without tools too came to

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
            **(self.rows.as_dict() if self.rows is not None else {}),
            **(self.aim.as_dict() if self.aim is not None else {}),
        }
