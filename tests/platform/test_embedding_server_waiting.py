"""Which texts go together: budget, padding, fairness, nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sage_prefect.platform.embedding_server.waiting import Entry, Job, WaitingSet

LENGTHS = st.lists(st.integers(0, 64), max_size=12)


def job(*lengths: int) -> Job:
    return Job([[1] * length for length in lengths])


def lengths_of(batch: list[Entry]) -> list[int]:
    return [len(entry.ids) for entry in batch]


def test_a_lone_job_goes_out_longest_first_with_like_lengths_together() -> None:
    waiting = WaitingSet()
    waiting.add(job(100, 3, 99, 2, 98, 1))
    assert lengths_of(waiting.next_batch(300)) == [100, 99, 98]
    assert lengths_of(waiting.next_batch(300)) == [3, 2, 1]
    assert waiting.next_batch(300) == []


def test_texts_of_other_requests_fill_the_batch() -> None:
    waiting = WaitingSet()
    first, second = job(50), job(50, 10)
    waiting.add(first)
    waiting.add(second)
    batch = waiting.next_batch(100)
    assert [entry.job for entry in batch] == [first, second]


def test_a_text_over_the_budget_goes_alone() -> None:
    waiting = WaitingSet()
    waiting.add(job(500, 500))
    assert lengths_of(waiting.next_batch(100)) == [500]


def test_padding_is_bounded() -> None:
    waiting = WaitingSet()
    waiting.add(job(10))
    waiting.add(job(*[250] * 10))
    batch = waiting.next_batch(1024)
    assert lengths_of(batch) == [10]  # not [10, 250, 250...]: 240 tokens of padding for one text


def test_a_short_query_does_not_wait_for_the_ingest_before_it() -> None:
    waiting = WaitingSet()
    ingest = job(*[200] * 50)
    waiting.add(ingest)
    waiting.next_batch(1000)
    query = job(8)
    waiting.add(query)
    two = waiting.next_batch(1000) + waiting.next_batch(1000)
    assert query in {entry.job for entry in two}


def test_the_oldest_is_never_starved_by_newer_short_ones() -> None:
    waiting = WaitingSet()
    old = job(200, 200)
    waiting.add(old)
    batches = 0
    while old.waiting:
        waiting.add(job(3))
        waiting.next_batch(200)
        batches += 1
    assert batches <= 4


def test_dropping() -> None:
    waiting = WaitingSet()
    gone, stays = job(5, 6), job(5)
    waiting.add(gone)
    waiting.add(stays)
    waiting.drop(gone)
    waiting.drop(gone)
    waiting.drop(job(1))
    assert (waiting.texts, waiting.tokens) == (1, 5)
    assert [entry.job for entry in waiting.next_batch(100)] == [stays]


def test_a_job_without_texts() -> None:
    waiting = WaitingSet()
    waiting.add(job())
    assert waiting.next_batch(10) == []


@given(st.lists(LENGTHS, max_size=6), st.integers(1, 300))
def test_every_text_comes_out_once_within_the_budget(jobs: list[list[int]], budget: int) -> None:
    waiting = WaitingSet()
    added = [job(*lengths) for lengths in jobs]
    for one in added:
        waiting.add(one)
    seen: list[Entry] = []
    while batch := waiting.next_batch(budget):
        width = max(lengths_of(batch))
        padded = width * len(batch)
        assert len(batch) == 1 or padded <= budget
        assert padded - sum(lengths_of(batch)) <= max(64, padded // 8)
        seen += batch
    expected = sorted(
        (id(one), index) for one in added for index in range(one_size(one, jobs, added))
    )
    assert sorted((id(entry.job), entry.index) for entry in seen) == expected
    assert (waiting.texts, waiting.tokens) == (0, 0)


def one_size(one: Job, jobs: list[list[int]], added: list[Job]) -> int:
    return len(jobs[added.index(one)])


class Waiting(RuleBasedStateMachine):
    """Adds, drops and takes in any order; the counts always agree with a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = WaitingSet()
        self.left: dict[Job, int] = {}
        self.tokens: dict[Job, int] = {}

    @rule(lengths=LENGTHS)
    def add(self, lengths: list[int]) -> None:
        one = job(*lengths)
        self.waiting.add(one)
        if lengths:
            self.left[one] = len(lengths)
            self.tokens[one] = sum(lengths)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.left:
            one = data.draw(st.sampled_from(list(self.left)))
            self.waiting.drop(one)
            del self.left[one], self.tokens[one]

    @rule(budget=st.integers(1, 200))
    def take(self, budget: int) -> None:
        batch = self.waiting.next_batch(budget)
        assert bool(batch) is bool(self.left)
        for entry in batch:
            assert not entry.waiting
            self.left[entry.job] -= 1
            self.tokens[entry.job] -= len(entry.ids)
            if not self.left[entry.job]:
                del self.left[entry.job], self.tokens[entry.job]

    @invariant()
    def counts_agree(self) -> None:
        assert self.waiting.texts == sum(self.left.values())
        assert self.waiting.tokens == sum(self.tokens.values())
        assert all(one.waiting == count for one, count in self.left.items())


TestWaiting = Waiting.TestCase
