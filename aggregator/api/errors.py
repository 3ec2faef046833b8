"""Errors the API answers with."""


class ApiError(Exception):
    """A request that cannot be met: what is wrong, and what to do."""

    def __init__(
        self, status: int, error: str, hint: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.headers = headers or {}


def not_found(code: str, error: str, hint: str) -> ApiError:
    """404 with the ``X-Error-Code`` that Hugging Face's client knows: which thing is absent."""
    return coded(404, code, error, hint)


def coded(status: int, code: str, error: str, hint: str) -> ApiError:
    """An error with ``X-Error-Code``, and ``X-Error-Message``, which Hugging Face's client prints.

    A header is ASCII: what else a request or a person wrote becomes ``?`` there.
    """
    message = "".join(one if " " <= one <= "~" else "?" for one in error)
    return ApiError(status, error, hint, {"X-Error-Code": code, "X-Error-Message": message})
