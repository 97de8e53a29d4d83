"""The folder of one model's evaluations: finished chunks, results, and one live process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distributed_autolora.errors import UserError
from distributed_autolora.evaluation.chunks import Chunk, Columns
from distributed_autolora.files import acquire_folder, atomic_write, read_json, remove_unfinished, write_json, writing
from distributed_autolora.orchestration.runs.folder import check_writable
from distributed_autolora.records import Evaluation, from_json, to_json

RESULT_FILE, OUTCOMES_FILE = "evaluation.json", "outcomes.parquet"
_SECONDS = b"seconds"


class EvaluationFolder:
    """The files of one evaluation, in the absolute folder of a model's, under the digest of what determines it."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest
        self.chunks = path / "chunks" / digest[:16]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the folder for this process while the block runs.

        Raises:
            UserError: when another live process holds it, or it cannot be written.
        """
        check_writable(self.path)
        with writing(self.chunks):
            self.chunks.mkdir(parents=True, exist_ok=True)
        what, otherwise = f"The evaluation in {self.path}", "give another --output"
        with acquire_folder(self.path, what=what, otherwise=otherwise, elsewhere="--output"):
            remove_unfinished(self.chunks)
            yield

    def result(self) -> Evaluation | None:
        """Returns the result of this evaluation; None where it is not there, damaged, or of version 0.1."""
        if self._kept_digest() != self.digest or not (self.path / OUTCOMES_FILE).is_file():
            return None
        try:
            return from_json(Evaluation, read_json(self.path / RESULT_FILE), RESULT_FILE)
        except UserError:
            return None

    def write_chunk(self, chunk: Chunk, columns: Columns, seconds: float) -> None:
        """Writes a finished chunk, atomically."""
        table = pa.table(columns).replace_schema_metadata({_SECONDS: repr(seconds).encode()})
        _write_parquet(self._chunk_file(chunk), table)

    def read_chunk(self, chunk: Chunk) -> tuple[Columns, float] | None:
        """Returns the columns of a finished chunk and its seconds; None where it is missing or damaged."""
        try:
            table = pq.read_table(self._chunk_file(chunk), page_checksum_verification=True)
            seconds = float((table.schema.metadata or {})[_SECONDS])
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return None
        if table.num_rows != chunk.stop - chunk.start:
            return None
        return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}, seconds

    def read_note(self, name: str) -> Any:
        """Returns the values that `write_note` kept for this evaluation; None where there are none."""
        try:
            return read_json(self.chunks / f"{name}.json")
        except (OSError, ValueError):
            return None

    def write_note(self, name: str, values: Any) -> None:
        """Keeps JSON values beside the chunks."""
        write_json(self.chunks / f"{name}.json", values)

    def write_result(self, evaluation: Evaluation, outcomes: Columns) -> None:
        """Writes the result, and the columns of `outcomes.parquet` in the order of the test table.

        The result of another evaluation is kept beside it, under its own digest.

        Raises:
            StorageError: when a file cannot be written.
        """
        earlier = self._kept_digest()
        if earlier not in (None, self.digest):
            # The result last: it names the outcomes that were there with it, wherever this is interrupted.
            for name in (OUTCOMES_FILE, RESULT_FILE):
                stem, dot, suffix = name.partition(".")
                if (self.path / name).is_file():
                    kept = f"{stem}-{str(earlier)[:8]}{dot}{suffix}"
                    with writing(self.path / kept):
                        (self.path / name).replace(self.path / kept)
        _write_parquet(self.path / OUTCOMES_FILE, pa.table(outcomes))
        write_json(self.path / RESULT_FILE, to_json(evaluation))

    def _kept_digest(self) -> str | None:
        """Returns the digest of the result that the folder has, of any version; None where it has none."""
        try:
            return str(read_json(self.path / RESULT_FILE)["digest"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _chunk_file(self, chunk: Chunk) -> Path:
        return self.chunks / f"chunk_{chunk.index:05d}.parquet"


def joined(parts: list[Columns]) -> Columns:
    """Returns the columns of one or more chunks, one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write_parquet(path: Path, table: Any) -> None:
    with atomic_write(path, pa.ArrowException) as unfinished:
        pq.write_table(table, unfinished, write_page_checksum=True)
