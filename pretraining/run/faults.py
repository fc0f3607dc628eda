"""Steps that are not finite, and batches that train little."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from data_pipeline.common.errors import Failure


class NonFiniteWatch:
    """Steps whose gradients are not finite are skipped on the device; many in a row mean divergence.

    in_a_row: steps that were skipped last; total: in the whole run. Both are saved with the run, which ends at the same
    step however often it is continued.
    """

    LIMIT = 20
    SEARCH = 4  # overflows in a row that a loss scale of fp16 which has grown, or is new, may take to come down

    def __init__(self) -> None:
        self.in_a_row, self.total, self.expected = 0, 0, False

    @property
    def is_doubtful(self) -> bool:
        """Whether the weights may be why steps are skipped: more are than fp16's search for its loss scale takes."""
        return self.in_a_row > (self.SEARCH if self.expected else 0)

    def to_json(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "total": self.total}

    def resume(self, state: Mapping[str, int]) -> None:
        """state: what to_json said; {} of a checkpoint of an earlier version."""
        self.in_a_row, self.total = state.get("in_a_row", 0), state.get("total", 0)
        self.expected = self.in_a_row > 0  # else it would not have been saved

    def see(self, step: int, finite: bool, loss_is_finite: bool, loss_scale: float | None) -> str | None:
        """What to report of a step; None where it was not skipped.

        loss_scale: the next step's, under fp16 only. Raises Failure after LIMIT skipped steps in a row.
        """
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.total += not finite
        if finite:
            return None
        is_search = loss_scale is not None and loss_is_finite and loss_scale > 1.0
        self.expected = is_search and (self.expected or self.in_a_row == 1)
        cause, advice = _skipped(loss_is_finite, loss_scale)
        if self.in_a_row == self.LIMIT:
            raise Failure(
                f"the gradients of the last {self.LIMIT} steps up to step {step} were not finite: "
                f"the run has diverged ({cause}); {advice}"
            )
        hint = EXPECTED.format(loss_scale) if is_search else f"weights are as they were; should more follow, {advice}"
        return f"step {step} was skipped: {cause}; {hint}"


EXPECTED = "this is expected at the start and now and then later, and the loss scale falls to {:g}"
SMALLER = "a smaller optimizer.lr or more warm-up may help"


def _skipped(loss_is_finite: bool, loss_scale: float | None) -> tuple[str, str]:
    """-> (why a step's gradients were not finite, what helps)."""
    if loss_scale is None:
        return "its gradients were not finite" if loss_is_finite else "its loss was not finite", SMALLER
    if not loss_is_finite:
        return (
            "its loss was not finite, which no loss scale mends",
            f"{SMALLER}, as may train.precision=bf16, which does not overflow",
        )
    if loss_scale > 1.0:
        return "its gradients overflowed fp16", SMALLER
    return "its gradients overflowed fp16 at the smallest loss scale, 1", f"{SMALLER}, or train.precision=bf16"


class TargetWatch:
    """Notices loss terms of which a batch has next to no targets, as whole-word masking of one-word documents leaves:
    nothing fails, and next to nothing is learned."""

    LEAST = 0.1  # targets of a sample, in the mean

    def __init__(self, terms: Iterable[str], global_batch_size: int) -> None:
        self.waiting, self.samples = set(terms), global_batch_size

    def see(self, step: int, counts: Mapping[str, float]) -> list[str]:
        """What to report of a step, once for each term. counts: of targets of each term in its global batch."""
        few = sorted(term for term in self.waiting if counts[term] < self.LEAST * self.samples)
        self.waiting -= set(few)
        return [
            f"warning: the {self.samples} samples of step {step} have {counts[term]:.0f} targets of {term}: little is "
            "trained of it. Are documents too short for the objective's keys? inspect=3 shows samples"
            for term in few
        ]


class SplitWatch:
    """Tells once of a validation split that has fewer global batches than `asked`, train.eval_batches."""

    def __init__(self, asked: int | None) -> None:
        self.asked, self.is_told = asked, False

    def see(self, batches: int) -> str | None:
        """batches: that an evaluation had."""
        if self.asked is None or batches >= self.asked or self.is_told:
            return None
        self.is_told = True
        return (
            f"the validation split has {batches} global batches, fewer than train.eval_batches={self.asked}: an "
            "evaluation is over all of it, once"
        )
