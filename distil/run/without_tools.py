"""Each row asked once more in one turn without tools: beside the others' scores it says what tools gain.

These traces have other settings, so they lie in a folder of their own within the run's, which is such a
folder as a run without tools makes: it is verified, shown and gone on with like any other. What they take is
counted with all else in the run's folder.
"""

from __future__ import annotations

from dataclasses import replace

from distil.records import SampleId, ToolMode
from distil.run.schedule import WithoutTools
from distil.run.solver import RolloutSolver
from distil.store.claim import Claim
from distil.store.folder import WITHOUT_TOOLS, RunFolder
from distil.store.summary import TraceSummary


def solver_without_tools(solver: RolloutSolver) -> RolloutSolver:
    """What asks the teacher of a run's solver without tools, into its folder's `without_tools`.

    Raises UsageError where that cannot be written, or another run writes to it.
    """
    plan, folder = solver.plan, solver.folder
    settings = replace(
        plan.settings,
        tool_mode=ToolMode.NONE,
        max_turns=1,
        states_size=False,
        tool_schemas=(),
        keep_pictures=False,
        code=None,
    )
    claim = Claim(folder.path / WITHOUT_TOOLS, spending=folder.spending)
    # No answer without tools is nothing to stop for: it is what they are asked for.
    flags = replace(plan.flags, samples=replace(plan.flags.samples, keep_going=True))
    plan = replace(plan, flags=flags, settings=settings, output_dir=str(claim.path))
    return RolloutSolver(plan, solver.source, RunFolder(claim, plan.facts(), plan.on_change), solver.teacher)


class WithAndWithout:
    """Solves each sample in the way that it is to be asked: those without tools by a solver of their own."""

    def __init__(self, solver: RolloutSolver, without_tools: RolloutSolver | None) -> None:
        self._solver, self._without_tools = solver, without_tools

    def solve(self, sample_id: SampleId) -> TraceSummary:
        """Solve it as `RolloutSolver.solve` does."""
        if not isinstance(sample_id, WithoutTools):
            return self._solver.solve(sample_id)
        assert self._without_tools is not None
        return self._without_tools.solve(sample_id.plain)

    def drain(self) -> float:
        """Ask nothing more, at once; returns for how many seconds what is in flight is waited for."""
        return self._solver.drain()  # the teacher is the same

    def abort(self) -> None:
        """Close the teacher."""
        self._solver.abort()
