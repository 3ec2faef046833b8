"""Errors for people: the same status and headers as the API's, as a page.

A browser says that it takes HTML; a program asks for JSON or for anything. What lies below
``/api/`` is JSON for all.
"""

from fastapi import Request
from fastapi.responses import HTMLResponse

from aggregator.pages.site import page

TITLES = {
    401: "A valid token is needed",
    403: "This dataset is restricted",
    404: "There is nothing here",
    410: "This version was withdrawn",
    422: "The address is not right",
    429: "Too many requests",
}


def wants_page(request: Request) -> bool:
    """Whether a person with a browser asks."""
    takes = request.headers.get("Accept", "")
    return (
        request.method in ("GET", "HEAD")
        and "text/html" in takes
        and not request.url.path.startswith("/api/")
    )


def refusal(
    request: Request, status: int, error: str, hint: str, headers: dict[str, str]
) -> HTMLResponse:
    """The page of an error; that of a withdrawn version leads to what is left of its dataset."""
    _, *parts = request.url.path.split("/")
    dataset = f"/{'/'.join(parts[:3])}"
    leads = status == 410 and parts[0] == "datasets" and len(parts) > 3
    answer = page(
        "refusal.html",
        status=status,
        code=status,
        title=TITLES.get(status, "This did not work"),
        error=error,
        hint="" if leads else hint,
        dataset=dataset if leads else None,
    )
    answer.headers.update(headers)
    return answer
