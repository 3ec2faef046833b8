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
    return ApiError(404, error, hint, {"X-Error-Code": code, "X-Error-Message": error})
