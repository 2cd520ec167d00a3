"""One error tree for engine, server and client.

    LeadlineError
    +-- UserError                what a user typed or pointed at is wrong: one line, exit code 2, HTTP 400
    |   +-- ConfigError          an option, a recipe, an environment variable
    |   +-- InvalidRequest       a request body or sampling parameter out of range
    |   |   +-- ContextLengthExceeded
    |   +-- ModelNotFound        an unknown model name or folder                          404
    |   +-- NotFound             a key, a voucher, a user that is not there               404
    |   +-- Conflict             it was done already, or something else is in its place   409
    |   +-- CheckpointError      a folder that is not a model, a missing or damaged tensor
    |   +-- TokenizerError       a tokenizer that cannot be read or does not round-trip
    |   +-- DataError            a broken training or evaluation file
    +-- ResourceError            the machine is too small: memory, disk, a missing device
    +-- AuthenticationError      no or a wrong key                                        401
    +-- PermissionDenied         a key that may not do this                               403
    |   +-- TermsNotAccepted     the terms of use have changed, or were never accepted    403
    +-- InsufficientBalance      the account cannot pay for one more token                402
    |   +-- BudgetExceeded       the account could, but the key's spending cap says no    402
    +-- RateLimited              too many requests; try again later                       429
    +-- TrainingError            a run that cannot go on: numbers that are not finite
    +-- EngineError              a fault of ours while running                            500
    |   +-- EngineOverloaded     the queue is full or the engine is shutting down         503
    |   +-- EngineDead           the engine's thread has stopped                          503
    +-- BooksUnavailable         the database cannot be used: a full disk, a lock         503
    +-- ConnectionFailed         the client could not reach the server

The server turns each into its status and OpenAI's error body, the client turns that body back into the same class
(`code` travels). `assert` states invariants only; it never answers a user.
"""

from __future__ import annotations

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an `OSError` says when there is no room, the user's quota and the file system's limit included."""


class LeadlineError(Exception):
    """Base of every error leadline raises on purpose. `status` and `code` are what the API answers with."""

    status: int = 500
    code: str = "internal_error"
    type: str = "server_error"
    exit_code: int = 1
    retry_after: int | None = None  # seconds, where the server knows when to try again

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """`code` where a program can tell more apart than the class does."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code


class UserError(LeadlineError):
    status = 400
    code = "invalid_request_error"
    type = "invalid_request_error"
    exit_code = 2


class ConfigError(UserError):
    code = "invalid_config"


class InvalidRequest(UserError):
    pass


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ModelNotFound(UserError):
    status = 404
    code = "model_not_found"


class NotFound(UserError):
    status = 404
    code = "not_found"


class Conflict(UserError):
    status = 409
    code = "conflict"


class CheckpointError(UserError):
    code = "invalid_checkpoint"


class TokenizerError(UserError):
    code = "invalid_tokenizer"


class DataError(UserError):
    code = "invalid_data"


class ResourceError(LeadlineError):
    status = 503
    code = "insufficient_resources"
    exit_code = 2


class AuthenticationError(LeadlineError):
    status = 401
    code = "invalid_api_key"
    type = "authentication_error"
    exit_code = 2


class PermissionDenied(LeadlineError):
    status = 403
    code = "permission_denied"
    type = "permission_error"
    exit_code = 2


class TermsNotAccepted(PermissionDenied):
    code = "terms_not_accepted"


class InsufficientBalance(LeadlineError):
    status = 402
    code = "insufficient_balance"
    type = "insufficient_balance"
    exit_code = 2


class BudgetExceeded(InsufficientBalance):
    code = "budget_exceeded"


class RateLimited(LeadlineError):
    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


class TrainingError(LeadlineError):
    code = "training_failed"


class EngineError(LeadlineError):
    code = "engine_error"


class EngineOverloaded(EngineError):
    status = 503
    code = "engine_overloaded"


class EngineDead(EngineError):
    status = 503
    code = "engine_dead"


class BooksUnavailable(LeadlineError):
    """Nothing is answered that could not be paid for; it passes when the disk has room or the lock is gone."""

    status = 503
    code = "books_unavailable"
    retry_after = 5


class ConnectionFailed(LeadlineError):
    status = 503
    code = "connection_failed"


def _tree(root: type[LeadlineError]) -> list[type[LeadlineError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def from_code(status: int, code: str | None, message: str, param: str | None = None) -> LeadlineError:
    """The error that a body with this status and `code` stands for: what the client raises.

    The status goes before the code, which other servers use loosely; of classes that share both the narrowest is meant.
    """
    same_status = [cls for cls in _tree(LeadlineError) if cls.status == status]
    same_code = [cls for cls in same_status if cls.code == code]
    cls = same_code[-1] if same_code else same_status[0] if same_status else LeadlineError
    return cls(message, param=param)
