import base64
import json
import os
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from pydicom import dcmread
from typer.testing import CliRunner

from shared.messages import Message, SummaryHeader, encode, payload_digest
from site_agent.audit import AuditLog
from site_agent.cli import app
from site_agent.incidents import log
from site_agent.outbox import Outbox
from site_agent.settings import read_settings

CANARIES = ("CANARY^JANE", "CANARY-MRN-77", "CANARY-PRIVATE", "CANARY-FOLDER", "CANARYFILE")


@pytest.fixture
def invoke(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [*arguments, "--home", str(tmp_path / "home")])

    return run


def init(invoke, images):
    return invoke(
        *("init", "--name", "site-a", "--aggregator", "localhost:8443", "--images", str(images))
    )


def occurrences(content):
    """Which canaries are in ``content``: as text, UTF-16, base64 or hex."""
    found = set()
    lowered = content.lower()
    for canary in CANARIES:
        plain = canary.encode()
        forms = [plain, canary.encode("utf-16-le"), plain.hex().encode()]
        # Base64 of the middle, for each alignment it can have.
        for shift in range(3):
            encoded = base64.b64encode(b"\0" * shift + plain)
            forms.append(encoded[4 if shift else 0 : -4])
        found |= {canary for form in forms if form.lower() in lowered}
    return found


def plant(folder, write_slice):
    """Six patients whose identifiers and names are canaries, and files that fail in many ways."""
    generator = np.random.default_rng(0)
    for number in range(6):
        stored = generator.integers(0, 1500, (40, 40)).astype(np.uint16)
        path = folder / f"CANARY-FOLDER-{number}" / "CANARYFILE.dcm"
        write_slice(
            path, stored, patient_id=f"CANARY-MRN-77-{number}", PatientName=f"CANARY^JANE^{number}"
        )
        dataset = dcmread(path)
        dataset.add_new((0x0011, 0x0010), "LO", "CANARY-PRIVATE")
        dataset.save_as(path)
    content = (folder / "CANARY-FOLDER-0" / "CANARYFILE.dcm").read_bytes()
    (folder / "CANARYFILE-broken").write_bytes(content.replace(b"-1024.0 ", b"CANARY^J"))
    (folder / "CANARYFILE-short").write_bytes(content[:-200])
    (folder / "CANARYFILE.nii").write_bytes(b"CANARY-PRIVATE" * 40)


def test_init_says_what_comes_next(invoke, tmp_path):
    result = init(invoke, tmp_path)
    assert result.exit_code == 0
    assert "site-agent join KIT" in result.output
    again = init(invoke, tmp_path)
    assert again.exit_code == 2
    assert "is there already" in again.output


def test_init_asks_for_what_is_not_given(tmp_path):
    home = tmp_path / "home"
    asked = CliRunner().invoke(
        app,
        ["init", "--aggregator", "localhost:8443", "--home", str(home)],
        input=f"site-a\n{tmp_path}\n",
    )
    assert asked.exit_code == 0
    made = read_settings(home)
    assert (made.name, made.aggregator, made.images) == ("site-a", "localhost:8443", tmp_path)


def test_index_counts_for_people_and_machines(invoke, tmp_path, write_slice):
    images = tmp_path / "images"
    plant(images, write_slice)
    init(invoke, images)
    result = invoke("index", "--json")
    assert result.exit_code == 0
    counts = json.loads(result.stdout)
    assert (counts["patients"], counts["slices"], counts["files"]) == (6, 6, 9)
    assert sum(counts["skipped"].values()) == 3
    assert "6 patients" in invoke("index").stdout


def test_nothing_usable_is_a_clear_error(invoke, tmp_path, write_slice):
    write_slice(tmp_path / "images" / "a", Modality="MR")
    init(invoke, tmp_path / "images")
    result = invoke("index")
    assert result.exit_code == 2
    assert "1 not-ct" in result.output
    (tmp_path / "images" / "a").unlink()
    (tmp_path / "images").rmdir()
    result = invoke("index")
    assert result.exit_code == 2
    assert "is not a folder" in result.output


def test_commands_on_a_home_that_is_none_say_so(invoke):
    for command in ("index", "worker", "connect", "up", "status"):
        result = invoke(command)
        assert result.exit_code == 2
        assert "site-agent init" in result.output


def test_status_without_a_worker(invoke, tmp_path):
    init(invoke, tmp_path)
    result = invoke("status", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"site": "site-a", "running": False}


def test_an_mr_site_indexes_the_sequence_it_names(invoke, tmp_path, write_slice):
    stored = np.zeros((32, 32), np.uint16)
    stored[8:24, 8:24] = 700
    for patient in range(3):
        for name in ("T1w", "FLAIR"):
            write_slice(
                tmp_path / "images" / f"{patient}-{name}",
                stored,
                patient_id=f"P{patient}",
                series=f"1.2.{len(name)}",
                Modality="MR",
                RescaleIntercept=0,
                SeriesDescription=f"ax {name} CANARY",
            )
    init(invoke, tmp_path / "images")
    file = tmp_path / "home" / "site.toml"
    file.write_text(file.read_text().replace('# modality = "CT"', 'modality = "MR"'))
    assert json.loads(invoke("index", "--json").stdout)["slices"] == 6
    file.write_text(file.read_text().replace('# sequence = "FLAIR"', 'sequence = "flair"'))
    counts = json.loads(invoke("index", "--json").stdout)
    assert (counts["patients"], counts["slices"]) == (3, 3)
    assert counts["skipped"] == {"other-sequence": 3}
    cohort = tmp_path / "home" / "cohort"
    assert json.loads((cohort / "index.json").read_text())["modality"] == "MR"
    assert all(b"CANARY" not in path.read_bytes() for path in cohort.iterdir())
    file.write_text(file.read_text().replace('"flair"', '"DWI"'))
    result = invoke("index")
    assert result.exit_code == 2
    assert "6 other-sequence" in result.output


def test_kernel_fit_prints_the_table_of_a_contract(real_data, tmp_path):
    patient = real_data / "ct" / "kernel-pairs" / "Lung_Dx-A0001"
    folders = ("--sharp", str(patient / "kernel-L"), "--soft", str(patient / "kernel-B"))
    result = CliRunner().invoke(
        app, ["kernel-fit", *folders, "--steps", "8", "--json", str(tmp_path / "task.json")]
    )
    assert result.exit_code == 0
    table = tomllib.loads(result.stdout)["task"]
    assert (table["name"], table["fitted_pairs"], len(table["noise_hu"])) == ("ct-kernel", 8, 8)
    written = json.loads((tmp_path / "task.json").read_text())
    assert {key: written[key] for key in table} == table
    swapped = ("--sharp", str(patient / "kernel-B"), "--soft", str(patient / "kernel-L"))
    result = CliRunner().invoke(app, ["kernel-fit", *swapped])
    assert result.exit_code == 2
    assert "swap the two" in result.output
    for wrong in (("--steps", "3"), ("--size", "20")):
        result = CliRunner().invoke(app, ["kernel-fit", *folders, *wrong])
        assert result.exit_code == 2
        assert wrong[0] in result.output


def test_every_command_explains_itself():
    for command in ("init", "index", "worker", "connect", "up", "status"):
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert "--home" in result.output


def test_identifiers_stay_in_the_image_folder(tmp_path, write_slice):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from shared.architectures import Residual
    from shared.contract import Anchor, Probes, RunContract
    from shared.mandate import sign_contract
    from shared.messages import decode, encode, probe_batch
    from shared.tasks.settings import CtDenoise
    from shared.trajectory import start
    from site_agent.cohort import open_cohort
    from site_agent.policy_file import name_coordinators
    from site_agent.worker import answer

    tiny = Residual(depth=2, width=4)
    images, home = tmp_path / "images", tmp_path / "home"
    plant(images, write_slice)
    # The positive control: the search finds each canary where it was planted.
    planted = b"".join(path.read_bytes() for path in images.rglob("*") if path.is_file())
    names = " ".join(str(path) for path in images.rglob("*")).encode()
    assert occurrences(planted + names) == set(CANARIES)
    assert occurrences(base64.b64encode(planted)) and occurrences(planted.hex().encode())

    said = b""
    for arguments in (
        ["init", "--name", "a", "--aggregator", "localhost:1", "--images", str(images)],
        ["index"],
        ["index", "--json"],
        ["status"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "site_agent.cli", *arguments, "--home", str(home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONWARNINGS": "always"},
        )
        said += done.stdout
    assert b"6 patients" in said
    contract = RunContract(
        name="tiny",
        task=CtDenoise(size_px=32, angles=30, bins=48),
        student=tiny,
        anchor_network=tiny,
        anchor=Anchor(rounds=1, local_steps=1, batch=2, crop_px=16),
        probes=Probes(requests=1, draws=1, depths=(0,)),
    )
    coordinator = Ed25519PrivateKey.generate()
    name_coordinators(home, [coordinator.public_key().public_bytes_raw().hex()])
    settings = read_settings(home)
    payload = encode(
        probe_batch(
            contract=contract,
            round=1,
            kind="gradients",
            network="student",
            weights=start(contract, kind="gradients", network="student", round=1).numpy()[None],
            mandate=sign_contract(contract.digest(), coordinator),
        )
    )
    replies = [
        answer(
            content,
            settings=settings,
            cohort=open_cohort(settings.cohort_path),
            outbox=Outbox(settings.outbox_path),
        )
        for content in (payload, b"CANARY-PRIVATE", payload[:-3])
    ]
    assert decode(replies[0]).header.type == "summary"
    left = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    # Names of the home's files too; the images' folder itself is in site.toml, which stays.
    left += " ".join(path.name for path in home.rglob("*")).encode()
    assert occurrences(said + b"".join(replies) + left) == set()
    assert log.propagate is False


@pytest.mark.slow
def test_up_stops_with_the_fix_where_a_part_cannot_run(tmp_path):
    home = tmp_path / "home"
    arguments = ["--name", "a", "--aggregator", "localhost:1", "--images", str(tmp_path)]
    command = [sys.executable, "-m", "site_agent.cli"]
    subprocess.run([*command, "init", *arguments, "--home", str(home)], check=True)
    done = subprocess.run(
        [*command, "up", "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "worker ready" in done.stdout
    assert "aggregator-ca.crt" in done.stdout
    assert not (home / "worker.sock").exists()


def test_budget_says_what_was_spent_and_what_needs_a_fix(invoke, tmp_path):
    init(invoke, tmp_path)
    said = invoke("budget")
    assert said.exit_code == 0
    assert "spent: epsilon 0" in said.output and "budget: none" in said.output
    home = tmp_path / "home"
    policy = home / "policy.toml"
    policy.write_text(policy.read_text() + "epsilon_budget = 8.0\n")
    found = json.loads(invoke("budget", "--json").output)
    assert found["site"] == "site-a"
    assert (found["epsilon_spent"], found["epsilon_left"], found["contracts"]) == (0, 8.0, [])
    read_settings(home).ledger_path.mkdir()
    (read_settings(home).ledger_path / "ledger.sqlite").write_text("no database at all " * 9)
    damaged = invoke("budget")
    assert damaged.exit_code == 2
    assert "ledger.sqlite: is damaged" in damaged.output


def test_policy_says_what_is_allowed_and_makes_a_lost_file_anew(invoke, tmp_path):
    init(invoke, tmp_path)
    said = json.loads(invoke("policy", "--json").output)
    assert (said["min_patients"], said["max_epsilon"]) == (5, None)
    file = tmp_path / "home" / "policy.toml"
    written = file.read_text()
    file.unlink()
    lost = invoke("policy")
    assert lost.exit_code == 2 and "site-agent policy --default >" in lost.output
    assert invoke("policy", "--default").stdout == written
    file.write_text(written + "min_patients = 7\n")
    changed = invoke("policy").output
    assert "min_patients: 7" in changed and "max_epsilon: no limit" in changed
    assert said["digest"] not in changed


def test_the_audit_log_and_the_outbox_are_told(invoke, tmp_path):
    init(invoke, tmp_path)
    settings = read_settings(tmp_path / "home")
    log = AuditLog(settings.audit_path)
    heads = [log.append("started", version="1"), log.append("refused", code="policy")]
    shown = invoke("audit", "show").output.splitlines()
    assert len(shown) == 2 and "refused code=policy" in shown[1]
    lines = invoke("audit", "show", "--last", "1", "--json").output.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["refused"]
    whole = invoke("audit", "verify", "--head", heads[0])
    assert (whole.exit_code, whole.output.split()[0]) == (0, "whole:")
    other = invoke("audit", "verify", "--head", "ab" * 32)
    assert other.exit_code == 1 and "NOT WHOLE: 2 lines" in other.output
    log.path.write_bytes(log.path.read_bytes().replace(b"refused", b"stopped"))
    found = invoke("audit", "verify", "--json")
    assert found.exit_code == 1
    verdict = json.loads(found.output)
    assert (verdict["whole"], verdict["lines"], verdict["site"]) == (False, 2, "site-a")
    assert "0 answers" in invoke("outbox").output
    outbox = Outbox(settings.outbox_path)
    summary = SummaryHeader(
        contract_digest="ab" * 32,
        request_digest="cd" * 32,
        round=3,
        kind="gradients",
        site="site-a",
        patients_at_least=5,
        seconds=2.0,
    )
    values = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    answer = encode(Message(header=summary, arrays={"values": values}))
    outbox.store(answer, contract_digest="ab" * 32, round=3)
    said = invoke("outbox").output
    assert "round 3 gradients" in said and "2x2 norm 5 " in said and "1 answers, 2 grad" in said
    (entry,) = json.loads(invoke("outbox", "--json").output)["answers"]
    assert entry["digest"] == payload_digest(answer)
    assert entry["path"] == str(outbox.path(next(outbox.entries())))
    assert invoke("outbox", "--bytes", entry["digest"][:8]).stdout_bytes == answer
    assert invoke("outbox", "--bytes", "0" * 64).exit_code == 2
