from __future__ import annotations

import base64
import json
import shutil
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from registry_support import LAYER, Fake, Reply, digest, image_manifest, serving

from kiln import errors, process
from kiln.registry import answers, client, credentials, image, records, tokens
from kiln.registry.records import Damaged, Descriptor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.registry.client import Registry

REPO = "team/app"
SECRET = "hunter2-hunter2"  # noqa: S105 - a password of nobody
STATEMENT = "application/vnd.in-toto+json"


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """Give each test an empty Docker configuration and no CA bundle; return the waits, which take no time."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    return waits


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake()) as served:
        yield served


@pytest.fixture
def registry(fake: Fake) -> Iterator[Registry]:
    with client.connect(fake.host) as connected:
        yield connected


def login(tmp_path: Path, **config: object) -> None:
    folder = tmp_path / "docker"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def auth_of(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def shown(caught: pytest.ExceptionInfo[errors.KilnError]) -> str:
    return f"{caught.value.message} {caught.value.hint} {caught.value!r}"


# manifests


def test_a_tag_is_asked_for_its_digest_first_and_read_by_it(fake: Fake, registry: Registry) -> None:
    named = fake.put_image(REPO, "v1", b"layer")
    found = registry.manifest(REPO, "v1")
    assert found.digest == named
    assert fake.methods() == [("HEAD", f"/v2/{REPO}/manifests/v1"), ("GET", f"/v2/{REPO}/manifests/{named}")]
    assert all(kind in fake.asked[0].headers["Accept"] for kind in (*records.MANIFESTS, *records.INDEXES))
    assert registry.head(REPO, "v1") == found.descriptor
    assert registry.manifest(REPO, named) == found


def test_what_is_not_there_is_none_for_head_and_missing_for_a_manifest(registry: Registry) -> None:
    assert registry.head(REPO, "v1") is None
    for ref in ("v1", digest(b"no")):
        with pytest.raises(errors.Missing, match="does not have it"):
            registry.manifest(REPO, ref)


@pytest.mark.parametrize(
    "says",
    [
        {"Docker-Content-Digest": ""},
        {"Content-Type": "text/html"},
        {"Content-Length": "\xb2"},
        {"Content-Length": "-1"},
        {"Content-Length": "9" * 30},
    ],
)
def test_a_head_that_says_too_little_is_made_up_for_by_reading(
    fake: Fake, registry: Registry, says: dict[str, str]
) -> None:
    named = fake.put_image(REPO, "v1", b"layer")
    full = {"Content-Type": records.OCI_MANIFEST, "Docker-Content-Digest": named, "Content-Length": "7"}
    fake.script("HEAD", f"/v2/{REPO}/manifests/v1", Reply(headers=full | says))
    assert registry.head(REPO, "v1") == registry.manifest(REPO, named).descriptor


@pytest.mark.parametrize("claimed", [digest(b"other"), "sha512:00", "nonsense"])
def test_a_digest_in_a_header_that_is_not_the_bytes_is_damage(fake: Fake, registry: Registry, claimed: str) -> None:
    named = fake.put_image(REPO, "v1", b"layer")
    kind, data = fake.manifests[f"{REPO}@{named}"]
    wrong = {"Content-Type": kind, "Docker-Content-Digest": claimed}
    fake.script("GET", f"/v2/{REPO}/manifests/{named}", Reply(headers=wrong, body=data))
    with pytest.raises(Damaged, match="digest"):
        registry.manifest(REPO, named)
    fake.script("HEAD", f"/v2/{REPO}/manifests/{named}", Reply(headers=wrong, body=data))
    with pytest.raises(Damaged, match="digest"):
        registry.head(REPO, named)


@pytest.mark.parametrize("header", [{}, {"Docker-Content-Digest": "mine"}])
def test_other_bytes_than_the_digest_asked_for_are_damage(
    fake: Fake, registry: Registry, header: dict[str, str]
) -> None:
    named = fake.put_image(REPO, "v1", b"layer")
    other = json.dumps(image_manifest(b"other")).encode()
    headers = {"Content-Type": records.OCI_MANIFEST} | {key: digest(other) for key in header}
    fake.script("GET", f"/v2/{REPO}/manifests/{named}", Reply(headers=headers, body=other))
    with pytest.raises(Damaged, match=digest(other)):
        registry.manifest(REPO, named)


def test_a_manifest_of_another_kind_than_announced_is_damage(fake: Fake, registry: Registry) -> None:
    named = fake.put_image(REPO, "v1", b"layer")
    _, data = fake.manifests[f"{REPO}@{named}"]
    fake.script("GET", f"/v2/{REPO}/manifests/{named}", Reply(headers={"Content-Type": records.OCI_INDEX}, body=data))
    with pytest.raises(Damaged, match="but says that it is"):
        registry.manifest(REPO, named)


def test_an_endless_manifest_is_not_read(fake: Fake, registry: Registry) -> None:
    huge = Reply(headers={"Content-Type": records.OCI_MANIFEST}, body=b" " * (records.MAX_MANIFEST_BYTES + 1))
    named = digest(huge.body)
    fake.script("GET", f"/v2/{REPO}/manifests/{named}", huge)
    with pytest.raises(Damaged, match="more than"):
        registry.manifest(REPO, named)


def test_an_encoded_answer_is_not_unpacked(fake: Fake, registry: Registry) -> None:
    named = fake.put_image(REPO, "v1", b"layer")
    fake.script("GET", f"/v2/{REPO}/manifests/{named}", Reply(headers={"Content-Encoding": "gzip"}, body=b"bomb"))
    with pytest.raises(Damaged, match="encoded"):
        registry.manifest(REPO, named)
    assert fake.asked[-1].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("ref", ["", "../../x", "a b", "sha256:00", "v1?x=1", "v1#", "ä"])
def test_a_ref_that_is_none_asks_nothing(fake: Fake, registry: Registry, ref: str) -> None:
    with pytest.raises(errors.BadInput):
        registry.head(REPO, ref)
    with pytest.raises(errors.BadInput):
        registry.head("../x", "v1")
    assert not fake.asked


# answers that are no answers


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_read_is_tried_again(fake: Fake, registry: Registry, settings: list[float], status: int) -> None:
    named = fake.put_image(REPO, "v1", b"layer")
    path = f"/v2/{REPO}/manifests/v1"
    far = Reply(status=status, headers={"Retry-After": "86400"})
    long_ago = Reply(status=status, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
    fake.script("HEAD", path, far, long_ago, Reply(status=status, headers={"Retry-After": "soon"}))
    head = registry.head(REPO, "v1")
    assert head is not None
    assert head.digest == named
    assert settings == [30, 0, 2]


def test_a_read_is_not_tried_forever(fake: Fake, registry: Registry) -> None:
    path = f"/v2/{REPO}/manifests/v1"
    fake.script("HEAD", path, *[Reply(status=503)] * 9)
    with pytest.raises(errors.Missing, match="HTTP 503"):
        registry.head(REPO, "v1")
    assert len(fake.asked) == 4


def test_a_manifest_that_breaks_off_is_asked_for_again(fake: Fake, registry: Registry) -> None:
    named = fake.put_image(REPO, "v1", b"layer")
    kind, data = fake.manifests[f"{REPO}@{named}"]
    cut = Reply(headers={"Content-Type": kind}, body=data[:100], claims=len(data))
    fake.script("GET", f"/v2/{REPO}/manifests/{named}", cut, cut)
    assert registry.manifest(REPO, named).data == data
    fake.script("GET", f"/v2/{REPO}/manifests/{named}", *[cut] * 9)
    with pytest.raises(errors.Missing, match="broke off"):
        registry.manifest(REPO, named)
    assert len(fake.asked) == 7


def test_a_write_is_not_tried_again(fake: Fake, registry: Registry) -> None:
    data = json.dumps(image_manifest(b"")).encode()
    body = b'{"errors": [{"code": "TOO_MANY", "message": "\\u001b[31m"}, {"code": "\\u001b[31m"}]}'
    fake.script("PUT", f"/v2/{REPO}/manifests/v1", Reply(status=503, body=body))
    with pytest.raises(errors.CommandFailed, match=r"HTTP 503 \(TOO_MANY\)$"):
        registry.put_manifest(REPO, "v1", data, records.OCI_MANIFEST)
    assert len(fake.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_login(fake: Fake, registry: Registry, status: int) -> None:
    fake.script("HEAD", f"/v2/{REPO}/manifests/v1", Reply(status=status))
    with pytest.raises(errors.Missing, match=f"{fake.host}/{REPO}:v1.*HTTP {status}") as caught:
        registry.head(REPO, "v1")
    assert caught.value.hint == f"docker login {fake.host}"


def test_a_registry_that_is_not_there_is_missing(fake: Fake, settings: list[float]) -> None:
    with serving(Fake()) as gone:
        pass
    with client.connect(gone.host) as registry, pytest.raises(errors.Missing, match="cannot be reached") as caught:
        registry.manifest(REPO, "v1")
    assert f"{gone.host}/{REPO}:v1" in caught.value.message
    assert len(settings) == 3
    assert not fake.asked


# another host


def test_a_read_follows_to_another_host_without_its_credentials(fake: Fake, registry: Registry, tmp_path: Path) -> None:
    login(tmp_path, auths={fake.host: auth_of("ada", SECRET)})
    fake.password = SECRET
    data = b"a blob elsewhere"
    with serving(Fake()) as other:
        other.script("GET", "/cdn", Reply(body=data))
        fake.script(
            "GET",
            f"/v2/{REPO}/blobs/{digest(data)}",
            Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}),
            Reply(status=307, headers={"Location": f"http://ada:pw@{other.host}/cdn?signed=1"}),
        )
        assert registry.read_blob(REPO, records.describe(data, LAYER), limit=100) == data
        assert "Authorization" in fake.asked[-1].headers
        assert [each.headers.get("Authorization") for each in other.asked] == [None]


@pytest.mark.parametrize(
    "location", ["http://registry.example.invalid/x", "ftp://127.0.0.1/x", "http://[/x", "file:///etc"]
)
def test_a_redirect_to_what_is_not_safe_is_not_followed(fake: Fake, registry: Registry, location: str) -> None:
    path = f"/v2/{REPO}/manifests/v1"
    fake.script("HEAD", path, Reply(status=302, headers={"Location": location}))
    with pytest.raises((errors.Missing, Damaged)):
        registry.head(REPO, "v1")
    assert len(fake.asked) == 1


def test_a_circle_of_redirects_ends(fake: Fake, registry: Registry) -> None:
    path = f"/v2/{REPO}/manifests/v1"
    fake.script("HEAD", path, *[Reply(status=302, headers={"Location": path})] * 20)
    with pytest.raises(errors.Missing, match="redirects"):
        registry.head(REPO, "v1")
    assert len(fake.asked) == 6


def test_a_write_is_not_redirected(fake: Fake, registry: Registry) -> None:
    data = json.dumps(image_manifest(b"")).encode()
    path = f"/v2/{REPO}/manifests/v1"
    fake.script("PUT", path, Reply(status=307, headers={"Location": f"{path}2"}))
    with pytest.raises(errors.CommandFailed, match="HTTP 307"):
        registry.put_manifest(REPO, "v1", data, records.OCI_MANIFEST)


# credentials


def test_a_token_is_fetched_anonymously_where_nothing_is_known(fake: Fake, registry: Registry) -> None:
    fake.token = "t0ken"  # noqa: S105
    fake.put_image(REPO, "v1", b"layer")
    assert registry.head(REPO, "v1")
    issued = next(each for each in fake.asked if each.path == "/token")
    assert issued.query == {"service": ["fake"], "scope": [f"repository:{REPO}:pull"]}
    assert issued.headers.get("Authorization") is None
    registry.manifest(REPO, "v1")
    assert [path for _, path in fake.methods()].count("/token") == 1


def test_a_token_is_fetched_with_the_password_that_docker_knows(fake: Fake, registry: Registry, tmp_path: Path) -> None:
    login(tmp_path, auths={f"http://{fake.host}/v1/": auth_of("ada", SECRET)})
    fake.token, fake.password = "t0ken", SECRET
    fake.put_image(REPO, "v1", b"layer")
    assert registry.head(REPO, "v1")
    assert [each.headers.get("Authorization") for each in fake.asked] == [
        None,
        f"Basic {auth_of('ada', SECRET)['auth']}",
        "Bearer t0ken",
    ]


def test_a_token_is_fetched_with_an_identity_token(fake: Fake, registry: Registry, tmp_path: Path) -> None:
    login(tmp_path, auths={fake.host: {"identitytoken": SECRET}})
    fake.token, fake.password = "t0ken", SECRET
    fake.put_image(REPO, "v1", b"layer")
    assert registry.head(REPO, "v1")
    issued = next(each for each in fake.asked if each.path == "/token")
    assert issued.method == "POST"
    assert issued.headers.get("Authorization") is None
    assert b"grant_type=refresh_token" in issued.body


def test_a_password_is_sent_where_the_registry_asks_for_it(fake: Fake, registry: Registry, tmp_path: Path) -> None:
    login(tmp_path, auths={fake.host: auth_of("ada", SECRET), "other.example": auth_of("eve", "x")})
    fake.password = SECRET
    fake.put_image(REPO, "v1", b"layer")
    assert registry.head(REPO, "v1")
    assert len(fake.asked) == 2


def test_an_expired_token_is_renewed_once(fake: Fake, registry: Registry) -> None:
    fake.token = "first"  # noqa: S105
    fake.put_image(REPO, "v1", b"layer")
    assert registry.head(REPO, "v1")
    fake.token = "second"  # noqa: S105
    assert registry.head(REPO, "v1")
    assert fake.asked[-1].headers["Authorization"] == "Bearer second"


def test_a_refused_password_is_in_no_error(fake: Fake, registry: Registry, tmp_path: Path) -> None:
    login(tmp_path, auths={fake.host: auth_of("ada", SECRET)})
    fake.token, fake.password = "t0ken", "another"
    with pytest.raises(errors.Missing, match="HTTP 401") as caught:
        registry.head(REPO, "v1")
    assert caught.value.hint == f"docker login {fake.host}"
    assert SECRET not in shown(caught)
    assert auth_of("ada", SECRET)["auth"] not in shown(caught)


def test_netrc_is_not_asked(fake: Fake, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login ada password {SECRET}\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    registry.head(REPO, "v1")
    assert "Authorization" not in fake.asked[0].headers


def test_cookies_are_not_kept(fake: Fake, registry: Registry) -> None:
    fake.script("HEAD", f"/v2/{REPO}/manifests/v1", Reply(status=404, headers={"Set-Cookie": "who=you; Path=/"}))
    registry.head(REPO, "v1")
    registry.head(REPO, "v1")
    assert "Cookie" not in fake.asked[-1].headers


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b'{"token": 5}', b'{"token": "a\\nX-Evil: 1"}', b'{"token": ""}', b"\xff"],
)
def test_a_token_that_is_none_is_missing(fake: Fake, registry: Registry, answer: bytes) -> None:
    fake.token = "t0ken"  # noqa: S105
    fake.script("GET", "/token", Reply(body=answer))
    with pytest.raises(errors.Missing, match="without a token"):
        registry.head(REPO, "v1")


def test_a_token_service_does_not_redirect(fake: Fake, registry: Registry) -> None:
    fake.token = "t0ken"  # noqa: S105
    fake.script("GET", "/token", Reply(status=302, headers={"Location": "/other"}))
    with pytest.raises(errors.Missing, match="HTTP 302"):
        registry.head(REPO, "v1")


@pytest.mark.parametrize(
    ("realm", "loopback", "safe"),
    [
        ("https://auth.example/token", False, True),
        ("http://127.0.0.1:1/token", True, True),
        ("http://[::1]/token", True, True),
        ("http://127.0.0.1:1/token", False, False),
        ("http://auth.example/token", True, False),
        ("https://u:p@auth.example/token", False, False),
        ("file:///etc/passwd", True, False),
        ("https:///token", False, False),
        ("http://[", True, False),
    ],
)
def test_a_realm_is_https_or_loopback_to_loopback(realm: str, loopback: bool, safe: bool) -> None:  # noqa: FBT001
    challenge = tokens.Challenge(realm=realm, service="s", scopes=("a", "b"))
    if safe:
        asked = tokens.request(challenge, None, host="h", loopback=loopback)
        assert asked == tokens.TokenRequest(url=realm, query=(("service", "s"), ("scope", "a"), ("scope", "b")))
        return
    with pytest.raises(errors.Missing, match="nothing is sent"):
        tokens.request(challenge, None, host="h", loopback=loopback)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", None),
        ("Negotiate", None),
        ("Bearer", None),
        ('Bearer service="s"', None),
        ("Basic", tokens.Challenge()),
        ('BASIC realm="r"', tokens.Challenge()),
        ('Bearer realm="r",service="s",scope="a b"', tokens.Challenge(realm="r", service="s", scopes=("a", "b"))),
        ('Basic realm="b", Bearer realm="r"', tokens.Challenge(realm="r")),
        ('Bearer realm="r", Basic realm="b"', tokens.Challenge(realm="r")),
        ("Bearer " + "x=" * 100_000, None),
    ],
)
def test_a_challenge_is_read(header: str, found: tokens.Challenge | None) -> None:
    assert tokens.read_challenge(header) == found


def test_docker_hub_is_known_to_docker_by_its_old_name(tmp_path: Path) -> None:
    login(tmp_path, auths={"https://index.docker.io/v1/": auth_of("ada", SECRET)})
    found = credentials.find("docker.io")
    assert found == credentials.Credentials(username="ada", password=SECRET)
    assert SECRET not in repr(found)
    assert credentials.find("quay.io") is None


def helper(folder: Path, script: str) -> None:
    folder.mkdir()
    program = folder / "docker-credential-toy"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_a_credential_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path / "bin", f"""echo '{{"Username": "<token>", "Secret": "{SECRET}"}}'""")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    login(tmp_path, credHelpers={"quay.io": "toy"})
    assert credentials.find("quay.io") == credentials.Credentials(identity_token=SECRET)
    assert credentials.find("ghcr.io") is None


def test_a_helper_that_has_nothing_leaves_it_anonymous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path / "bin", "echo credentials not found in native keychain; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    login(tmp_path, credsStore="toy")
    assert credentials.find("quay.io") is None


@pytest.mark.parametrize("script", [None, f"echo {SECRET}; exit 1", f"echo {SECRET}", "echo '{}'"])
def test_a_helper_that_fails_is_named_and_not_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script:
        helper(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    login(tmp_path, credsStore="toy")
    with pytest.raises(errors.Missing, match="docker-credential-toy") as caught:
        credentials.find("quay.io")
    assert SECRET not in shown(caught)


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"quay.io": {"auth": "%%%"}}}', '{"auths": {"quay.io": 5}}'])
def test_a_damaged_configuration_of_docker_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text(text, encoding="utf-8")
    with pytest.raises(errors.KilnError, match=r"config\.json"):
        credentials.find("quay.io")


# the way there


@pytest.mark.parametrize(
    ("host", "asked"),
    [("docker.io", "registry-1.docker.io:443"), ("registry.example.invalid:5000", "registry.example.invalid:5000")],
)
def test_other_hosts_are_asked_by_https_through_the_proxy_of_the_environment(
    host: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Fake()) as proxy:
        proxy.script("CONNECT", asked, *[Reply(status=403)] * 9)
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        with client.connect(host) as registry, pytest.raises(errors.Missing, match="the proxy") as caught:
            registry.head("library/debian", "12")
        assert {each.method for each in proxy.asked} == {"CONNECT"}
    assert f"{host}/library/debian:12: {host} cannot be reached" in caught.value.message


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Make a certificate of registry.example.invalid, signed by itself; return its file and its key's."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    made, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    names = ("-subj", "/CN=kiln", "-addext", "subjectAltName=DNS:registry.example.invalid")
    process.ask(("openssl", "req", "-x509", *kind, *names, "-keyout", str(key), "-out", str(made)))
    return made, key


@pytest.mark.parametrize("how", ["ca", "environment", "ca over environment"])
def test_a_certificate_is_trusted_by_the_bundle_that_is_named(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how != "ca":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    if how == "ca over environment":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/dev/null")
    ca = None if how == "environment" else certificate[0]
    with serving(Fake(), certificate) as far, serving(Fake(tunnel_to=far.host)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        named = far.put_image(REPO, "v1", b"layer")
        with client.connect("registry.example.invalid", ca=ca) as registry:
            assert registry.manifest(REPO, "v1").digest == named


@pytest.mark.parametrize("host", ["registry.example.invalid", "another.example.invalid"])
def test_a_certificate_that_is_not_trusted_or_of_another_name_is_refused(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    ca = certificate[0] if host.startswith("another") else None
    with serving(Fake(), certificate) as far, serving(Fake(tunnel_to=far.host)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        with client.connect(host, ca=ca) as registry, pytest.raises(errors.Missing, match="certificate") as caught:
            registry.head(REPO, "v1")
        assert len(proxy.asked) == 1
    assert "ca: PATH" in caught.value.hint


def test_an_answer_that_hardly_comes_is_given_up(
    fake: Fake, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(1000)
    fake.blobs[digest(data)] = data
    monkeypatch.setattr(answers, "_PATIENCE_S", 0)
    monkeypatch.setattr(answers, "_SLOWEST", 1 << 60)
    with pytest.raises(errors.Missing, match="bytes a second"):
        registry.read_blob(REPO, records.describe(data, LAYER), limit=1000)


def test_this_machine_is_asked_without_the_proxy(
    fake: Fake, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert registry.head(REPO, "v1") is None
    assert len(fake.asked) == 1


def test_a_ca_bundle_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.BadInput, match=r"no such CA bundle"), client.connect("a.b", ca=tmp_path / "no"):
        pass
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(errors.BadInput, match=r"none: no such CA bundle"), client.connect("a.b"):
        pass


@pytest.mark.parametrize("host", ["", "a b", "https://a.b", "a.b/c", "A.b", "a.b:0", "u@a.b", "127.0.0.1#.a.b"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(errors.BadInput), client.connect(host):
        pass


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("127.0.0.1.example", False),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - not bound, refused
    ],
)
def test_loopback_is_this_machine_alone(host: str, own: bool) -> None:  # noqa: FBT001
    assert tokens.is_loopback(host) is own


# blobs


def test_a_blob_is_verified_before_it_is_returned(fake: Fake, registry: Registry) -> None:
    data = b"content" * 1000
    fake.blobs[digest(data)] = data
    named = records.describe(data, LAYER)
    assert registry.read_blob(REPO, named, limit=len(data)) == data
    fake.blobs[digest(data)] = b"Content" + data[7:]
    with pytest.raises(Damaged, match="its bytes have the digest"):
        registry.read_blob(REPO, named, limit=len(data))
    fake.blobs[digest(data)] = data[:-1]
    with pytest.raises(Damaged, match="6999 bytes"):
        registry.read_blob(REPO, named, limit=len(data))
    fake.blobs[digest(data)] = data + b"x"
    with pytest.raises(Damaged, match="more than the 7000 bytes"):
        registry.read_blob(REPO, named, limit=len(data))
    with pytest.raises(Damaged, match="more than the 6999"):
        registry.read_blob(REPO, named, limit=6999)


def test_a_blob_that_breaks_off_goes_on_where_it_broke(fake: Fake, registry: Registry) -> None:
    data = bytes(range(256)) * 100
    fake.blobs[digest(data)] = data
    path = f"/v2/{REPO}/blobs/{digest(data)}"
    fake.script("GET", path, Reply(body=data[:1000], claims=len(data)))
    assert registry.read_blob(REPO, records.describe(data, LAYER), limit=len(data)) == data
    assert fake.asked[-1].headers["Range"] == "bytes=1000-"


def test_a_blob_that_goes_on_elsewhere_is_damage(fake: Fake, registry: Registry) -> None:
    data = bytes(range(256)) * 100
    path = f"/v2/{REPO}/blobs/{digest(data)}"
    elsewhere = Reply(status=206, headers={"Content-Range": "bytes 0-9/25600"}, body=data[:10])
    fake.script("GET", path, Reply(body=data[:1000], claims=len(data)), elsewhere)
    with pytest.raises(Damaged, match="another range"):
        registry.read_blob(REPO, records.describe(data, LAYER), limit=len(data))


def test_a_blob_that_always_breaks_off_is_given_up(fake: Fake, registry: Registry) -> None:
    data = bytes(range(256)) * 100
    path = f"/v2/{REPO}/blobs/{digest(data)}"
    span = {"Content-Range": "bytes 10-25599/25600"}
    fake.script("GET", path, Reply(body=data[:10], claims=len(data)))
    fake.script("GET", path, *[Reply(status=206, headers=span, claims=len(data))] * 9)
    with pytest.raises(errors.Missing, match="broke off"):
        registry.read_blob(REPO, records.describe(data, LAYER), limit=len(data))
    assert len(fake.asked) == 4


def test_a_blob_is_uploaded_once(fake: Fake, registry: Registry) -> None:
    named = registry.push_blob(REPO, b"data", "text/plain")
    assert named == Descriptor(media_type="text/plain", digest=digest(b"data"), size=4)
    assert fake.blobs == {digest(b"data"): b"data"}
    assert [method for method, _ in fake.methods()] == ["HEAD", "POST", "PUT"]
    assert registry.push_blob(REPO, b"data", "text/plain") == named
    assert [method for method, _ in fake.methods()] == ["HEAD", "POST", "PUT", "HEAD"]


def test_an_upload_may_be_placed_on_another_host_without_credentials(
    fake: Fake, registry: Registry, tmp_path: Path
) -> None:
    login(tmp_path, auths={fake.host: auth_of("ada", SECRET)})
    fake.password = SECRET
    with serving(Fake()) as other:
        where = f"http://{other.host}/v2/x/blobs/uploads/7?state=a%2Fb#part"
        fake.script("POST", f"/v2/{REPO}/blobs/uploads/", Reply(status=202, headers={"Location": where}))
        registry.push_blob(REPO, b"data", "text/plain")
        assert other.blobs == {digest(b"data"): b"data"}
        assert "Authorization" not in other.asked[0].headers


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=202),
        Reply(status=202, headers={"Location": "http://example.invalid/x"}),
        Reply(status=202, headers={"Location": "http://[/x"}),
        Reply(status=200, headers={"Location": "/x"}),
    ],
)
def test_an_upload_that_cannot_begin_fails(fake: Fake, registry: Registry, reply: Reply) -> None:
    fake.script("POST", f"/v2/{REPO}/blobs/uploads/", reply)
    with pytest.raises(errors.KilnError):
        registry.push_blob(REPO, b"data", "text/plain")


def test_an_upload_with_another_digest_is_damage(fake: Fake, registry: Registry) -> None:
    wrong = Reply(status=201, headers={"Docker-Content-Digest": digest(b"other")})
    fake.script("PUT", f"/v2/{REPO}/blobs/uploads/1", wrong)
    with pytest.raises(Damaged, match="digest"):
        registry.push_blob(REPO, b"data", "text/plain")


def test_a_blob_is_mounted_or_the_upload_called_off(fake: Fake, registry: Registry) -> None:
    fake.blobs[digest(b"data")] = b"data"
    assert registry.mount(REPO, digest(b"data"), "team/base")
    assert fake.asked[-1].query == {"mount": [digest(b"data")], "from": ["team/base"]}
    fake.mounts = False
    assert not registry.mount(REPO, digest(b"data"), "team/base")
    assert fake.asked[-1].method == "DELETE"


# manifests that are written


def test_a_manifest_is_stored_and_its_digest_compared(fake: Fake, registry: Registry) -> None:
    data = json.dumps(image_manifest(b"config")).encode()
    assert registry.put_manifest(REPO, "v1", data, records.OCI_MANIFEST) == digest(data)
    assert fake.tags == {f"{REPO}:v1": digest(data)}
    wrong = Reply(status=201, headers={"Docker-Content-Digest": digest(b"other")})
    fake.script("PUT", f"/v2/{REPO}/manifests/v1", wrong)
    with pytest.raises(Damaged, match="digest"):
        registry.put_manifest(REPO, "v1", data, records.OCI_MANIFEST)
    with pytest.raises(errors.BadInput):
        registry.put_manifest(REPO, digest(b"other"), data, records.OCI_MANIFEST)


def test_a_silent_registry_is_asked_what_it_stored(fake: Fake, registry: Registry) -> None:
    data = json.dumps(image_manifest(b"config")).encode()
    path = f"/v2/{REPO}/manifests/v1"
    fake.script("PUT", path, Reply(status=201))
    with pytest.raises(Damaged, match="does not have what was put there"):
        registry.put_manifest(REPO, "v1", data, records.OCI_MANIFEST)
    fake.put(REPO, "v1", data, records.OCI_MANIFEST)
    fake.script("PUT", path, Reply(status=201))
    assert registry.put_manifest(REPO, "v1", data, records.OCI_MANIFEST) == digest(data)


def test_deleting_says_whether_it_is_gone(fake: Fake, registry: Registry) -> None:
    named = fake.put_image(REPO, "v1", b"layer")
    assert not registry.delete(REPO, "v1")
    assert registry.delete(REPO, named)
    assert registry.head(REPO, "v1") is None
    assert registry.delete(REPO, named)
    named = fake.put_image(REPO, "v1", b"layer")
    fake.deletes = False
    assert not registry.delete(REPO, named)


def test_all_pages_of_tags_are_read(fake: Fake, registry: Registry) -> None:
    for tag in ("a", "b", "c", "d", "e"):
        fake.put_image(REPO, tag, b"layer")
    assert registry.tags(REPO) == ("a", "b", "c", "d", "e")
    assert registry.tags("team/none") == ()


def test_tags_that_never_end_or_are_none_are_damage(fake: Fake, registry: Registry) -> None:
    path = f"/v2/{REPO}/tags/list"
    again = Reply(headers={"Link": f'<http://example.invalid{path}?last=a>; rel="next"'}, body=b'{"tags": ["a"]}')
    fake.script("GET", path, *[again] * 200)
    with pytest.raises(Damaged, match="more than 100 pages"):
        registry.tags(REPO)
    fake.scripted.clear()
    begun = Reply(headers={"Link": '<?last=a>; rel="next"'}, body=b'{"tags": ["a"]}')
    fake.script("GET", path, begun, Reply(status=404))
    with pytest.raises(Damaged, match="ends before its end"):
        registry.tags(REPO)
    fake.script("GET", path, Reply(headers={"Link": '<http://[>; rel="next"'}, body=b'{"tags": ["a"]}'))
    with pytest.raises(Damaged, match="no address"):
        registry.tags(REPO)
    for body in (b'{"tags": ["a b"]}', b'{"tags": {}, "tags": []}', b'{"tags": 5}', b'{"tags": [5]}'):
        fake.script("GET", path, Reply(body=body))
        with pytest.raises(Damaged):
            registry.tags(REPO)


# referrers


def subject(fake: Fake) -> Descriptor:
    named = fake.put_image(REPO, "v1", b"layer")
    return Descriptor(media_type=records.OCI_MANIFEST, digest=named, size=7)


@pytest.mark.parametrize("api", [True, False])
def test_what_is_attached_is_listed_and_can_be_read(fake: Fake, registry: Registry, api: bool) -> None:  # noqa: FBT001
    fake.has_referrers = api
    image_of = subject(fake)
    first = registry.attach(REPO, image_of, artifact_type=STATEMENT, data=b'{"a": 1}', annotations={"k": "v"})
    second = registry.attach(REPO, image_of, artifact_type="application/x", data=b"x", annotations={})
    assert first.annotations == (("k", "v"),)
    assert set(registry.referrers(REPO, image_of.digest)) == {first, second}
    assert registry.referrers(REPO, image_of.digest, STATEMENT) == (first,)
    assert registry.attach(REPO, image_of, artifact_type="application/x", data=b"x", annotations={}) == second
    assert len(registry.referrers(REPO, image_of.digest)) == 2
    assert (f"{REPO}:{image_of.digest.replace(':', '-')}" in fake.tags) is not api
    made = registry.manifest(REPO, first.digest)
    assert made.artifact_type == STATEMENT
    assert made.subject == image_of
    assert made.config == Descriptor(media_type=records.OCI_EMPTY, digest=digest(b"{}"), size=2)
    assert registry.read_blob(REPO, made.layers[0], limit=100) == b'{"a": 1}'


def test_nothing_attached_is_an_empty_list(fake: Fake, registry: Registry) -> None:
    image_of = subject(fake)
    assert registry.referrers(REPO, image_of.digest) == ()
    page = Reply(headers={"Content-Type": "text/html"}, body=b"<html>")
    fake.script("GET", f"/v2/{REPO}/referrers/{image_of.digest}", page)
    assert registry.referrers(REPO, image_of.digest) == ()


def test_an_attacher_who_overwrites_another_starts_again(fake: Fake, registry: Registry) -> None:
    image_of = subject(fake)
    tag = image_of.digest.replace(":", "-")
    other = {"mediaType": records.OCI_MANIFEST, "digest": digest(b"other"), "size": 5, "data": "aGk="}
    theirs = {"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": [other], "annotations": {"by": "them"}}

    def overwrite(ref: str) -> None:
        if ref == tag:
            fake.on_put = None
            fake.put(REPO, tag, theirs)

    fake.on_put = overwrite
    mine = registry.attach(REPO, image_of, artifact_type=STATEMENT, data=b"{}", annotations={})
    index = json.loads(fake.manifests[f"{REPO}@{fake.tags[f'{REPO}:{tag}']}"][1])
    assert index["annotations"] == {"by": "them"}
    assert index["manifests"] == [other, records.as_json(mine)]


def test_a_tag_that_others_keep_writing_is_given_up(fake: Fake, registry: Registry) -> None:
    image_of = subject(fake)
    tag = image_of.digest.replace(":", "-")
    empty = {"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": []}

    def overwrite(ref: str) -> None:
        if ref == tag:
            fake.put(REPO, tag, empty)

    fake.on_put = overwrite
    with pytest.raises(errors.CommandFailed, match="others keep writing"):
        registry.attach(REPO, image_of, artifact_type=STATEMENT, data=b"{}", annotations={})


def test_a_fallback_tag_of_something_else_is_not_overwritten(fake: Fake, registry: Registry) -> None:
    image_of = subject(fake)
    tag = image_of.digest.replace(":", "-")
    before = fake.put_image(REPO, tag, b"other")
    with pytest.raises(Damaged, match="not one of an index"):
        registry.attach(REPO, image_of, artifact_type=STATEMENT, data=b"{}", annotations={})
    assert fake.tags[f"{REPO}:{tag}"] == before


def test_many_attach_at_once(fake: Fake) -> None:
    image_of = subject(fake)

    def attach(number: int) -> None:
        with client.connect(fake.host) as registry:
            registry.attach(REPO, image_of, artifact_type=STATEMENT, data=str(number).encode(), annotations={})

    threads = [threading.Thread(target=attach, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with client.connect(fake.host) as registry:
        assert len(registry.referrers(REPO, image_of.digest)) == 3


# images


def test_an_image_is_opened_for_a_platform(fake: Fake, registry: Registry) -> None:
    labels = {"config": {"Labels": {"a": "b"}}}
    amd = fake.put_image(REPO, "amd", b"amd", **labels)
    arm = fake.put_image(REPO, "arm", b"arm", architecture="arm64", variant="v8")
    listed = [
        {**entry(fake, amd), "platform": {"os": "linux", "architecture": "amd64"}},
        {**entry(fake, arm), "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        {**entry(fake, amd), "platform": {"os": "unknown", "architecture": "unknown"}},
    ]
    index = fake.put(REPO, "v1", {"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": listed})
    found = image.open_image(registry, REPO, "v1")
    assert (found.digest, found.index_digest, found.labels) == (amd, index, {"a": "b"})
    assert found.diff_ids == (digest(b"amd"),)
    assert [layer.digest for layer in found.layers] == [digest(b"amd")]
    assert image.open_image(registry, REPO, "v1", "linux/arm64").digest == arm
    assert image.open_image(registry, REPO, amd).index_digest == ""
    with pytest.raises(errors.Missing, match=r"nothing for linux/s390x; it is there for linux/amd64, linux/arm64/v8"):
        image.open_image(registry, REPO, "v1", "linux/s390x")
    with pytest.raises(errors.Missing, match=r"it is for linux/arm64/v8, not linux/amd64"):
        image.open_image(registry, REPO, "arm")


def entry(fake: Fake, named: str) -> dict[str, object]:
    kind, data = fake.manifests[f"{REPO}@{named}"]
    return {"mediaType": kind, "digest": named, "size": len(data)}


@pytest.mark.parametrize(
    "config",
    [
        {"rootfs": {}},
        {"rootfs": {"diff_ids": []}},
        {"rootfs": {"diff_ids": ["x"]}},
        {"rootfs": None},
        {"config": {"Labels": {"a": 1}}},
        {"config": []},
        {"config": 5},
    ],
)
def test_a_config_that_does_not_fit_its_manifest_is_damage(
    fake: Fake, registry: Registry, config: dict[str, object]
) -> None:
    value = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digest(b"layer")]}} | config
    data = json.dumps(value).encode()
    fake.blobs[digest(data)] = data
    fake.put(REPO, "v1", image_manifest(data, b"layer"))
    if config == {"config": []}:
        assert image.open_image(registry, REPO, "v1").labels == {}
        return
    with pytest.raises(Damaged):
        image.open_image(registry, REPO, "v1")


def test_an_artifact_is_no_image(fake: Fake, registry: Registry) -> None:
    attached = registry.attach(REPO, subject(fake), artifact_type=STATEMENT, data=b"{}", annotations={})
    with pytest.raises(errors.BadInput, match="not an image"):
        image.open_image(registry, REPO, attached.digest)


def test_an_index_in_an_index_is_damage(fake: Fake, registry: Registry) -> None:
    inner = fake.put(REPO, "", {"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": []})
    listed = {**entry(fake, inner), "platform": {"os": "linux", "architecture": "amd64"}}
    fake.put(REPO, "v1", {"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": [listed]})
    with pytest.raises(Damaged, match="another index"):
        image.open_image(registry, REPO, "v1")


def test_two_images_for_one_platform_are_not_chosen_from(fake: Fake, registry: Registry) -> None:
    platform = {"platform": {"os": "linux", "architecture": "amd64"}}
    listed = [{**entry(fake, fake.put_image(REPO, "", layer)), **platform} for layer in (b"a", b"b")]
    fake.put(REPO, "v1", {"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": listed})
    with pytest.raises(Damaged, match="2 different images"):
        image.open_image(registry, REPO, "v1")


def test_nothing_is_sent_before_it_is_asked_for(fake: Fake) -> None:
    with client.connect(fake.host) as registry:
        assert registry.host == fake.host
    assert not fake.asked
