"""Accounts add up and name what is wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from pipelines import quarantine
from pipelines.quarantine import (
    QUARANTINE,
    Account,
    Fault,
    account_of,
    add_accounts,
    check_ratio,
    describe_account,
    reasons_of,
    save_part,
    write_quarantine,
)
from pipelines.sources.raw import QUARANTINE_SCHEMA, RawRows

Row = tuple[str | None, str]


def raw_rows(kept: int, bad: list[Row], first_row: int = 2) -> RawRows:
    rows = [
        ("log.csv", first_row + n, column, reason, f"content {first_row + n}") for n, (column, reason) in enumerate(bad)
    ]
    return RawRows(pl.DataFrame({"user_id": range(kept)}), pl.DataFrame(rows, QUARANTINE_SCHEMA, orient="row"), 1)


bad_rows = st.lists(st.tuples(st.sampled_from([None, "user_id", "tab"]), st.sampled_from(["null key", "negative id"])))


@given(pieces=st.lists(st.tuples(st.integers(0, 5), bad_rows), min_size=1, max_size=5))
def test_accounts_of_pieces_add_up_to_the_file_s(pieces: list[tuple[int, list[Row]]]) -> None:
    first_rows = [2 + sum(len(bad) for _, bad in pieces[:n]) for n in range(len(pieces))]
    parts = [
        account_of("log.csv", raw_rows(kept, bad, first_row))
        for (kept, bad), first_row in zip(pieces, first_rows, strict=True)
    ]
    all_bad = [row for _, bad in pieces for row in bad]
    whole = account_of("log.csv", raw_rows(sum(kept for kept, _ in pieces), all_bad))
    total = add_accounts("log.csv", parts)
    assert total == whole.model_copy(update={"num_blank": len(pieces)})
    assert total.read == total.kept + len(all_bad)
    assert sum(reasons_of([total]).values()) == total.quarantined == len(all_bad)


def account(kept: int, **rows: int) -> Account:
    faults = tuple(
        Fault(column=None if name == "short" else name, reason="bad", rows=count, first_row=7, first_content="1,x")
        for name, count in rows.items()
    )
    return Account(file="log.csv", kept=kept, num_blank=0, faults=faults)


@pytest.mark.parametrize(("kept", "max_ratio"), [(97, 0.03), (0, 1.0)])
def test_a_share_up_to_the_limit_passes(kept: int, max_ratio: float) -> None:
    check_ratio(account(kept, tab=3), max_ratio)


def test_an_empty_file_passes_whatever_the_limit() -> None:
    check_ratio(account(0), 0.0)


def test_a_larger_share_names_the_file_the_commonest_fault_and_its_first_row() -> None:
    with pytest.raises(DataError) as error:
        check_ratio(account(95, short=2, tab=3), 0.04)
    assert str(error.value) == (
        "log.csv: 5 of 100 rows are bad (5.0 %, and data.max_quarantine_ratio allows 4 %); most often (3 rows) "
        "column 'tab': bad; first in row 7: 1,x"
    )


def test_a_fault_of_whole_lines_has_no_column() -> None:
    with pytest.raises(DataError, match=r"most often \(2 rows\) bad; first in row 7"):
        check_ratio(account(1, short=2), 0.5)


def test_the_description_adds_up() -> None:
    described = describe_account(account(95, short=2, tab=3))
    assert described == {"file": "log.csv", "read": 100, "kept": 95, "quarantined": 5, "reasons": {"bad": 5}}


def test_parts_are_written_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, first_row in (("2", 30), ("1", 10)):
        save_part(raw_rows(0, [("tab", "bad"), (None, "short")], first_row).quarantine, tmp_path, name)
    save_part(raw_rows(4, []).quarantine, tmp_path, "0")
    assert len(list(tmp_path.iterdir())) == 2
    write_quarantine(sorted(tmp_path.glob("quarantine-*.parquet")), tmp_path)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.schema.equals(QUARANTINE)
    assert table["row"].to_pylist() == [10, 11, 30, 31]


@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_the_bytes_do_not_tell_the_pieces(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    rows = raw_rows(0, [("tab", f"bad {number % 3}") for number in range(40)]).quarantine
    written = []
    for bounds in ([0, 40], [0, *sorted(cuts), 40]):
        folder = tmp_path_factory.mktemp("parts")
        for start, stop in itertools.pairwise(bounds):
            save_part(rows[start:stop], folder, f"{start:03d}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quarantine, "ROWS_PER_GROUP", 7)
            write_quarantine(sorted(folder.glob("quarantine-*.parquet")), folder)
        written.append((folder / "rows.parquet").read_bytes())
        assert pl.read_parquet(folder / "rows.parquet")["row"].to_list() == rows["row"].to_list()
    assert written[0] == written[1]


def test_without_bad_rows_the_file_is_there_and_empty(tmp_path: Path) -> None:
    write_quarantine(sorted(tmp_path.glob("quarantine-*.parquet")), tmp_path)
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == 0
