"""Errors of users and their surroundings: what was wrong, where, and what to do."""

import errno
import re
from collections.abc import Sequence
from urllib.parse import unquote_plus

_PASSWORD = re.compile(
    # A password may hold unescaped "/" and "@": all up to the last "@" is hidden. "host:5000/a@b" holds none, but only
    # these schemes have ports before a path with "@": SQLAlchemy reads all between ":" and "@" as the password.
    r"(?i)(?:(?<=://)(?!\[)(?:(?<!http://)(?<!https://)(?<!hdfs://)|(?![^/?#:@\s]*:\d{1,5}[/?#]))[^/?#:@\s]*:\S*"
    r"|(?:(?<=http://)|(?<=https://))[^/?#\s]+)@"
)
_TOKEN = re.compile(
    r"(?i)(?<=[?&;])(?!ssl[_-]?key=|[\w.-]*file=)((?:[\w.-]*[._-])?"
    r"(?:[^\W_]*(?:password|passwd|pwd|secret|token|signature|credentials?|(?:access|account|api|private|secret)key)"
    r"|pass|passphrase|sig|creds?|auth|key)"
    r"(?:[._-][\w.-]*)?=)[^\s&]+"
)
"""Fields of a query that hold a secret: their names contain such a word between ".", "_" and "-", and name no file."""
_ENCODED = re.compile(r"(?<=[?&;])([\w.-]+=)([^\s&]*%[^\s&]*)")
_TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EAGAIN, errno.EHOSTUNREACH})


def masked(text: str) -> str:
    """Hides user:password@ and the tokens of a query in every URI of a text, such as a library's error message."""
    return _masked(text) if "://" in text else text


def _masked(text: str) -> str:
    return _ENCODED.sub(_masked_field, _TOKEN.sub(r"\1***", _PASSWORD.sub("***@", text)))


def _masked_field(field: re.Match[str]) -> str:
    """Hides a percent-encoded value that holds a secret, such as odbc_connect=DRIVER%3D...%3BPWD%3D..."""
    inside = ";" + "".join(unquote_plus(field[2]).split())
    return field[0] if _masked(inside) == inside else f"{field[1]}***"


def refuse_secret(name: str, value: str) -> None:
    """Refuses a URI with a password or token: it would be in files, logs and the process list.

    Raises:
        UserError: naming what held it, and where such a secret belongs.
    """
    if masked(value) != value:
        raise UserError(
            f"{name} holds a password or token ({value}). Leave it out of the URI and set it in the environment: "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) for MLflow, PGPASSWORD "
            "for PostgreSQL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or your cloud's own variables for storage."
        )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def counted(number: int, noun: str) -> str:
    """Returns "1 worker" or "2 workers"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def is_utf8(text: str) -> bool:
    """Tells whether a name from the file system or the command line was UTF-8 there."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def some(items: Sequence[str], most: int = 3, *, between: str = ", ") -> str:
    """Returns the first few of some texts as a list, with the number of the others."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return between.join(items[:most]) + more


class UserError(Exception):
    """Input or circumstances that only the user can change; its message is one readable line without secrets."""

    def __init__(self, message: str = "") -> None:
        # Names of files may hold line breaks.
        super().__init__("\\n".join(masked(message).splitlines()))


class RunFailedError(UserError):
    """A run that had started failed."""


class StorageError(RunFailedError):
    """A disk or a store failed; another attempt, or another node, may succeed."""


def kind_of(error: Exception) -> type[UserError]:
    """Returns the class for an error of the system: `StorageError` if it may be transient, such as EIO."""
    is_transient = isinstance(error, OSError) and error.errno in _TRANSIENT
    return StorageError if is_transient else UserError


def cannot_write(path: object, error: Exception) -> StorageError:
    """Returns the error of a result file that cannot be written, as on a full disk."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return StorageError(
        f"{path} cannot be written ({reason}). Free some space, or bring its disk back; the same command then resumes."
    )


class TrainingDivergedError(RunFailedError):
    """The loss of a run became infinite or NaN."""
