"""The sums over bags, and the gradients of their rows cut into equal chunks however often a row occurs.

Slots in the order of their rows, and three programs of equally many slots:

    row       0 0 0 1 2 2 | 2 2 2 2 2 2 | 2 3 3 4 5 5
    program   0           | 1           | 2
    writes    0     1     |             |   3   4 5         rows that lie wholly in a chunk: their gradient
              . . . .  2  |      2      | 2                 others: a share, slot 1 of the chunk in which the row
              slot      1 |      0      | 0                 begins, slot 0 of those that it goes on in

A second kernel adds up the shares of each such row, from the chunk in which it begins on. Nothing is compiled for a
number of rows or slots, which is another in every batch.
"""

# mypy: disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit
def load_rows_of(source_ptr, rows, num_rows, columns, DIM: tl.constexpr):
    """(rows, columns) elements, zeros of rows that are not there."""
    is_here = (rows >= 0) & (rows < num_rows)
    pointers = source_ptr + rows[:, None] * DIM + columns[None, :]
    return tl.load(pointers, mask=is_here[:, None] & (columns < DIM)[None, :], other=0.0)


@triton.jit(do_not_specialize=["num_values", "num_more"], do_not_specialize_on_alignment=["rows_ptr"])
def bag_sum_kernel(
    values_ptr, more_ptr, rows_ptr, offsets_ptr, out_ptr, num_values, num_more,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A block of columns of one bag's sum, ROWS slots at once."""
    bag = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < DIM
    begin, end = tl.load(offsets_ptr + bag), tl.load(offsets_ptr + bag + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in range(begin, end, ROWS):
        slots = slot + tl.arange(0, ROWS)
        rows = tl.load(rows_ptr + slots, mask=slots < end, other=-1).to(tl.int64)
        values = load_rows_of(values_ptr, rows, num_values, columns, DIM)
        total += tl.sum(values + load_rows_of(more_ptr, rows - num_values, num_more, columns, DIM), axis=0)
    tl.store(out_ptr + bag.to(tl.int64) * DIM + columns, total, mask=inside)


@triton.jit
def gradient_of_slot(gradient_ptr, bags_ptr, slot, end, columns, DIM: tl.constexpr):
    """The gradient of the bag that a slot is in, zeros from `end` on."""
    bag = tl.load(bags_ptr + slot, mask=slot < end, other=0).to(tl.int64)
    return tl.load(gradient_ptr + bag * DIM + columns, mask=(columns < DIM) & (slot < end), other=0.0)


@triton.jit
def close_row(total, goes_on, row, next_row, slot, end, out_ptr, shares_ptr, columns, DIM: tl.constexpr):
    """Writes the sum of a row whose last slot in this chunk it is; the sum and `goes_on` of the next slot's row."""
    if (slot < end) & ((row != next_row) | (slot + 1 == end)):
        if (goes_on != 0) | (row == next_row):
            tl.store(shares_ptr + (1 - goes_on) * DIM + columns, total, mask=columns < DIM)
        else:
            tl.store(out_ptr + row * DIM + columns, total, mask=columns < DIM)
        total = total * 0.0
        goes_on = goes_on * 0
    return total, goes_on


@triton.jit
def row_at(rows_ptr, slot, first_row, num_slots):
    """The row of a slot counted from first_row; a negative one where there is no slot."""
    exists = (slot >= 0) & (slot < num_slots)
    return tl.where(exists, tl.load(rows_ptr + slot, mask=exists, other=0).to(tl.int64) - first_row, -1)


@triton.jit(do_not_specialize=["first_row", "num_slots"], do_not_specialize_on_alignment=["bags_ptr", "rows_ptr"])
def bag_gradient_kernel(
    gradient_ptr, bags_ptr, rows_ptr, out_ptr, shares_ptr, first_row, num_slots,
    DIM: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gradients of the rows that lie in this program's chunk of slots, and its shares of those that others have too."""
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    end = tl.minimum(begin + CHUNK, num_slots)
    shares_ptr += tl.program_id(0).to(tl.int64) * 2 * DIM
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    row0 = row_at(rows_ptr, begin, first_row, num_slots)
    goes_on = (row_at(rows_ptr, begin - 1, first_row, num_slots) == row0).to(tl.int32)
    for slot in range(begin, end, 4):
        # Four rows are on their way before the first is added: behind a store nothing would be loaded ahead.
        row1 = row_at(rows_ptr, slot + 1, first_row, num_slots)
        row2 = row_at(rows_ptr, slot + 2, first_row, num_slots)
        row3 = row_at(rows_ptr, slot + 3, first_row, num_slots)
        row4 = row_at(rows_ptr, slot + 4, first_row, num_slots)
        gradient0 = gradient_of_slot(gradient_ptr, bags_ptr, slot, end, columns, DIM)
        gradient1 = gradient_of_slot(gradient_ptr, bags_ptr, slot + 1, end, columns, DIM)
        gradient2 = gradient_of_slot(gradient_ptr, bags_ptr, slot + 2, end, columns, DIM)
        gradient3 = gradient_of_slot(gradient_ptr, bags_ptr, slot + 3, end, columns, DIM)
        total, goes_on = close_row(total + gradient0, goes_on, row0, row1, slot, end, out_ptr, shares_ptr, columns, DIM)
        total, goes_on = close_row(
            total + gradient1, goes_on, row1, row2, slot + 1, end, out_ptr, shares_ptr, columns, DIM
        )
        total, goes_on = close_row(
            total + gradient2, goes_on, row2, row3, slot + 2, end, out_ptr, shares_ptr, columns, DIM
        )
        total, goes_on = close_row(
            total + gradient3, goes_on, row3, row4, slot + 3, end, out_ptr, shares_ptr, columns, DIM
        )
        row0 = row4


@triton.jit(do_not_specialize=["first_row", "num_slots"], do_not_specialize_on_alignment=["rows_ptr"])
def add_shares_kernel(
    rows_ptr, out_ptr, shares_ptr, first_row, num_slots,
    DIM: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of the row that begins in this program's chunk and goes on in the next, if there is one."""
    program = tl.program_id(0).to(tl.int64)
    row = row_at(rows_ptr, (program + 1) * CHUNK - 1, first_row, num_slots)
    begins_here = row_at(rows_ptr, program * CHUNK - 1, first_row, num_slots) != row
    goes_on = row_at(rows_ptr, (program + 1) * CHUNK, first_row, num_slots) == row
    if begins_here & goes_on & (row >= 0):
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < DIM
        total = tl.load(shares_ptr + (program * 2 + 1) * DIM + columns, mask=inside, other=0.0)
        first = program + 1
        while goes_on:
            chunks = first + tl.arange(0, ROWS)
            is_row = row_at(rows_ptr, chunks * CHUNK, first_row, num_slots) == row
            share_ptrs = shares_ptr + chunks[:, None] * 2 * DIM + columns[None, :]
            total += tl.sum(tl.load(share_ptrs, mask=is_row[:, None] & inside[None, :], other=0.0), axis=0)
            goes_on = tl.sum(is_row.to(tl.int32)) == ROWS
            first += ROWS
        tl.store(out_ptr + row * DIM + columns, total, mask=inside)
