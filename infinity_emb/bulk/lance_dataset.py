"""Write a Lance dataset, which is a folder, with the package pylance."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from infinity_emb.errors import StartupError


def check_installed() -> None:
    """Raise StartupError if pylance is missing."""
    if importlib.util.find_spec("lance") is None:
        raise StartupError("Lance datasets need the package pylance: pip install pylance")


def is_dataset(path: Path) -> bool:
    """Return true for the folder of a dataset."""
    return (path / "_versions").is_dir()


def check_schema(schema: Any) -> None:
    """Raise StartupError for columns that a dataset cannot have, such as those with a dot in their names."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            write(Path(folder, "empty.lance"), [], schema)
        except OSError as exc:
            raise StartupError(
                f"a Lance dataset cannot have these columns ({exc}); leave some out with --keep-columns, or"
                " write Parquet"
            ) from exc


def write(path: Path, tables: Iterable[Any], schema: Any) -> None:
    """Write tables, which are read one by one, to a dataset. Raises OSError."""
    import lance

    batches = (batch for table in tables for batch in table.to_batches())
    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(path))
