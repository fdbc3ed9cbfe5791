"""Which queued inputs join a batch: the most urgent band first, and near lengths first.

On a padded engine the anchor's bucket is emptied before its neighbours; a ragged one takes any
length in order of urgency.
"""

from __future__ import annotations

from sage_prefect.control_plane.events import Band
from sage_prefect.control_plane.executors.batch_draft import BatchDraft
from sage_prefect.control_plane.executors.length_buckets import (
    APART,
    InputState,
    LengthBuckets,
    Sheaf,
    Shelf,
)

RESERVE = 0.25
"""Share of the budget that other bands leave to INTERACTIVE while it waits."""
LOOK_PAST = 8
"""Sheaves that do not fit are passed over so many times per band and group of lengths."""


def fill(
    draft: BatchDraft, waiting: LengthBuckets, anchor: Shelf, company: list[Shelf], budget: float
) -> None:
    """Move inputs from ``waiting`` into ``draft``, in flight: first the head of ``anchor``.

    Args:
        company: shelves that may take part, ``anchor`` among them.
        budget: tokens of the call.
    """
    head = anchor.head()
    if head is None:
        raise RuntimeError("a batch has no anchor. This is a bug.")
    if anchor.bucket == APART:
        _take(draft, waiting, head, budget)
        return
    waits = waiting.queued
    yielding = []
    for band in range(anchor.band, len(Band)):
        if not waits[band]:
            continue
        limit = budget
        if band != Band.INTERACTIVE and waits[Band.INTERACTIVE]:
            limit = (1.0 - RESERVE) * budget
            yielding.append(band)
        _take_band(draft, waiting, company, band, anchor.bucket, limit)
    if yielding and not waits[Band.INTERACTIVE]:
        for band in yielding:
            _take_band(draft, waiting, company, band, anchor.bucket, budget)


def _take_band(
    draft: BatchDraft,
    waiting: LengthBuckets,
    company: list[Shelf],
    band: int,
    bucket: int,
    budget: float,
) -> None:
    shelves = [one for one in company if one.band == band and one.bucket != APART]
    if not draft.padded:
        _take_in_order(draft, waiting, shelves, budget)
        return
    # Three buckets away the lengths differ by more than the ratio that a draft allows.
    for near in (bucket, bucket - 1, bucket + 1, bucket - 2, bucket + 2):
        group = [one for one in shelves if one.bucket == near]
        if group:
            _take_in_order(draft, waiting, group, budget)


def _take_in_order(
    draft: BatchDraft, waiting: LengthBuckets, shelves: list[Shelf], budget: float
) -> None:
    passed = 0
    while passed < LOOK_PAST and not draft.is_full(budget):
        best: tuple[Sheaf, Shelf] | None = None
        for shelf in shelves:
            head = shelf.head()
            if head is not None and (best is None or head.order < best[0].order):
                best = head, shelf
        if best is None:
            break
        sheaf, shelf = best
        _take(draft, waiting, sheaf, budget)
        if sheaf.size:
            shelf.pass_over()
            passed += 1
    for shelf in shelves:
        shelf.restore()


def _take(draft: BatchDraft, waiting: LengthBuckets, sheaf: Sheaf, budget: float) -> None:
    while sheaf.size:
        one = sheaf.head_input()
        if not draft.fits(one, budget):
            return
        waiting.withdraw(one, InputState.IN_FLIGHT)
        draft.add(one)
