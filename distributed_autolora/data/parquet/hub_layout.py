"""The Parquet layout of image datasets on the Hugging Face Hub: `image: {bytes, path}`, `label` with class names."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from distributed_autolora.errors import UserError

_KEY = b"huggingface"


def is_hub_layout(schema: Any) -> bool:
    """Tells whether an Arrow schema is that of the Hub's image datasets."""
    if not {"image", "label"} <= {*schema.names} or not pa.types.is_struct(schema.field("image").type):
        return False
    return bool(schema.field("image").type.get_field_index("bytes") >= 0)


def hub_metadata(raw: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns the metadata of such a file with its class names under this package's key, where it states them."""
    found = dict(raw)
    with contextlib.suppress(ValueError, LookupError, TypeError):
        names = json.loads(raw[_KEY])["info"]["features"]["label"]["names"]
        found[b"class_names"] = json.dumps(names).encode()
    return found


def read_hub_rows(file: Any, group: int, columns: Sequence[str], path: str, first: int) -> Any:
    """Returns the rows of a row group with this package's columns; row ids are file and position.

    Raises:
        UserError: for an image that is a path without bytes.
    """
    rows = file.read_row_group(
        group, columns=[{"image": "image.bytes"}.get(name, name) for name in columns if name != "row_id"]
    )
    found = {"label": rows["label"]} if "label" in columns else {}
    if "image" in columns:
        images = pa.chunked_array([chunk.field("bytes") for chunk in rows["image"].chunks], type=pa.binary())
        if images.null_count:
            row = images.is_valid().to_pylist().index(False)
            raise UserError(
                f"{path}, row {first + row}: the image has no bytes, only a path. Give files with the images."
            )
        found["image"] = images
    if "row_id" in columns:
        name = path.rpartition("/")[2]
        found["row_id"] = pa.array([f"{name}:{first + row}" for row in range(len(rows))])
    return pa.table({name: found[name] for name in columns})
