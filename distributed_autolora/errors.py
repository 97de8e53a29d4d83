"""Errors that are for people: what was wrong, where, and what to do. Their messages never hold the secret of a URI."""

from __future__ import annotations

import errno
import re

# A user part may hold unescaped quotes and brackets, and a password a slash as well; so may a query. A quote that
# closes a text, and a double quote that ends a value of JSON, ends a URI.
_URI = re.compile(
    r"(?<![\w+.-])([A-Za-z][\w+.-]*:)?//"
    r"(?:(?:[^\s\"/@]|\"(?![,:\]}\s]))*@|[^\s\"'<>/@:]+:[^\s\"@?]*@)?(?=[^\s\"'<>])[^\s\"'<>?]*"
    r"(?:\?(?:[^\s\"'>]|[\"'>](?![,:\]}]|[.;)]*(?:\s|\Z)))*)?"
)
_ONE_URI = re.compile(r"[A-Za-z][\w+.-]*://\S+")
# A password may hold an unescaped slash; where it has none, an "@" in the path is no end of it.
_USER = re.compile(r"(?<=//)(?:[^/@]*@(?:[^/]*@)?|[^/@:]+:[^@?]*@)")
# A semicolon may part a query, or be part of a secret: it parts where a name follows, but never begins a value.
_QUERY = re.compile(r"(?<=[?&;])(?P<name>[^=&;?]+)=(?P<value>(?=[^&]);?(?:[^&;]|;(?![^=&;?]+=))*)")
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EAGAIN, errno.EHOSTUNREACH})
# What pyarrow and databases are told of a place, and a reader of an error message needs to know.
_PLAIN = frozenset({"region", "scheme", "endpoint_override", "allow_bucket_creation", "driver", "timeout"})


def masked(text: str) -> str:
    """Hides user name, password and the values of a query (tokens, signatures) in every URI of a text."""
    return masked_uri(text) if _ONE_URI.fullmatch(text) else _URI.sub(lambda uri: masked_uri(uri[0]), text)


def masked_uri(uri: str) -> str:
    """Hides the same in a text that is one URI and nothing else, whatever characters its secret has."""
    return _QUERY.sub(_hidden, _USER.sub("***@", uri))


def _hidden(part: re.Match[str]) -> str:
    is_plain = part["name"].lower() in _PLAIN and ";" not in part["value"]
    return part[0] if is_plain else f"{part['name']}=***"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class UserError(Exception):
    """Input or circumstances that only the user can change; its message is one readable line."""

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))


class RunFailedError(UserError):
    """A run that had started could not be brought to its end."""


class StorageError(RunFailedError):
    """A disk or a store that failed; another attempt, or another node, may fare better."""


def kind_of(error: Exception) -> type[UserError]:
    """Returns what an error of the system is to people: `StorageError` where the same may work later, as EIO."""
    passing = isinstance(error, OSError) and error.errno in _PASSING
    return StorageError if passing else UserError


def cannot_write(path: object, error: Exception) -> StorageError:
    """Returns what people are told when a file that a program leaves cannot be written, as on a full disk."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return StorageError(
        f"{path} cannot be written ({reason}). Free some space, or bring its disk back; the same command then goes on."
    )


class TrainingDivergedError(RunFailedError):
    """The loss of a run became infinite or NaN."""
