from __future__ import annotations

import pyarrow as pa
import pytest

from features.arrow_file import write_arrow
from features.manifest import file_entry


@pytest.mark.parametrize("rows", [0, 1, 5000])
def test_the_entry_is_that_of_the_file(tmp_path, rows):
    table = pa.table({"a": pa.array(range(rows), pa.int64()), "b": pa.array([[i] * (i % 3) for i in range(rows)])})
    table = pa.concat_tables([table, table])
    entry = write_arrow(table, tmp_path / "a.arrow")
    assert entry == file_entry(tmp_path / "a.arrow")
    with pa.memory_map(str(tmp_path / "a.arrow")) as source:
        reader = pa.ipc.open_file(source)
        assert reader.num_record_batches == (1 if rows else 0) or rows == 0
        assert reader.read_all().equals(table)
    assert [path.name for path in tmp_path.iterdir()] == ["a.arrow"]


def test_an_older_file_is_replaced(tmp_path):
    write_arrow(pa.table({"a": [1, 2, 3]}), tmp_path / "a.arrow")
    write_arrow(pa.table({"a": [4]}), tmp_path / "a.arrow")
    with pa.memory_map(str(tmp_path / "a.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().to_pydict() == {"a": [4]}
