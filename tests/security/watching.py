"""What the tests of security share."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distributed_autolora.cli import parse_training_flags
from distributed_autolora.orchestration.runs.preflight import check_inputs, find_inputs
from tests.programs import below

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
SECRET = "hunter2hunter2"


def descendants(root: int) -> set[int]:
    return {root, *below(root)}


def replace_value(file: Path, row: int, column: str, value: object) -> None:
    """Puts another value into a Parquet file of a task, without the schema that Arrow adds for itself."""
    table = pq.read_table(file)
    values = table[column].to_pylist()
    values[row] = value
    kept = {key: text for key, text in pq.read_metadata(file).metadata.items() if key != b"ARROW:schema"}
    index = table.schema.get_field_index(column)
    pq.write_table(table.set_column(index, column, pa.array(values)).replace_schema_metadata(kept), file)


def flags_of(task: str, *more: str) -> list[str]:
    small = ["--recipe", "demo", "--data.task", "halves", "--model.weights", "None", "--data.train-images", "None"]
    return [*small, "--data.path", task, *more]


def look_at_inputs(flags: list[str]) -> None:
    config, inputs = find_inputs(parse_training_flags("", "demo", flags).experiment)
    check_inputs(config, inputs)
