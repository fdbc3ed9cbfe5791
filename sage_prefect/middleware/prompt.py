"""``Prompt``: columns into one text for a model."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from sage_prefect.common.errors import GraphError, RecordError
from sage_prefect.kernel.operator import Operator, RowFailure
from sage_prefect.libs.prompts import BudgetError, Template
from sage_prefect.middleware.columns import column, with_columns


class Prompt(Operator):
    """Fill a template with columns of the row.

    Args:
        template: text with ``{column}`` fields (``{{`` and ``}}`` stand for braces).
        into: the column to add.
        max_tokens: budget of the prompt, approximate; None: no bound. Leave room for the answer:
            with a context of 2048 tokens and answers of 96, some 1900.
        trim: columns that are cut (visibly, from their end) when the prompt is over its budget. A
            row that is too long even so is a RecordError: a question is never cut silently.

    Raises:
        GraphError: the template is wrong.
        MissingColumnError: a field names no column (when the pipeline is built).
    """

    name = "prompt"
    row_cost_s = 5e-5

    def __init__(
        self,
        template: str,
        into: str = "prompt",
        max_tokens: int | None = None,
        trim: Sequence[str] = ("context",),
    ) -> None:
        try:
            self.template = Template(template)
        except ValueError as error:
            raise GraphError(f"Prompt: {error}") from None
        if max_tokens is not None and max_tokens < 1:
            raise GraphError(f"Prompt(max_tokens={max_tokens}) is not positive.")
        self.into = into
        self.max_tokens = max_tokens
        self.trim = (trim,) if isinstance(trim, str) else tuple(trim)
        self.reads = self.template.fields
        self.adds = (into,)

    def process(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = {
            name: column(self.name, batch, name).to_pylist() for name in self.template.fields
        }
        prompts = []
        for row in range(batch.num_rows):
            values = {name: items[row] for name, items in columns.items()}
            prompts.append(self._prompt(row, values))
        return with_columns(batch, {self.into: pa.array(prompts, pa.string())})

    def _prompt(self, row: int, values: dict[str, object]) -> str:
        if self.max_tokens is None:
            return self.template.render(values)
        try:
            return self.template.fit(values, self.max_tokens, self.trim)
        except BudgetError as error:
            raise RowFailure(
                row,
                RecordError(
                    f"{error}.",
                    hint="Shorten the input, raise Prompt(max_tokens=...) if the model's context "
                    "allows it, or name more columns in trim=.",
                ),
            ) from error
