"""Who signs and who checks: what is refused, and exactly how cosign is asked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from registry_support import digest

from kiln import catalog, errors, process
from kiln.publish import client, intent, sbom, sign, statements
from kiln.tasks import namespace

if TYPE_CHECKING:
    from collections.abc import Callable

DIGEST = digest(b"image")
STATEMENT = statements.make(statements.SMOKE, {"a": 1}, name="host/app", digest=DIGEST)
FAKE = """#!/bin/sh
echo "$*" >> {log}
for word in "$@"; do
  case $word in
    --statement=*) said=${{word#--statement=}} ;;
    --bundle=*) bundle=${{word#--bundle=}} ;;
    --out=*) echo '{{}}' > "${{word#--out=}}" ;;
  esac
done
[ "$1" != attest-blob ] || cp "$said" "$bundle"
[ "$1" != verify-blob-attestation ] || {{ echo "Error: nobody signed it" >&2; exit 1; }}
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Put something in cosign's place that notes how it was asked; return what reads that, paths left out."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    (folder / "cosign").write_text(FAKE.format(log=log), encoding="utf-8")
    (folder / "cosign").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def read() -> list[str]:
        words = log.read_text(encoding="utf-8").splitlines()
        return [" ".join(_short(word) for word in line.split()) for line in words]

    return read


def _short(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name}={Path(value).name}" if equals and value.startswith("/") else word


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(sign.PASSWORD, "secret-word")
    (tmp_path / "cosign.key").write_text("key", encoding="utf-8")
    return str(tmp_path / "cosign.key")


def signer(*, key: str = "", keyless: bool = False) -> sign.Signer:
    made = sign.signer(key=key, keyless=keyless)
    assert made
    return made


def test_a_key_signs_without_any_service_and_its_password_is_in_no_argument(
    asked: Callable[[], list[str]], key: str
) -> None:
    assert signer(key=key).sign(STATEMENT) == STATEMENT.data
    assert asked() == [
        "signing-config create --out=signing-config.json",
        "trusted-root create --out=trusted-root.json",
        (
            "attest-blob --yes --key=cosign.key --signing-config=signing-config.json --trusted-root=trusted-root.json"
            " --statement=statement.json --bundle=bundle.json"
        ),
    ]


def test_keyless_is_what_cosign_does_by_itself(asked: Callable[[], list[str]]) -> None:
    assert signer(keyless=True).sign(STATEMENT) == STATEMENT.data
    assert asked() == ["attest-blob --yes --statement=statement.json --bundle=bundle.json"]


def test_a_key_in_a_kms_needs_no_file_and_no_password(
    asked: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(sign.PASSWORD, raising=False)
    signer(key="awskms://host/key").public_key()
    assert asked() == ["public-key --key=awskms://host/key"]


def test_who_checks_with_an_identity_asks_the_public_log(asked: Callable[[], list[str]]) -> None:
    verifier = sign.verifier(key="", identity="ada@example.com", issuer="https://issuer.example.com")
    assert verifier
    assert verifier.problem(b"{}", kind=statements.SMOKE, digest=DIGEST) == "nobody signed it"
    assert asked() == [
        (
            "verify-blob-attestation --certificate-identity=ada@example.com"
            " --certificate-oidc-issuer=https://issuer.example.com --bundle=bundle.json"
            f" --type={statements.SMOKE} --digest={DIGEST.removeprefix('sha256:')} --digestAlg=sha256"
        )
    ]


def test_who_checks_with_a_key_asks_nobody(asked: Callable[[], list[str]], key: str) -> None:
    verifier = sign.verifier(key=key, identity="", issuer="")
    assert verifier
    assert verifier.problem(b"{}", kind=statements.SMOKE, digest=DIGEST) == "nobody signed it"
    assert asked()[1].startswith(
        "verify-blob-attestation --key=cosign.key --trusted-root=trusted-root.json --insecure-ignore-tlog=true"
    )


@pytest.mark.parametrize("code", [1, 2, 127])
@pytest.mark.usefixtures("asked")
def test_any_exit_code_of_cosign_but_0_is_a_refusal(key: str, tmp_path: Path, code: int) -> None:
    verifier = sign.verifier(key=key, identity="", issuer="")
    assert verifier
    script = '#!/bin/sh\n[ "$1" = trusted-root ] || {{ echo "Error: no" >&2; exit {} ; }}\n'
    (tmp_path / "bin/cosign").write_text(script.format(code), encoding="utf-8")
    assert verifier.problem(b"{}", kind=statements.SMOKE, digest=DIGEST) == "no"
    (tmp_path / "bin/cosign").write_text(script.format(0), encoding="utf-8")
    assert verifier.problem(b"{}", kind=statements.SMOKE, digest=DIGEST) == ""


def test_what_is_signed_lies_where_the_next_publication_sweeps(
    asked: Callable[[], list[str]], key: str, tmp_path: Path
) -> None:
    scratch = tmp_path / "state"
    scratch.mkdir()
    made = sign.signer(key=key, keyless=False, scratch=scratch)
    assert made
    made.sign(STATEMENT)
    assert len(asked()) == 3
    assert f"--bundle={scratch}/.publish." in (tmp_path / "log").read_text(encoding="utf-8")
    assert list(scratch.iterdir()) == []


def test_nobody_is_asked_to_sign_or_to_check() -> None:
    assert sign.signer(key="", keyless=False) is None
    assert sign.verifier(key="", identity="", issuer="") is None


@pytest.mark.usefixtures("asked")
def test_wrong_requests_are_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.BadInput, match="one of them"):
        signer(key=key, keyless=True)
    with pytest.raises(errors.BadInput, match="no such key file"):
        signer(key=f"{key}.none")
    for more in ({"key": key, "identity": "a", "issuer": "b"}, {"identity": "a"}, {"key": f"{key}.none"}):
        with pytest.raises(errors.BadInput):
            sign.verifier(**{"key": "", "identity": "", "issuer": ""} | more)
    monkeypatch.delenv(sign.PASSWORD)
    with pytest.raises(errors.BadInput, match="its password is read from COSIGN_PASSWORD"):
        signer(key=key)


def test_without_cosign_a_signature_that_was_asked_for_is_missing(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(errors.Missing, match="cosign: no such program"):
        signer(key=key)
    with pytest.raises(errors.Missing, match="cosign: no such program"):
        signer(keyless=True)
    with pytest.raises(errors.Missing, match="cosign: no such program"):
        sign.verifier(key=key, identity="", issuer="")


@pytest.mark.usefixtures("asked")
def test_a_cosign_that_is_too_old_says_so(key: str, tmp_path: Path) -> None:
    (tmp_path / "bin/cosign").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    with pytest.raises(errors.Missing, match="too old to sign without a public log"):
        signer(key=key).sign(STATEMENT)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"dsseEnvelope": {"payload": "%%"}}', b'{"dsseEnvelope": []}'])
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises((errors.BadInput, errors.Findings)):
        sign.payload(data)


# who is asked what, before anything begins


def test_in_a_github_workflow_the_identity_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = intent.Request(keyless=True)
    with pytest.raises(errors.BadInput, match="--keyless"):
        intent._identified(asked)
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://git.example.com")
    monkeypatch.setenv("GITHUB_WORKFLOW_REF", "o/r/.github/workflows/release.yml@refs/heads/main")
    made = intent._identified(asked)
    assert made.identity == "https://git.example.com/o/r/.github/workflows/release.yml@refs/heads/main"
    assert made.issuer == "https://token.actions.githubusercontent.com"
    own = intent.Request(keyless=True, identity="ada@example.com", issuer="https://issuer.example.com")
    assert intent._identified(own) == own


def test_where_to_publish_is_asked_for_or_in_the_settings(catalog_copy: Path) -> None:
    with pytest.raises(errors.BadInput, match="no repository is named"):
        intent._destination(catalog.load(catalog_copy), "")
    (catalog_copy / "kiln.yaml").write_text("publish: registry.example.com/team/vllm\n", encoding="utf-8")
    loaded = catalog.load(catalog_copy)
    assert str(intent._destination(loaded, "")) == "registry.example.com/team/vllm"
    assert str(intent._destination(loaded, "localhost:5000/app")) == "localhost:5000/app"
    with pytest.raises(errors.BadInput, match="Kiln names the tags itself"):
        intent._destination(loaded, "localhost:5000/app:v1")


# programs that are run on the way


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Note how a program would be started, and start none."""
    noted: dict[str, Any] = {"code": 0}

    def run(argv: tuple[str, ...], **more: Any) -> process.Result:
        noted.update(more, argv=argv)
        for word in argv:
            if word.startswith("--output=cyclonedx-json="):
                document = {"bomFormat": "CycloneDX", "components": noted.get("components", [1])}
                Path(word.rpartition("=")[2]).write_text(json.dumps(document), encoding="utf-8")
        return process.Result(code=noted["code"], stdout="out", stderr="because")

    monkeypatch.setattr(process, "run", run)
    return noted


def test_the_clean_client_has_nothing_of_this_person(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (sign.PASSWORD, "KILN_CONFIG", "KILN_ROOT", "DOCKER_HOST", "TOKEN"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    client.run(("verify", "x"), host="registry.example.com", scratch=tmp_path)
    env = started["env"]
    assert "mine" not in env.values()
    assert started["argv"] == (sys.executable, "-P", "-m", "kiln", "verify", "x")
    assert "cwd" not in started, "the printed command is the one that was run, from the same folder"
    for name in ("HOME", "DOCKER_CONFIG", "KILN_HOME", "TMPDIR"):
        assert env[name].startswith(str(tmp_path / ".publish.")), "the next publication sweeps it"
    assert list(tmp_path.iterdir()) == []
    auths = {"registry.example.com": {"auth": "YTpi"}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}), encoding="utf-8")
    client.run(("verify", "x"), host="registry.example.com", scratch=tmp_path)
    assert started["env"]["DOCKER_CONFIG"] == str(tmp_path)


def test_what_does_not_verify_from_a_clean_client_is_refused(started: dict[str, Any], tmp_path: Path) -> None:
    started["code"] = 8
    with pytest.raises(errors.PublishRefused, match=r"exit code 8\):\nout\nbecause") as caught:
        client.run(("verify", "a b"), host="registry.example.com", scratch=tmp_path)
    assert caught.value.hint == "kiln verify 'a b'"


@pytest.mark.parametrize(("host", "plain"), [("127.0.0.1:5000", "true"), ("registry.example.com", "false")])
def test_syft_is_asked_for_what_is_in_the_registry(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, host: str, plain: str
) -> None:
    monkeypatch.setenv(sign.PASSWORD, "mine")
    document = sbom.make(f"{host}/app@{DIGEST}", scratch=tmp_path, host=host, ca=Path("/etc/ca.pem"))
    assert document["components"] == [1]
    assert started["argv"][1:4] == ("scan", f"registry:{host}/app@{DIGEST}", "--platform=linux/amd64")
    env = started["env"]
    assert "mine" not in env.values()
    assert (env["SYFT_REGISTRY_INSECURE_USE_HTTP"], env["SYFT_REGISTRY_CA_CERT"]) == (plain, "/etc/ca.pem")
    assert env["TMPDIR"].startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_image_of_which_nothing_is_known_has_no_sbom(started: dict[str, Any], tmp_path: Path) -> None:
    started["components"] = []
    with pytest.raises(errors.CommandFailed, match="syft found no component"):
        sbom.make("h/app", scratch=tmp_path, host="h", ca=None)
    started["code"] = 1
    with pytest.raises(errors.CommandFailed, match="because"):
        sbom.make("h/app", scratch=tmp_path, host="h", ca=None)


def test_both_tasks_are_there() -> None:
    assert {"publish", "verify"} <= set(namespace().task_names)
