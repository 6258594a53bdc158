"""New answers for the pairs whose accepted answer leans on later turns."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from feedback.judge import Judge, best_of
from feedback.pairs import Case, Gates, Row, Turn
from feedback.rewards import agrees, length_fits

NUM_CANDIDATES = 4
MIN_AGREEMENT = 0.5
Complete = Callable[[Sequence[Turn], int], Awaitable[Sequence[str]]]


async def regenerate(
    rows: Sequence[Row], complete: Complete, gates: Gates, prompt: Callable[[Case], Sequence[Turn]], judge: Judge | None = None
) -> list[Row]:
    """Give the rows that wait for it a chosen answer of the present model: of k, the one that agrees best with the accepted answer.

    It must pass every gate, be about as long and agree enough; then it waits for reviewers. Where several agree equally well, the
    `judge` chooses. `complete(turns, k)` asks any chat endpoint; `prompt(case)` has the system message.
    """
    done = []
    for row in rows:
        if row.problem == "needs_regeneration" and row.reference:
            facts, turns = {"answer": row.reference}, prompt(row.case)
            candidates = [each for each in await complete(turns, NUM_CANDIDATES) if each != row.rejected]
            fit = [each for each in candidates if length_fits(each, facts) == 1 and not gates.problems(each, row.case)]
            most = max((agrees(each, facts) for each in fit), default=0.0)
            if most >= MIN_AGREEMENT:
                best = best_of([each for each in fit if agrees(each, facts) == most], [turn.message for turn in turns], judge)
                row = replace(row, answer=best, answer_id=None, origin="regenerated", problem="unsure")
        done.append(row)
    return done
