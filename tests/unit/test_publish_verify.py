"""What verify finds in an image that nobody signed: every lie about it red by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import publish_support as support
import pytest
from registry_support import Entry, Fake, Reply, digest, serving, tar

from kiln import __version__, errors
from kiln.publish import attached, contents, sign, statements, verify
from kiln.registry import client, records
from kiln.registry.artifact import fallback_tag
from kiln.report import Reporter
from kiln.tasks import namespace, program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.publish.verify import Verified
    from kiln.registry.client import Registry

REPO = "team/app"
QUIET = Reporter(quiet=True)


@pytest.fixture(autouse=True)
def anonymous(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake()) as served:
        yield served


@pytest.fixture
def registry(fake: Fake) -> Iterator[Registry]:
    with client.connect(fake.host) as connected:
        yield connected


def published(registry: Registry, **changed: Any) -> support.Small:
    small = support.push(registry, REPO)
    support.attach(registry, small, small.statements(**changed))
    support.tag(registry, small)
    return small


def run(registry: Registry, ref: str, *, full: bool = False) -> Verified:
    return verify.run(f"{registry.host}/{REPO}{ref}", verifier=None, reporter=QUIET, full=full)


def found(result: Verified) -> set[tuple[str, str]]:
    return {(each.where, each.problem) for each in result.findings}


def test_a_whole_image_verifies_by_digest_and_by_each_of_its_tags(registry: Registry) -> None:
    small = published(registry)
    result = run(registry, f"@{small.digest}", full=True)
    assert result == verify.Verified(
        image=f"{registry.host}/{REPO}@{small.digest}",
        digest=small.digest,
        signature="unsigned",
        signed_by="",
        attestations=tuple(statements.ATTESTATIONS),
        waived=(),
        target=support.TARGET,
        slsa_level=1,
        files=2,
        layers=2,
        findings=(),
    )
    for name in small.patches.tags:
        assert found(run(registry, f":{name}")) == set()
        assert found(run(registry, f":{name}@{small.digest}")) == set()


def test_a_registry_with_the_referrers_api_is_asked_by_it(fake: Fake, registry: Registry) -> None:
    fake.has_referrers = True
    assert found(run(registry, f"@{published(registry).digest}")) == set()


@pytest.mark.parametrize("name", ["sbom", "provenance", "patches", "smoke"])
def test_a_missing_attestation_is_a_finding(registry: Registry, name: str) -> None:
    small = support.push(registry, REPO)
    said = small.statements()
    del said[name]
    support.attach(registry, small, said)
    shown = {"sbom": "SBOM", "smoke": "smoke evidence"}.get(name, name)
    assert found(run(registry, f"@{small.digest}")) == {(shown, "missing")}


def test_an_image_without_anything_lacks_it_all_at_once(registry: Registry) -> None:
    small = support.push(registry, REPO)
    assert {where for where, _ in found(run(registry, f"@{small.digest}"))} == set(statements.ATTESTATIONS)


def test_what_is_said_about_another_image_does_not_count(registry: Registry) -> None:
    other = support.push(registry, REPO, word=b"WORD = 'other'\n")
    small = support.push(registry, REPO)
    support.attach(registry, small, small.statements() | {"smoke": other.statements()["smoke"]})
    problem = f"there is one, but it does not count: is about {other.digest}"
    assert found(run(registry, f"@{small.digest}")) == {("smoke evidence", problem)}


def test_an_attachment_that_belongs_to_another_image_is_found(fake: Fake, registry: Registry) -> None:
    small, other = published(registry), support.push(registry, REPO, word=b"WORD = 'other'\n")
    _, index = fake.manifests[f"{REPO}@{fake.tags[f'{REPO}:{fallback_tag(small.digest)}']}"]
    fake.put(REPO, fallback_tag(other.digest), index)
    problems = found(run(registry, f"@{other.digest}"))
    assert {problem for where, problem in problems if where.startswith("attachment")} == {
        f"it is listed here, but belongs to {small.digest}"
    }
    assert {where for where, _ in problems if not where.startswith("attachment")} == set(statements.ATTESTATIONS)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"_type": "x"}', b'{"_type": "x", "subject": [{"digest": 1}]}', b"\xff"]
)
def test_an_attachment_that_is_no_statement_is_found(registry: Registry, data: bytes) -> None:
    small = published(registry)
    made = registry.attach(REPO, small.subject, artifact_type=attached.STATEMENT, data=data)
    assert {where for where, _ in found(run(registry, f"@{small.digest}"))} == {f"attachment {made.digest}"}


def test_a_patch_predicate_of_another_shape_is_found(registry: Registry) -> None:
    small = published(registry, patches={"kiln": "1"})
    ((where, problem),) = found(run(registry, f"@{small.digest}"))
    assert where == "patches"
    assert "not as Kiln writes it: target: Field required" in problem


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("ai.kiln.target", "minimax-m3-mxfp8-gfx950-0.31.0"),
        ("ai.kiln.catalog.dirty", "true"),
        ("ai.kiln.ledger.sha256", "0" * 64),
        ("org.opencontainers.image.base.digest", digest(b"another")),
    ],
)
def test_a_label_that_disagrees_is_found(registry: Registry, label: str, value: str) -> None:
    small = support.push(registry, REPO, labels={label: value})
    support.attach(registry, small, small.statements())
    assert {where for where, _ in found(run(registry, f"@{small.digest}"))} == {f"label {label}"}


def test_a_patched_file_with_other_bytes_is_found(registry: Registry) -> None:
    small = support.push(registry, REPO, held=b"WORD = 'meddled'\n")
    support.attach(registry, small, small.statements())
    is_there, meant = support.sha256(b"WORD = 'meddled'\n"), support.sha256(support.AFTER)
    assert found(run(registry, f"@{small.digest}")) == {
        (f"{support.ROOT}/vllm/toy.py", f"holds {is_there}, not {meant}")
    }


def changed(small: support.Small, **fields: Any) -> dict[str, Any]:
    data: dict[str, Any] = small.patches.model_dump(mode="json")
    return data | {name: data[name] | value if isinstance(value, dict) else value for name, value in fields.items()}


@pytest.mark.parametrize(
    ("fields", "where", "problem"),
    [
        ({"root": "opt"}, "opt/vllm/toy.py", "holds nothing, not"),
        ({"root": "opt//x"}, "layers", "a path in an image is written without a slash at its ends"),
        ({"ledger": {"sha256": "0" * 64}}, "opt/kiln/ledger.json", "not 0000"),
        ({"ledger": {"series": "0" * 64}}, "patches", "is not the tag of series 0000"),
        ({"ledger": {"series": "0" * 64}}, "opt/kiln/ledger.json", "names other patches, editions or files"),
        ({"patches": []}, "opt/kiln/ledger.json", "names other patches, editions or files"),
        ({"base": {"layers": [digest(b"x")]}}, f"base {digest(b'base')}", "the first 1 layers"),
        ({"base": {"diff_ids": [digest(b"x")]}}, f"base {digest(b'base')}", "the first 1 diff ids"),
    ],
)
def test_a_predicate_that_does_not_fit_the_image_is_found(
    registry: Registry, fields: dict[str, Any], where: str, problem: str
) -> None:
    small = support.push(registry, REPO)
    support.attach(registry, small, small.statements(patches=changed(small, **fields)))
    problems = found(run(registry, f"@{small.digest}"))
    assert any(at == where and problem in told for at, told in problems), problems


def test_a_file_that_should_be_gone_is_found(registry: Registry) -> None:
    small = support.push(registry, REPO)
    image = registry.manifest(REPO, small.digest)
    assert image
    lies = statements.PatchFile(path="vllm/toy.py", pre=None, post=None)
    (patch,) = small.patches.patches
    patches = small.patches.model_copy(update={"patches": (patch.model_copy(update={"files": (lies,)}),)})
    assert contents.expected(patches) == {f"{support.ROOT}/vllm/toy.py": None}
    support.attach(registry, small, small.statements(patches=patches.model_dump(mode="json")))
    problem = f"holds {support.sha256(support.AFTER)}, not nothing"
    assert (f"{support.ROOT}/vllm/toy.py", problem) in found(run(registry, f"@{small.digest}"))


def test_a_tag_that_was_moved_to_another_image_is_found(registry: Registry) -> None:
    small = published(registry)
    other = support.push(registry, REPO, word=b"WORD = 'other'\n")
    support.attach(registry, other, other.statements())
    immutable = small.patches.tags[0]
    support.tag(registry, other, immutable)
    told = f"this image is {other.patches.tags[0]}, and was not published under this name: the tag was moved"
    assert found(run(registry, f":{immutable}")) == {(f"tag {immutable}", told)}
    both = found(run(registry, f":{immutable}@{small.digest}"))
    assert both == {(f"tag {immutable}", f"names {other.digest} now, not {small.digest}: it was moved")}


def test_a_tag_that_is_gone_is_found_where_the_digest_is_named_too(fake: Fake, registry: Registry) -> None:
    small = published(registry)
    fake.tags.clear()
    problems = found(run(registry, f":v1@{small.digest}"))
    assert ("tag v1", f"names nothing now, not {small.digest}: it was moved") in problems


@pytest.mark.parametrize("layer", [0, 1])
def test_a_byte_in_a_layer_is_found(fake: Fake, registry: Registry, layer: int) -> None:
    """That of a patched file always, one of the base with --full."""
    small = published(registry)
    name = digest(small.layers[layer])
    fake.blobs[name] = small.layers[layer].replace(b"WORD", b"WORK")
    assert fake.blobs[name] != small.layers[layer]
    full = found(run(registry, f"@{small.digest}", full=True))
    assert {where for where, _ in full} == {"layers"}
    assert all(name in problem for _, problem in full)
    assert bool(found(run(registry, f"@{small.digest}"))) == (layer == 1)


def test_every_damaged_layer_is_named(fake: Fake, registry: Registry) -> None:
    small = published(registry)
    for layer in small.layers:
        fake.blobs[digest(layer)] = tar(Entry("a"))
    assert len(found(run(registry, f"@{small.digest}", full=True))) == 2


def test_many_attachments_of_strangers_are_said_and_hide_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attached, "_MANY", 3)
    small = support.push(registry, REPO)
    for number in range(4):
        other = statements.make("https://example.com/x", {"n": number}, name="x", digest=small.digest)
        attached.attach(registry, REPO, small.subject, attached.Attachment(statement=other, bundle=b""))
    support.attach(registry, small, small.statements())
    assert verify.run(f"{registry.host}/{REPO}@{small.digest}", verifier=None, reporter=Reporter()).findings == ()
    assert "8 attachments, and each is looked at" in capsys.readouterr().err


class Trusting(sign.Verifier):
    """Takes every bundle for one that the right person has signed, and counts what it is asked about."""

    asked: ClassVar[list[str]] = []

    def problem(self, bundle: bytes, *, kind: str, digest: str) -> str:
        self.asked.append(kind)
        return "" if digest else str(bundle)


def test_what_nobody_signed_never_counts_whoever_checks(registry: Registry) -> None:
    small = published(registry)
    verifier = Trusting(cosign="cosign")
    result = verify.run(f"{registry.host}/{REPO}@{small.digest}", verifier=verifier, reporter=QUIET)
    refused = "there is one, but it does not count: is not signed"
    expected = {("signature", "missing"), *((name, refused) for name in statements.ATTESTATIONS)}
    assert (found(result), Trusting.asked) == (expected, [])


# an index under the tag: Docker chooses from it by its own rules


@pytest.mark.parametrize(
    "evil",
    [
        {"platform": {"os": "linux", "architecture": "x86_64"}},
        {"platform": {"os": "Linux", "architecture": "AMD64"}},
        {"platform": {"os": "linux", "architecture": "x86-64", "variant": "v2"}},
        {"platform": {"os": "linux", "architecture": "amd64"}, "artifactType": "application/x"},
        {"platform": {"os": "linux", "architecture": "arm64"}},
        {},
    ],
)
def test_an_index_that_names_another_image_beside_the_good_one_is_found(
    fake: Fake, registry: Registry, evil: dict[str, Any]
) -> None:
    small = published(registry)
    other = support.push(registry, REPO, word=b"WORD = 'evil'\n")
    entries = [
        records.as_json(other.subject) | evil,
        records.as_json(small.subject) | {"platform": {"os": "linux", "architecture": "amd64"}},
    ]
    data = json.dumps({"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": entries}).encode()
    index = fake.put(REPO, small.patches.tags[0], data, records.OCI_INDEX)
    for ref in (f":{small.patches.tags[0]}", f"@{index}", f":{small.patches.tags[0]}@{index}"):
        assert {where for where, _ in found(run(registry, ref))} == {"image"}


def test_an_index_of_the_good_image_alone_is_not_what_kiln_publishes(fake: Fake, registry: Registry) -> None:
    small = published(registry)
    entry = records.as_json(small.subject) | {"platform": {"os": "linux", "architecture": "x86_64"}}
    data = json.dumps({"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": [entry]}).encode()
    index = fake.put(REPO, small.patches.tags[0], data, records.OCI_INDEX)
    told = f"is an index, and Kiln publishes none: of {index} Docker may run another image"
    assert found(run(registry, f":{small.patches.tags[0]}")) == {("image", told)}


def test_a_config_that_is_not_the_manifests_is_a_finding(fake: Fake, registry: Registry) -> None:
    small = published(registry)
    config = registry.manifest(REPO, small.digest).config
    assert config
    fake.blobs[config.digest] = b"{}"
    result = run(registry, f"@{small.digest}")
    assert [each.where for each in result.findings] == ["image"]


# a registry that does not answer, and one that has lost something


def test_an_outage_says_nothing_about_the_image(fake: Fake, registry: Registry) -> None:
    small = published(registry)
    (*_, last) = registry.referrers(REPO, small.digest)
    fake.script("GET", f"/v2/{REPO}/manifests/{last.digest}", *[Reply(status=503)] * 10)
    with pytest.raises(errors.Missing):
        run(registry, f"@{small.digest}")


def test_an_attachment_that_is_listed_and_gone_is_found(fake: Fake, registry: Registry) -> None:
    small = published(registry)
    (*_, last) = registry.referrers(REPO, small.digest)
    del fake.manifests[f"{REPO}@{last.digest}"]
    assert {where for where, _ in found(run(registry, f"@{small.digest}"))} == {
        f"attachment {last.digest}",
        "smoke evidence",
    }


# the smoke evidence


def test_evidence_of_a_failed_check_or_of_another_image_is_found(registry: Registry) -> None:
    small, other = support.push(registry, REPO), digest(b"other")
    failed = support.smoke(small.digest, start="passed", tools="failed")
    lies = support.smoke(small.digest)
    lies["evidence"]["smoke"]["image"] = other
    support.attach(registry, small, small.statements(smoke=failed))
    for smoke in (lies, {"evidence": "all passed"}):
        support.attach(registry, small, {"smoke": small.statements(smoke=smoke)["smoke"]})
    problems = found(run(registry, f"@{small.digest}"))
    assert {where for where, _ in problems} == {"smoke evidence"}
    told = sorted(problem for _, problem in problems)
    assert told[0] == f"is about {' and '.join(sorted((small.digest, other)))}, not about {small.digest}"
    assert told[1].startswith("not as Kiln writes it: evidence")
    assert told[2] == "serve/tools failed: no reason"


def test_tiers_that_were_waived_are_shown(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    small = support.push(registry, REPO)
    support.attach(registry, small, small.statements(smoke=support.smoke(small.digest, "serve", "device")))
    image = f"{registry.host}/{REPO}@{small.digest}"
    assert json.loads(kiln(capsys, "verify", image, "--json")[1])["waived"] == ["serve", "device"]
    assert "serve, device: not run on this image" in kiln(capsys, "verify", image)[1]


def test_an_image_that_is_not_there_or_not_named_whole(registry: Registry) -> None:
    with pytest.raises(errors.Missing, match="does not have it"):
        run(registry, ":none")
    with pytest.raises(errors.BadInput, match="names no tag and no digest"):
        run(registry, "")


def kiln(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    made = program.KilnProgram(name="Kiln", binary="kiln", version=__version__, namespace=namespace())
    code: object = 0
    try:
        made.run(["kiln", *argv])
    except SystemExit as end:
        code = end.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


def test_the_task_works_outside_of_any_checkout_and_says_unsigned(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = published(registry)
    monkeypatch.chdir(tmp_path)
    image = f"{registry.host}/{REPO}:{small.patches.tags[0]}"
    code, out, err = kiln(capsys, "verify", image)
    assert (code, "UNSIGNED" in err) == (0, True)
    assert support.TARGET in out
    code, out, err = kiln(capsys, "verify", f"{registry.host}/{REPO}@{small.digest}", "--json")
    assert (code, json.loads(out)["findings"], json.loads(out)["signature"]) == (0, [], "unsigned")
    support.tag(registry, small, "stable")
    code, out, err = kiln(capsys, "verify", f"{registry.host}/{REPO}:stable", "--json")
    assert (code, [each["where"] for each in json.loads(out)["findings"]]) == (8, ["tag stable"])
    assert "was not published under this name" in err


def test_no_image_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert kiln(capsys, "verify")[0] == 2


def test_statements_are_read_back_as_they_were_made() -> None:
    made = statements.make(statements.SMOKE, {"a": "é"}, name="host/app", digest=digest(b"x"))
    assert statements.read(made.data) == made
    assert replace(made, data=b"").digests == (digest(b"x"),)
