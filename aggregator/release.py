"""Builds a release from a finished run, signs it, and publishes it.

Everything the manifest lists follows from the contract, the pairs and the result: equal runs give
equal bytes and so one digest. Blobs are stored first and the catalog's row last, so a version is
absent or complete. Publishing the same content again returns the version it already has.
"""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from rfc8785 import CanonicalizationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from aggregator.card import LICENSE, card, provenance
from aggregator.catalog import Catalog, StoredFile, Version
from aggregator.contact_sheet import contact_sheet
from aggregator.croissant import CROISSANT, croissant_json
from aggregator.home import AggregatorHome
from aggregator.privacy_report import Attacks, privacy_facts, privacy_page
from aggregator.publisher_keys import PublisherKeys
from aggregator.store import BlobStore
from aggregator.utility import pairs_digest, refuse_unworthy
from aggregator.worth import Utility
from shared.contract import RunContract
from shared.frozen import canonical_json, explain
from shared.release.client import NAMESPACE
from shared.release.errors import LocalError
from shared.release.facts import pairs_facts, task_labels, window_unit
from shared.release.manifest import (
    MANIFEST,
    MANIFEST_MINISIGN,
    MANIFEST_SIGNATURE,
    SUMS,
    VERSION,
    VERSION_SIGNATURE,
    manifest_bytes,
    sha256,
    sign,
    sums_bytes,
    version_bytes,
)
from shared.release.minisign import signature_text
from shared.release.provenance import statement

PAIRS, PARQUET, SHEET = "pairs.safetensors", "pairs.parquet", "contact-sheet.png"
CARD, PROVENANCE = "README.md", "provenance.json"
PRIVACY, PRIVACY_PAGE = "privacy.json", "PRIVACY.md"

FloatArray = NDArray[np.float32]


class PublishError(LocalError):
    """A run that cannot be published; names the file of the run and what is wrong with it."""


@dataclass(frozen=True)
class Release:
    """A published version."""

    name: str
    version: int
    digest: str
    """SHA-256 (hex) of MANIFEST.json."""
    url: str


def publish_run(
    *,
    home: Path,
    contract: RunContract,
    pairs: Path,
    result: Mapping[str, Any],
    utility: Mapping[str, Any] | None,
    attacks: Mapping[str, Any] | None = None,
) -> Release:
    """Publishes a finished run from its ``pairs.safetensors`` and ``result.json``.

    Raises ``PublishError`` where the run's output is not fit to publish, ``GateError`` where it is
    worth no more than what needs no hospital, ``ReleaseError`` where the signing key cannot be
    read.
    """
    place = AggregatorHome(home)
    lq, hq = read_pairs(pairs, contract=contract)
    decided = refuse_unworthy(
        utility,
        contract_digest=contract.digest(),
        pairs_sha256=pairs_digest(lq, hq),
        required=place.settings.require_utility,
        margin_db=contract.evaluation.margin_db,
    )
    if utility is not None and decided is not None:
        utility = {**utility, "gate": asdict(decided)}
    files = build_files(
        contract=contract, lq=lq, hq=hq, result=result, utility=utility, attacks=attacks
    )
    return publish_files(home=home, contract=contract, files=files)


def publish_files(*, home: Path, contract: RunContract, files: Mapping[str, bytes]) -> Release:
    """Publishes the files of a release; raises ``ReleaseError`` where the key cannot be read."""
    place = AggregatorHome(home)
    key = PublisherKeys(place.release_key.parent).signer()
    version = publish(home=home, contract=contract, files=files, key=key)
    address = f"{place.api_url}/api/datasets/{NAMESPACE}/{version.name}"
    return Release(
        name=version.name,
        version=version.number,
        digest=version.digest,
        url=f"{address}/revision/v{version.number}",
    )


def read_pairs(path: Path, *, contract: RunContract) -> tuple[FloatArray, FloatArray]:
    """The run's ``lq`` and ``hq``, (T N, 1, S, S) each, task by task.

    Raises ``PublishError`` on anything else.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PublishError(path.name, f"cannot be read ({error})") from None
    if set(tensors) != {"lq", "hq"}:
        raise PublishError(path.name, f"must hold lq and hq, it holds {sorted(tensors)}")
    lq, hq = tensors["lq"], tensors["hq"]
    size = contract.task.size_px
    for name, images in (("lq", lq), ("hq", hq)):
        if images.dtype != np.float32 or images.shape[1:] != (1, size, size) or not len(images):
            raise PublishError(
                path.name,
                f"{name} is {images.dtype} {images.shape}, not float32 (N, 1, {size}, {size})",
            )
        if not np.isfinite(images).all():
            raise PublishError(path.name, f"{name} has values that are not finite")
    if lq.shape != hq.shape:
        raise PublishError(path.name, f"lq {lq.shape} and hq {hq.shape} differ in shape")
    tasks = len(task_labels(contract.task))
    if len(hq) % tasks:
        raise PublishError(
            path.name, f"holds {len(hq)} pairs, not as many for each of {tasks} tasks"
        )
    return lq, hq


def build_files(
    *,
    contract: RunContract,
    lq: FloatArray,
    hq: FloatArray,
    result: Mapping[str, Any],
    utility: Mapping[str, Any] | None,
    attacks: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The data files of a release by name; a pure function of its arguments.

    Of ``result`` the number of sites, the rounds and the prior's ``provenance`` are published; the
    sites' names, the times and the memory are not.
    """
    try:
        measured = None if utility is None else Utility.model_validate(utility)
        private = privacy_facts(
            contract=contract,
            result=result,
            prior=result.get("provenance", {}),
            attacks=_attacks(attacks, contract),
        )
        facts = provenance(
            contract=contract,
            pairs=len(hq),
            sites=len(result["sites"]),
            rounds=result["rounds"],
            prior=result.get("provenance", {}),
            guarantee=private["dp"],
            utility=measured,
        )
        canonical_json(facts)  # said of result.json, before any file is made
        privacy_json = canonical_json(private)
    except ValidationError as error:
        raise PublishError("utility.json", explain(error)) from None
    except KeyError as error:
        raise PublishError("result.json", f"lacks {error}") from None
    except CanonicalizationError as error:
        raise PublishError("result.json", f"holds what JSON cannot say ({error})") from None
    task = contract.task
    labels = task_labels(task)
    title = f"{NAMESPACE}/{contract.name} · {' + '.join(labels)}, {task.size_px} px"
    # MR has no unit that a person reads: its sheet is in window units.
    (low, high), unit = (task.window, "HU") if task.modality == "CT" else ((0.0, 1.0), "")
    data = {
        PAIRS: _safetensors(contract, lq, hq),
        PARQUET: _parquet(contract, lq, hq),
        SHEET: contact_sheet(
            title=title,
            lq=lq,
            hq=hq,
            low=low,
            high=high,
            unit=unit,
            tasks=[labels[k] for k in _task_of_pairs(contract, len(hq))] if labels[1:] else (),
        ),
    }
    return {
        **data,
        CARD: card(contract=contract, provenance=facts, utility=measured).encode("utf-8"),
        CROISSANT: croissant_json(
            contract=contract, pairs=len(hq), license=LICENSE, parquet=PARQUET, data=data
        ),
        PRIVACY: privacy_json,
        PRIVACY_PAGE: privacy_page(private).encode("utf-8"),
        PROVENANCE: canonical_json(statement(facts, data)),
    }


def manifest_of(contract: RunContract, files: Mapping[str, bytes]) -> bytes:
    """The manifest of a release of these files."""
    return manifest_bytes(
        name=contract.name,
        contract_digest=contract.digest(),
        license=LICENSE,
        files=dict(files),
    )


def publish(
    *, home: Path, contract: RunContract, files: Mapping[str, bytes], key: Ed25519PrivateKey
) -> Version:
    """Signs ``files`` and adds them to the catalog, or returns the version they already are."""
    manifest = manifest_of(contract, files)
    place = AggregatorHome(home)
    store = BlobStore(place.blobs)

    def stored(contents: Mapping[str, bytes]) -> list[StoredFile]:
        return [
            StoredFile(path=path, bytes=len(content), sha256=store.put(content))
            for path, content in contents.items()
        ]

    # Before the catalog's lock: a bucket may be slow, and others write to the database too.
    common = stored(
        {
            **files,
            MANIFEST: manifest,
            MANIFEST_SIGNATURE: sign(manifest, key),
            MANIFEST_MINISIGN: signature_text(
                manifest, key, comment=f"fedstill {contract.name} sha256:{sha256(manifest)}"
            ),
            SUMS: sums_bytes(manifest),
        }
    )

    def with_number(number: int) -> list[StoredFile]:
        version = version_bytes(
            namespace=NAMESPACE,
            name=contract.name,
            number=number,
            manifest=manifest,
            key=key.public_key(),
        )
        return common + stored({VERSION: version, VERSION_SIGNATURE: sign(version, key)})

    catalog = Catalog(place.catalog)
    try:
        return catalog.publish(
            namespace=NAMESPACE,
            name=contract.name,
            digest=sha256(manifest),
            summary={
                "task": contract.task.name,
                "size_px": contract.task.size_px,
                "license": LICENSE,
                "contract_digest": contract.digest(),
                "dp": _guarantee(contract),
            },
            files=with_number,
        )
    finally:
        catalog.close()


def _attacks(found: Mapping[str, Any] | None, contract: RunContract) -> Attacks | None:
    """What attacks found on this contract; raises ``PublishError``."""
    if found is None:
        return None
    try:
        attacks = Attacks.model_validate(found)
    except ValidationError as error:
        raise PublishError("attacks.json", explain(error)) from None
    if attacks.foundation != contract.foundation():
        raise PublishError("attacks.json", "is of another contract: attack this one")
    return attacks


def _guarantee(contract: RunContract) -> dict[str, float] | None:
    """What a list of versions says of privacy; the whole is in ``privacy.json``."""
    privacy = contract.privacy
    if privacy.epsilon is None:
        return None
    return {"epsilon": privacy.epsilon, "delta": privacy.delta}


def _task_of_pairs(contract: RunContract, pairs: int) -> NDArray[np.int32]:
    """Which of the contract's tasks each pair is of: they come task by task."""
    tasks = len(task_labels(contract.task))
    return np.repeat(np.arange(tasks, dtype=np.int32), pairs // tasks)


def _safetensors(contract: RunContract, lq: FloatArray, hq: FloatArray) -> bytes:
    # One metadata key alone: the library writes several in no fixed order.
    about = canonical_json({"contract_digest": contract.digest(), **pairs_facts(contract.task)})
    tensors = {
        "lq": np.ascontiguousarray(lq),
        "hq": np.ascontiguousarray(hq),
        "task": _task_of_pairs(contract, len(hq)),
    }
    return save(tensors, metadata={"fedstill": about.decode("utf-8")})


def _parquet(contract: RunContract, lq: FloatArray, hq: FloatArray) -> bytes:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text, number = {"dtype": "string", "_type": "Value"}, {"dtype": "float64", "_type": "Value"}
    picture = {"_type": "Image"}
    columns = [
        ("id", pa.string(), text),
        ("task", pa.string(), text),
        ("lq", image, picture),
        ("hq", image, picture),
        ("window_low", pa.float64(), number),
        ("window_high", pa.float64(), number),
        ("window_unit", pa.string(), text),
    ]
    features = {name: feature for name, _, feature in columns}
    schema = pa.schema(
        [(name, kind) for name, kind, _ in columns],
        # What Hugging Face's `datasets` reads to show the two columns as images.
        metadata={"huggingface": canonical_json({"info": {"features": features}})},
    )
    task, labels = contract.task, task_labels(contract.task)
    rows = [
        {
            "id": f"pair-{index:04d}",
            "task": labels[part],
            "lq": {"bytes": _png16(lq[index, 0]), "path": f"pair-{index:04d}-lq.png"},
            "hq": {"bytes": _png16(hq[index, 0]), "path": f"pair-{index:04d}-hq.png"},
            "window_low": task.window[0],
            "window_high": task.window[1],
            "window_unit": window_unit(task),
        }
        for index, part in enumerate(_task_of_pairs(contract, len(hq)))
    ]
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, out, compression="none", use_dictionary=False)
    return out.getvalue()


def _png16(image: FloatArray) -> bytes:
    """(H, W) in window units as a 16-bit grey PNG: 0 to 0, 1 to 65535, clipped."""
    levels = np.rint(np.clip(image, 0, 1).astype(np.float64) * 65535).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    return out.getvalue()
