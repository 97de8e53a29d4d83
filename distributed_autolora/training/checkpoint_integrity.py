"""Whether a checkpoint holds what was written, without PyTorch: files that lost their last writes, or parts of them."""

import json
import zlib
from pathlib import Path
from typing import Any

TENSORS, VALUES = "state.safetensors", "state.json"
_CHUNK_BYTES = 1 << 22


def fingerprint(file: Path) -> dict[str, int]:
    """Returns length and CRC-32 of a file, which tell accidents and not forgeries.

    Raises:
        OSError: when the file cannot be read.
    """
    crc = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
        return {"bytes": opened.tell(), "crc32": crc}


def read_values(folder: Path) -> dict[str, Any]:
    """Returns what a checkpoint holds beside tensors.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is incomplete.
    """
    values = json.loads((folder / VALUES).read_bytes())
    for name in ("history", "tensors"):
        if not isinstance(values, dict) or name not in values:
            raise ValueError(f'it has no "{name}", as where an earlier version of this program wrote it')
    return dict(values)


def broken_part(folder: Path) -> str | None:
    """Returns which file of a checkpoint is not what was written, and how; None for an intact one.

    A file that is missing is broken; one that cannot be read is not known to be.

    Raises:
        OSError: when a file is there and cannot be read.
    """
    name = VALUES
    try:
        values = read_values(folder)
        name = TENSORS
        seen = fingerprint(folder / TENSORS)
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except ValueError as error:
        return f"{name} is incomplete: {error}"
    written = values["tensors"]
    if seen["bytes"] != written["bytes"]:
        return f"{name} has {seen['bytes']:,} bytes of {written['bytes']:,}"
    return None if seen == written else f"{name} holds other bytes than were written"
