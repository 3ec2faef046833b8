"""Croissant 1.1 (https://mlcommons.org/croissant): a release as JSON-LD that ML tools load.

``croissant_json`` is the file in a release: no host, time or version number, so that equal runs
give equal bytes; its ``contentUrl`` are relative. ``served`` is what the API answers: with
addresses, the version and its date.
"""

import json
from collections.abc import Mapping
from typing import Any

from aggregator.card import CITATION
from shared.contract import RunContract
from shared.frozen import canonical_json
from shared.release.facts import task_tags, task_title
from shared.release.manifest import sha256

CROISSANT = "croissant.json"
CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
LICENSE_URL = "https://spdx.org/licenses/{}.html"
MEDIA_TYPES = {
    ".parquet": "application/x-parquet",
    ".safetensors": "application/octet-stream",
    ".png": "image/png",
}
COLUMNS = (
    ("id", "sc:Text", "Name of the pair; pairs come in the order of pairs.safetensors."),
    ("task", "sc:Text", "What makes LQ of HQ."),
    ("lq", "sc:ImageObject", "Low-quality image: 16-bit grey PNG."),
    ("hq", "sc:ImageObject", "High-quality image, the target: 16-bit grey PNG."),
    ("window_low", "sc:Float", "Stored value of level 0."),
    ("window_high", "sc:Float", "Stored value of level 65535."),
    ("window_unit", "sc:Text", "Unit of the stored values."),
)
"""The columns of pairs.parquet, in its order: name, type, and what it is."""
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant_json(
    *, contract: RunContract, pairs: int, license: str, parquet: str, data: Mapping[str, bytes]
) -> bytes:
    """The file ``croissant.json`` over ``data``, of which ``parquet`` has the columns."""
    task = contract.task
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": contract.name,
        "conformsTo": CONFORMS_TO,
        "description": (
            f"{pairs} synthetic pairs of a low-quality and a high-quality {task.modality} image, "
            f"{task.size_px} × {task.size_px} pixels, distilled from federated gradients to train "
            f"image enhancement networks: {task_title(task)}. Not for diagnosis."
        ),
        "citeAs": CITATION,
        "license": LICENSE_URL.format(license),
        "keywords": ["medical", "dataset distillation", "synthetic", *task_tags(task)],
        "creator": {"@type": "sc:Organization", "name": "fedstill"},
        "isLiveDataset": False,
        "distribution": [_file_object(name, content) for name, content in sorted(data.items())],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "pairs",
                "name": "pairs",
                "description": "One pair a record.",
                "key": {"@id": "pairs/id"},
                "field": [_field(parquet, *column) for column in COLUMNS],
            }
        ],
    }
    return canonical_json(document)


def served(
    content: bytes, *, page: str, files: str, number: int, created_at: str
) -> dict[str, Any]:
    """The document of version ``number``: ``content`` with the page's and the files' addresses.

    ``files`` is the address below which the files lie, ending in a slash.
    """
    document: dict[str, Any] = json.loads(content)
    for one in document["distribution"]:
        one["contentUrl"] = files + one["contentUrl"]
    return {
        **document,
        "url": page,
        "version": f"{number}.0.0",
        "datePublished": created_at,
    }


def _file_object(name: str, content: bytes) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{len(content)} B",
        "encodingFormat": MEDIA_TYPES[name[name.rfind(".") :]],
        "sha256": sha256(content),
    }


def _field(parquet: str, name: str, kind: str, description: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileObject": {"@id": parquet}, "extract": {"column": name}}
    if kind == "sc:ImageObject":
        source["transform"] = {"jsonPath": "bytes"}
    return {
        "@type": "cr:Field",
        "@id": f"pairs/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
        "source": source,
    }
