import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from shared.release import transfer
from shared.release.cli import app
from shared.release.errors import KINDS
from shared.release.key_list import RevokedKey
from shared.release.keys import encode_key

Contents = Callable[..., dict[str, bytes]]
WritePem = Callable[[Ed25519PrivateKey], Path]


def distilled(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_exit_codes_are_distinct_and_in_the_help() -> None:
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 2, 130} & set(codes)
    shown = distilled("--help").stdout
    for kind in KINDS:
        assert f"{kind.exit_code} {kind.code}" in shown


def test_verify_passes_a_genuine_release(
    release: Path, key: Ed25519PrivateKey, write_pem: WritePem
) -> None:
    done = distilled("verify", release, "--key", write_pem(key))
    assert done.exit_code == 0
    assert "fedstill/ct-demo v1" in done.stdout
    report = json.loads(distilled("verify", release, "--key", write_pem(key), "--json").stdout)
    assert report["verified"] is True
    assert report["version"] == 1


@pytest.mark.parametrize(
    ("name", "spoil", "code"),
    [
        ("pairs.safetensors", flip, 10),
        ("SHA256SUMS", flip, 10),
        ("MANIFEST.json", flip, 11),
        ("MANIFEST.json.sig", flip, 12),
        ("VERSION.json.sig", flip, 12),
        ("README.md", Path.unlink, 13),
        ("MANIFEST.json", Path.unlink, 13),
        ("extra.bin", Path.touch, 14),
    ],
)
def test_verify_names_the_file_and_has_a_code_for_each_fault(
    release: Path,
    key: Ed25519PrivateKey,
    write_pem: WritePem,
    name: str,
    spoil: Callable[[Path], None],
    code: int,
) -> None:
    spoil(release / name)
    done = distilled("verify", release, "--key", write_pem(key))
    assert done.exit_code == code
    assert f"error: {name}: " in done.stderr
    as_json = distilled("verify", release, "--key", write_pem(key), "--json")
    assert as_json.exit_code == code
    report = json.loads(as_json.stdout)
    assert (report["exit_code"], report["file"]) == (code, name)


def test_verify_refuses_a_path_that_leaves_the_folder(
    tmp_path: Path, contents: Contents, key: Ed25519PrivateKey, write_pem: WritePem
) -> None:
    manifest = contents()["MANIFEST.json"].replace(b'"README.md"', b'"../../x.md"')
    for name, content in contents(manifest=manifest).items():
        (tmp_path / name).write_bytes(content)
    done = distilled("verify", tmp_path, "--key", write_pem(key))
    assert done.exit_code == 15
    assert "MANIFEST.json" in done.stderr
    assert "../../x.md" in done.stderr


def test_verify_refuses_another_key_and_a_swapped_version(
    release: Path,
    contents: Contents,
    key: Ed25519PrivateKey,
    other_key: Ed25519PrivateKey,
    write_pem: WritePem,
) -> None:
    done = distilled("verify", release, "--key", write_pem(other_key))
    assert done.exit_code == 16
    assert "VERSION.json" in done.stderr
    newer = contents(number=2)
    for name in ("VERSION.json", "VERSION.json.sig"):
        (release / name).write_bytes(newer[name])
    done = distilled("verify", release, "--key", write_pem(key))
    assert done.exit_code == 17
    assert "VERSION.json" in done.stderr


def test_verify_without_any_key_says_how_to_get_one(release: Path) -> None:
    done = distilled("verify", release)
    assert done.exit_code == 16
    assert "--key FILE" in done.stderr


def test_get_says_aloud_whom_it_trusts_and_verify_then_knows(
    server: Any, contents: Contents, tmp_path: Path
) -> None:
    server.publish("main", contents())
    done = distilled("get", "ct-demo", "--from", server.url, "--to", tmp_path / "here")
    assert done.exit_code == 0, done.output
    assert "is trusted from now on" in done.stderr
    assert distilled("verify", tmp_path / "here").exit_code == 0
    again = distilled("get", "ct-demo", "--from", server.url, "--to", tmp_path / "again", "--json")
    assert json.loads(again.stdout)["key_pinned_now"] is False
    shown = distilled("get", "ct-demo", "--from", server.url, "--to", tmp_path / "again")
    assert "is trusted" not in shown.stderr
    assert "already there" in shown.stdout


def test_get_ends_with_the_code_of_what_went_wrong(
    server: Any, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0.001)
    server.publish("v2", contents(number=2))

    def code(what: str, url: str = server.url) -> int:
        done = distilled("get", what, "--from", url, "--to", tmp_path / "here")
        assert not list(tmp_path.glob("*here*"))
        return done.exit_code

    assert code("ct-demo@v9") == 22
    assert code("ct-demo", "http://127.0.0.1:1") == 20
    assert code("not a name") == 2
    assert code("ct-demo", "ftp://host") == 2
    server.cut_after = 1000
    assert code("ct-demo@v2") == 21
    server.cut_after = None
    server.publish("main", contents(number=2))
    first = distilled("get", "ct-demo", "--from", server.url, "--to", tmp_path / "other")
    assert first.exit_code == 0
    server.publish("main", contents(number=1))
    assert code("ct-demo") == 18
    server.publish("main", contents(number=2))
    assert distilled("get", "ct-demo@v2", "--from", server.url, "--to", tmp_path).exit_code == 3


def test_info_reads_a_folder(release: Path) -> None:
    provenance = {"contract": {"task": {"name": "ct-denoise"}}, "pairs": 8}
    (release / "provenance.json").write_text(json.dumps(provenance))
    document = json.loads(distilled("info", release, "--json").stdout)
    assert document["name"] == "fedstill/ct-demo"
    assert document["pairs"] == 8
    assert "not checked" in document["verified"]


AGREEMENT = json.dumps({"version": 3, "text": "Do no harm.\x1b[2J\nCite us."}).encode()


def test_a_gated_dataset_is_had_after_accepting(
    server: Any, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSTILL_TOKEN", "feds_secret")
    server.publish("v1", contents())
    gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Accept the agreement first."}
    server.answers["MANIFEST.json"] = [(403, gated, b'{"error": "gated", "hint": ""}')]
    page = f"{server.url}/datasets/fedstill/ct-demo/v1"
    done = distilled("get", page, "--to", tmp_path / "x")
    assert done.exit_code == 30
    assert "Accept the agreement first." in done.stderr
    assert "distilled accept" in done.stderr
    server.answers["agreement"] = [(200, {}, AGREEMENT)] * 4
    runner = CliRunner()
    said_no = runner.invoke(app, ["accept", "ct-demo", "--from", server.url], input="n\n")
    assert said_no.exit_code == 1
    assert server.posts == []
    said_yes = runner.invoke(app, ["accept", page], input="y\n")
    assert said_yes.exit_code == 0, said_yes.output
    assert "Do no harm." in said_yes.stderr
    assert "\x1b" not in said_yes.stderr
    assert "agreement 3 accepted" in said_yes.stdout
    (path, body), *more = server.posts
    assert path == "/api/datasets/fedstill/ct-demo/agreement"
    assert json.loads(body) == {"version": 3, "accept": True}
    assert more == []
    as_json = distilled("accept", "ct-demo", "--from", server.url, "--yes", "--json")
    assert json.loads(as_json.stdout)["accepted"] is True
    assert distilled("get", page, "--to", tmp_path / "x").exit_code == 0
    server.answers["POST"] = [(401, {}, b'{"error": "unknown token", "hint": ""}')]
    refused = distilled("accept", page, "--yes")
    assert refused.exit_code == 33
    for shown in (done, said_no, said_yes, as_json, refused):
        assert "feds_secret" not in shown.output + shown.stderr
    assert server.tokens == {"Bearer feds_secret"}


def test_a_withdrawn_version_and_a_token_that_is_none(
    server: Any, contents: Contents, tmp_path: Path
) -> None:
    server.publish("v1", contents())
    body = json.dumps({"error": "ct-demo@v1 was withdrawn: a site took back its consent"})
    server.answers["MANIFEST.json"] = [(410, {}, body.encode())]
    done = distilled("get", "ct-demo@1", "--from", server.url, "--to", tmp_path / "x")
    assert done.exit_code == 31
    assert "took back its consent" in done.stderr
    server.head = server.signed_head(withdrawn=(1,))  # a mirror that serves it all the same
    done = distilled("get", "ct-demo@1", "--from", server.url, "--to", tmp_path / "x")
    assert done.exit_code == 31
    for token in ("has space", "Ã¼", "line\nbreak"):
        done = distilled("get", "ct-demo", "--from", server.url, "--token", token)
        assert done.exit_code == 2
        assert token not in done.stderr


def test_get_takes_a_page_or_a_name_with_a_server(server: Any, contents: Contents) -> None:
    assert distilled("get", "ct-demo").exit_code == 2
    assert distilled("get", "https://host/nothing").exit_code == 2
    page = f"{server.url}/datasets/fedstill/ct-demo"
    assert distilled("get", page, "--from", server.url).exit_code == 2


def test_verify_refuses_what_a_revoked_key_signed(
    server: Any,
    contents: Contents,
    tmp_path: Path,
    key: Ed25519PrivateKey,
    other_key: Ed25519PrivateKey,
    write_pem: WritePem,
) -> None:
    server.publish("v1", contents())
    get = ["get", "ct-demo@v1", "--from", server.url, "--to"]
    assert distilled(*get, tmp_path / "x").exit_code == 0
    gone = RevokedKey(key=encode_key(key.public_key()), reason="laptop stolen")
    server.rotate(other_key, signers=[key, other_key], revoked=(gone,))
    server.publish("v2", contents(number=2, signer=other_key))
    assert distilled("verify", tmp_path / "x").exit_code == 0  # nothing was heard yet
    fresh = distilled("get", "ct-demo", "--from", server.url, "--to", tmp_path / "y")
    assert fresh.exit_code == 0, fresh.stderr
    assert "new keys; they follow" in fresh.stderr
    for arguments in ([], ["--key", write_pem(key)]):
        done = distilled("verify", tmp_path / "x", *arguments)
        assert done.exit_code == 19
        assert "laptop stolen" in done.stderr
    assert distilled("verify", tmp_path / "y").exit_code == 0


@pytest.mark.parametrize("place", ["model", "model/deeper", ""])
def test_train_refuses_to_write_into_the_release(release: Path, place: str) -> None:
    done = distilled("train", release, "--evaluate", ".", "--save", release / place)
    assert done.exit_code == 3
    assert "no longer verifies" in done.stderr


def test_train_refuses_a_file_in_place_of_a_folder(release: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"")
    done = distilled("train", release, "--evaluate", ".", "--save", tmp_path / "model")
    assert done.exit_code == 3
    assert "is a file" in done.stderr


@pytest.mark.parametrize(
    ("network", "said"),
    [("resnet", "red-cnn"), ("unet:widht=8", "widht"), ("dncnn:depth=99", "depth")],
)
def test_train_names_what_is_wrong_with_a_network(release: Path, network: str, said: str) -> None:
    done = distilled("train", release, "--evaluate", ".", "--network", network)
    assert done.exit_code == 2
    assert "--network" in done.stderr
    assert said in done.stderr


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "flwr", "pydicom", "SimpleITK", "scipy", "skimage",
                                  "fastapi", "sqlalchemy", "pyarrow", "PIL"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def test_the_client_needs_no_torch() -> None:
    modules = "agreements cache cached_release cli client command_line dataset delivery downloads"
    modules += (
        " errors facts head key_list keys manifest model model_card progress publishers train"
    )
    modules += " train_command transfer"
    code = (
        BLOCKED
        + f"""
import importlib
from shared.release.errors import LocalError
for name in {modules.split()!r}:
    try:
        importlib.import_module("shared.release." + name)
    except LocalError as error:
        print(name, error, "|", error.hint)
assert "torch" not in sys.modules
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["dataset", "model", "train"]  # they say so
    assert all("torch: is not installed" in line for line in lines)
    assert all("fedstill[train]" in line for line in lines)


def test_train_without_torch_says_what_to_install(
    release: Path, key: Ed25519PrivateKey, write_pem: WritePem
) -> None:
    code = BLOCKED + "from shared.release.cli import main; main()"
    arguments = ["train", release, "--evaluate", ".", "--key", write_pem(key)]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert "pip install 'fedstill[train]'" in done.stderr
    assert "Traceback" not in done.stderr
