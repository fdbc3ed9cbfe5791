"""The texts that wait for the model, and which of them go together next.

Pure data structure; one owner (the event loop) calls it, so there are no locks.

Two aims pull apart. Texts of like length belong together, whichever request they came from: padding
is wasted work. And a short query must not wait for the 512 texts of an ingest that came before it.
So each batch starts from one request, by turns the *oldest* and the one with the *fewest* tokens
left, and is filled with the texts nearest in length from all of them. The oldest gets every second
batch, hence nothing starves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Sequence

# Padding that a batch may carry: what a further forward pass would cost anyway (some 2 ms of Python
# and kernel starts, as long as 64 tokens of MiniLM take on one core), or an eighth of the batch.
_FREE_PADDING = 64
_PADDING_SHARE = 8


class Entry:
    """One text of a request."""

    __slots__ = ("ids", "index", "job", "waiting")

    def __init__(self, job: Job, index: int, ids: list[int]) -> None:
        self.job = job
        self.index = index  # its place in the request
        self.ids = ids
        self.waiting = True


class Job:
    """One request: its texts (as token ids), and how much of it still waits."""

    __slots__ = ("entries", "waiting", "waiting_tokens")

    def __init__(self, texts: Sequence[list[int]]) -> None:
        entries = [Entry(self, index, ids) for index, ids in enumerate(texts)]
        # Shortest first, so that the longest pops off the end.
        self.entries = sorted(entries, key=lambda entry: len(entry.ids))
        self.waiting = len(entries)
        self.waiting_tokens = sum(map(len, texts))


class WaitingSet:
    """Waiting texts, by request and by length."""

    def __init__(self) -> None:
        self._jobs: dict[Job, None] = {}  # in order of arrival; each has waiting entries
        self._buckets: dict[int, deque[Entry]] = {}  # may hold entries that wait no more
        self._lengths: list[int] = []  # keys of _buckets, sorted
        self._oldest_turn = True
        self.texts = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self.texts

    def add(self, job: Job) -> None:
        """Let the texts of a request wait."""
        if not job.waiting:
            return
        self._jobs[job] = None
        for entry in job.entries:
            length = len(entry.ids)
            bucket = self._buckets.get(length)
            if bucket is None:
                bucket = self._buckets[length] = deque()
                insort(self._lengths, length)
            bucket.append(entry)
        self.texts += job.waiting
        self.tokens += job.waiting_tokens

    def drop(self, job: Job) -> None:
        """Forget what still waits of a request; unknown requests are fine."""
        if job not in self._jobs:
            return
        for entry in job.entries:
            if entry.waiting:
                self._take(entry)

    def next_batch(self, token_budget: int) -> list[Entry]:
        """Take the texts that the model shall run next; empty when none waits.

        Args:
            token_budget: bound on ``len(batch) * longest text``, that is, padding counted. A
                single text may exceed it.
        """
        anchor = self._anchor()
        if anchor is None:
            return []
        batch = [anchor]
        width = tokens = len(anchor.ids)
        self._take(anchor)
        for entry in self._nearest(width):
            padded_width = max(width, len(entry.ids))
            padded = padded_width * (len(batch) + 1)
            padding = padded - tokens - len(entry.ids)
            if padded > token_budget or padding > max(_FREE_PADDING, padded // _PADDING_SHARE):
                continue  # _nearest goes on to the next length
            self._take(entry)
            batch.append(entry)
            width = padded_width
            tokens += len(entry.ids)
        return batch

    def _anchor(self) -> Entry | None:
        if not self._jobs:
            return None
        if self._oldest_turn:
            job = next(iter(self._jobs))
        else:
            job = min(self._jobs, key=lambda job: job.waiting_tokens)
        self._oldest_turn = not self._oldest_turn
        while not job.entries[-1].waiting:
            job.entries.pop()
        return job.entries[-1]

    def _take(self, entry: Entry) -> None:
        entry.waiting = False
        job = entry.job
        job.waiting -= 1
        job.waiting_tokens -= len(entry.ids)
        self.texts -= 1
        self.tokens -= len(entry.ids)
        if not job.waiting:
            del self._jobs[job]

    def _nearest(self, length: int) -> Iterator[Entry]:
        """Waiting entries by distance of length; of two at the same distance the shorter first.

        The caller takes what is yielded, or is led on to the next length.
        """
        above = bisect_left(self._lengths, length + 1)
        below = above - 1
        emptied: list[int] = []
        while below >= 0 or above < len(self._lengths):
            if above == len(self._lengths) or (
                below >= 0 and length - self._lengths[below] <= self._lengths[above] - length
            ):
                key = self._lengths[below]
                below -= 1
            else:
                key = self._lengths[above]
                above += 1
            bucket = self._buckets[key]
            while bucket:
                if bucket[0].waiting:
                    yield bucket[0]
                    if bucket[0].waiting:
                        break
                bucket.popleft()
            else:
                emptied.append(key)
        for key in emptied:
            del self._buckets[key]
            self._lengths.pop(bisect_left(self._lengths, key))
