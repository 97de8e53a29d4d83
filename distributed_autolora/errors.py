"""Errors that are for people: what was wrong, where, and what to do."""


class UserError(Exception):
    """Input or circumstances that only the user can change; its message is one readable line."""


class RunFailedError(UserError):
    """A run that had started could not be brought to its end."""


class TrainingDivergedError(RunFailedError):
    """The loss of a run became infinite or NaN."""
