"""Errors of users and their surroundings: what was wrong, where, and what to do."""

from __future__ import annotations

import errno
import re

_PASSWORD = re.compile(
    r"(?i)(?:(?<=://)(?!\[)[^/?#:@\s]*:(?!\d*(?:[/?#\s]|$))\S*|(?<=http://)[^/?#@\s]+|(?<=https://)[^/?#@\s]+)@"
)
_TOKEN = re.compile(r"(?i)(?<=[?&;])([\w.-]*(?:pass|pwd|secret|token|key|sig|cred|auth)[\w.-]*=)[^\s&]+")
_TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EAGAIN, errno.EHOSTUNREACH})


def masked(text: str) -> str:
    """Hides user:password@ and the tokens of a query in every URI of a text, such as a library's error message."""
    return _TOKEN.sub(r"\1***", _PASSWORD.sub("***@", text)) if "://" in text else text


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


class UserError(Exception):
    """Input or circumstances that only the user can change; its message is one readable line without secrets."""

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))


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
