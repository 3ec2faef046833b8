"""Data-use agreements of gated datasets: reading one, and accepting it."""

import json

import httpx
from pydantic import BaseModel, ValidationError

from shared.release.client import Reference
from shared.release.errors import NetworkError
from shared.release.transfer import Session, fetch_json, open_session, refusal


class Agreement(BaseModel):
    """What a server asks to be agreed to."""

    version: int
    text: str


def read(reference: Reference, *, url: str, token: str | None) -> Agreement:
    """The agreement of a dataset in its present version; raises a ``ReleaseError``."""
    with open_session(url, token=token) as session:
        address = _address(reference, url)
        document = fetch_json(session, address)
    try:
        agreement = Agreement.model_validate(document)
    except ValidationError:
        raise NetworkError(address, "the answer is no agreement") from None
    # Text of a server, for a terminal: lines and letters, nothing that steers.
    text = "".join(c for c in agreement.text if c.isprintable() or c == "\n")
    return Agreement(version=agreement.version, text=text)


def accept(reference: Reference, version: int, *, url: str, token: str | None) -> None:
    """Accepts that version of the agreement for the token's owner; raises a ``ReleaseError``."""
    address = _address(reference, url)
    with open_session(url, token=token) as session:
        _post(session, address, {"version": version, "accept": True})


def _address(reference: Reference, url: str) -> str:
    return f"{url.rstrip('/')}/api/datasets/{reference.namespace}/{reference.name}/agreement"


def _post(session: Session, address: str, document: dict[str, object]) -> None:
    content = json.dumps(document).encode()
    try:
        answer = session.http.post(
            address, content=content, headers={"Content-Type": "application/json"}
        )
    except httpx.TransportError as error:
        raise NetworkError(
            address, f"cannot be reached ({type(error).__name__})", "check the address"
        ) from None
    if not answer.is_success:
        raise refusal(
            status=answer.status_code,
            headers=answer.headers,
            body=answer.content,
            name="agreement",
            address=address,
        )
