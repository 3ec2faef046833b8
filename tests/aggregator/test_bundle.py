import hashlib
import importlib
import io
import tomllib
import zipfile

from aggregator.bundle import build_bundle


def test_the_bundle_carries_no_code() -> None:
    bundle, digest = build_bundle()
    assert zipfile.ZipFile(io.BytesIO(bundle)).namelist() == ["pyproject.toml", ".info/CONTENT"]
    assert digest == hashlib.sha256(bundle).hexdigest()


def test_it_is_the_same_each_time() -> None:
    assert build_bundle() == build_bundle()


def test_its_components_are_the_installed_ones() -> None:
    archive = zipfile.ZipFile(io.BytesIO(build_bundle()[0]))
    document = tomllib.loads(archive.read("pyproject.toml").decode())
    for reference in document["tool"]["flwr"]["app"]["components"].values():
        module, _, name = reference.partition(":")
        assert hasattr(importlib.import_module(module), name)
