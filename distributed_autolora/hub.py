"""Files of the Hugging Face Hub, by URIs such as hf://OWNER/NAME/FILE and hf://datasets/OWNER/NAME."""

import functools
import os
import re
from pathlib import Path

from distributed_autolora.errors import UserError, first_line

SCHEME = "hf://"
_URI = re.compile(r"hf://(?P<kind>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<path>.+))?")


@functools.cache
def local_copy(uri: str) -> Path:
    """Downloads a file, or the Parquet files of a folder, into the Hub's cache (`$HF_HOME`), and returns its place.

    What is there already is not downloaded again; with `$HF_HUB_OFFLINE=1` nothing is.

    Raises:
        UserError: for a URI of another form, a file or repository that does not exist or needs a token, or no network.
    """
    match = _URI.fullmatch(uri.rstrip("/"))
    if match is None:
        raise UserError(f"{uri} is no URI of the Hub: give hf://OWNER/NAME/FILE or hf://datasets/OWNER/NAME/FOLDER.")
    # Its tokens would also be sent for public files; loading it takes half a second.
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    path = match["path"] or ""
    wanted = path if match["kind"] is None else f"{path}/*.parquet" if path else ["*.parquet", "data/*.parquet"]
    try:
        snapshot = huggingface_hub.snapshot_download(
            match["repo"],
            repo_type="dataset" if match["kind"] else None,
            revision=match["revision"],
            allow_patterns=wanted,
        )
    except LocalEntryNotFoundError:
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        advice = "unset HF_HUB_OFFLINE" if offline else "check the connection (HTTPS_PROXY, HF_ENDPOINT)"
        raise UserError(
            f"{uri} cannot be downloaded, and the Hub's cache does not hold it: {advice}, or give a local file."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(
            f"{uri} cannot be downloaded ({first_line(error).split('. ')[0].rstrip('.')}). Check the name and the "
            "revision; files that need an account need HF_TOKEN."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{uri} cannot be downloaded ({first_line(error)[:200]}). Check the URI and the disk."
        ) from None
    found = Path(snapshot, path)
    if match["kind"] and not any(found.glob("train*.parquet")) and (found / "data").is_dir():
        found /= "data"
    if not found.exists():
        raise UserError(f"{uri}: the repository {match['repo']} has no {path}. Check the name.")
    return found
