"""Publishes an image as a transaction: gate, push by digest, attach and sign, tags last, verified by a clean client."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kiln import __version__, errors, files, report
from kiln.errors import Finding
from kiln.image import accept, build, provenance
from kiln.patching import ledger as ledgers
from kiln.publish import attached, bases, client, contents, gate, intent, sbom, sign, statements, tags
from kiln.registry import image as images
from kiln.registry import layers as remote
from kiln.registry import reference
from kiln.registry.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.catalog import Catalog
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan
    from kiln.publish.intent import Intent, Request
    from kiln.publish.statements import Patches, Statement
    from kiln.registry.client import Registry
    from kiln.registry.image import RemoteImage
    from kiln.report import Reporter


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was published, or with `dry_run` would be; `before` is where each tag pointed, empty for nowhere.

    `public_key` is the file that others need, beside the image, to check who signed; empty where a key is no part.
    """

    target: str
    kind: str
    image: str
    tag: str
    aliases: tuple[str, ...]
    before: dict[str, str]
    signed: str
    attestations: tuple[str, ...]
    waived: tuple[str, ...]
    slsa_level: int
    slsa_because: str
    verify: str
    public_key: str
    dry_run: bool


def run(catalog: Catalog, plan: Plan, request: Request, *, twin: bool, reporter: Reporter) -> Published:
    """Publish what was built and smoked, or change no tag; raises PublishRefused with every reason at once."""
    # one publication at a time; what a killed one has left is swept
    with files.locked(catalog.state / "publish"):
        meant = intent.collect(catalog, plan, request, twin=twin, reporter=reporter)
        with connect(meant.to.host, ca=catalog.config.ca) as registry:
            places = tags.look(registry, meant.to.repository, meant.names.every)
            made = _allowed(meant, registry, places)
            result = _result(meant, made, places)
            if not request.dry_run:
                _publish(meant, registry, made, reporter)
                files.write(meant.output / f"{made.kind}-published.json", report.as_json(asdict(result)) + "\n")
    return result


def _allowed(meant: Intent, registry: Registry, places: tuple[tags.Place, ...]) -> Receipt:
    """Return the receipt of an image that may go out; raises PublishRefused with all that is against it."""
    made = meant.case.receipt
    problems = [*gate.findings(meant.case)]
    if made:
        problems += _not_free(places[0], made.digest)
        problems += _not_pushed(meant, made, registry) if made.thin else ()
    if problems or made is None:
        raise _refused(f"{meant.case.wanted.target} ({meant.case.wanted.kind}) is not published", problems)
    return made


def _not_free(place: tags.Place, digest: str) -> Iterator[Finding]:
    if why := tags.taken(place, digest):
        hint = "what is published stays: delete that tag yourself if nobody may have it, or --to another repository"
        yield Finding(where=f"tag {place.tag}", problem=why, hint=hint)


def _not_pushed(meant: Intent, made: Receipt, registry: Registry) -> Iterator[Finding]:
    """Yield what a thin build, which is pushed as it is made, has not left in the repository or on this machine."""
    again = f"./inv build --thin {meant.case.wanted.flags} --to {meant.to}"
    at = reference.parse(made.image)
    if at.name != meant.to.name:
        yield Finding(where=str(meant.to), problem=f"the thin build was pushed to {at.name}", hint=again)
    elif registry.head(at.repository, made.digest) is None:
        yield Finding(where=str(meant.to), problem=f"does not have {made.digest} any more", hint=again)
    if provenance.read(meant.output, made.kind, made.digest) is None:
        yield Finding(where="provenance", problem="BuildKit's is not there for this build", hint=again)


def _result(meant: Intent, made: Receipt, places: tuple[tags.Place, ...]) -> Published:
    request = meant.request
    signed = f"with {request.key}" if request.key else f"by {request.identity}" if request.keyless else "UNSIGNED"
    return Published(
        target=made.target,
        kind=made.kind,
        image=str(meant.to.at(made.digest)),
        tag=meant.names.immutable,
        aliases=meant.names.aliases,
        before={place.tag: place.before.digest if place.before else "" for place in places},
        signed=signed,
        attestations=tuple(statements.ATTESTATIONS),
        waived=gate.waived(meant.case),
        slsa_level=meant.slsa.level,
        slsa_because=meant.slsa.because,
        verify=client.shown(_verify(meant, made)),
        public_key=os.path.relpath(_public_key(meant, made)) if request.key else "",
        dry_run=request.dry_run,
    )


def _verify(meant: Intent, made: Receipt) -> tuple[str, ...]:
    """Return the arguments of the one command that checks everything."""
    request, ca = meant.request, meant.catalog.config.ca
    by: tuple[str, ...] = ()
    if request.key:
        by = ("--key", os.path.relpath(_public_key(meant, made)))
    elif request.keyless:
        by = ("--identity", request.identity, "--issuer", request.issuer)
    image = f"{meant.to}:{meant.names.immutable}@{made.digest}"
    return ("verify", image, *by, *(("--ca", str(ca)) if ca else ()))


def _publish(meant: Intent, registry: Registry, made: Receipt, reporter: Reporter) -> None:
    repository = meant.to.repository
    said = _pushed(meant, made, reporter)
    with _told(meant, made, reporter) as left:
        base = bases.layers(meant.catalog, meant.base, reporter)
        with reporter.step("read the pushed image back") as detail:
            image = images.open_image(registry, repository, made.digest)
            patches = _predicate(meant, made, base, _root(image, len(base.layers), detail))
            wrong = [*contents.described(image, patches), *contents.files(image, patches, progress=detail)]
        if wrong:
            raise _refused(f"{meant.to.at(made.digest)} is not what was built", wrong)
        with reporter.step("list what is in the image"):
            listed = sbom.make(
                str(meant.to.at(made.digest)),
                scratch=meant.catalog.state,
                host=meant.to.host,
                ca=meant.catalog.config.ca,
            )
        every = _statements(meant, made, patches, {"provenance": said, "sbom": listed})
        if meant.signer and meant.request.key:
            files.write(_public_key(meant, made), meant.signer.public_key())
        with reporter.step(f"attach {len(statements.ATTESTATIONS)} attestations") as detail:
            there = attached.read(image, _checker(meant, made), say=reporter.note).statements
            for attachment in _signed(meant, every, there):
                detail(attachment.statement.type)
                left.append(attached.attach(registry, repository, image.manifest.descriptor, attachment))
        places = tags.look(registry, repository, meant.names.every)
        if problems := list(_not_free(places[0], made.digest)):
            raise _refused("another publication was faster", problems)
        with (
            reporter.step(f"tag {meant.names.immutable} and {len(meant.names.aliases)} aliases"),
            tags.moved(registry, repository, places, image.manifest, say=reporter.note),
        ):
            client.run(_verify(meant, made), host=meant.to.host, scratch=meant.catalog.state)
    with contextlib.suppress(errors.KilnError):
        # the push needed a name where there was none yet; where a registry deletes no tags, it stays
        if registry.head(repository, _pushed_as(made)):
            registry.delete(repository, _pushed_as(made))


@contextlib.contextmanager
def _told(meant: Intent, made: Receipt, reporter: Reporter) -> Iterator[list[str]]:
    """Yield a list for what is attached; a publication that fails, or is interrupted, says what it leaves behind."""
    attachments: list[str] = []
    try:
        yield attachments
    except BaseException as error:
        named = "" if made.thin else f", perhaps under the tag {_pushed_as(made)}"
        lines = (f"it stays in {meant.to.name}: {made.digest}{named}", *(f"attached: {each}" for each in attachments))
        told = "\n".join(lines)
        if isinstance(error, errors.KilnError):
            raise type(error)(f"{error.message}\n{told}", hint=error.hint) from error
        reporter.note(told)
        raise


def _pushed_as(made: Receipt) -> str:
    """Return the tag that an image is pushed under where a push by digest alone is not to be had."""
    return f"digest-{made.digest.removeprefix('sha256:')}"


def _pushed(meant: Intent, made: Receipt, reporter: Reporter) -> dict[str, Any]:
    """Push the image by its digest, unless it was when it was built; return BuildKit's provenance."""
    if made.thin:
        said = provenance.read(meant.output, made.kind, made.digest)
    else:
        repository = str(meant.to)
        said = build.push(
            meant.catalog, meant.plan, twin=meant.twin, repository=repository, reporter=reporter
        ).provenance
    if not said:
        raise errors.PublishRefused(
            f"{made.target}: BuildKit gave no provenance", hint="a newer buildx: ./inv engine.up"
        )
    return said


def _predicate(meant: Intent, made: Receipt, base: statements.Base, root: str | None) -> Patches:
    ledger = ledgers.parse(meant.ledger, "rehearsal")
    return statements.Patches(
        kiln=__version__,
        target=made.target,
        kind=made.kind,
        tags=meant.names.every,
        root=root,
        patches=tuple(
            statements.Patch(
                id=entry.id,
                edition_sha256=entry.edition_sha256,
                files=tuple(statements.PatchFile(path=file.path, pre=file.pre, post=file.post) for file in entry.files),
            )
            for entry in ledger.patches
        ),
        ledger=statements.Ledger(
            path=accept.LEDGER.lstrip("/"), sha256=hashlib.sha256(meant.ledger).hexdigest(), series=ledger.series
        ),
        base=base,
        pins=dict(meant.plan.pins),
        catalog_commit=made.catalog_commit,
        inputs_sha256=made.inputs_sha256,
        slsa=meant.slsa,
    )


def _root(image: RemoteImage, base_layers: int, progress: remote.Progress) -> str | None:
    """Return where the patched tree lies, by its ledger in one of the layers over the base; None where none has it."""
    name = f".dist-info/{ledgers.NAME}"
    for number in reversed(range(base_layers, len(image.layers))):
        found = remote.scan(image, lambda path: path.endswith(name), layers=(number,), progress=progress)
        for path in found:
            return path.rsplit("/", 2)[0]
    return None


def _statements(meant: Intent, made: Receipt, patches: Patches, said: dict[str, Any]) -> Iterator[Statement]:
    assert meant.case.evidence, "the gate lets nothing out without it"
    smoke = statements.Smoke(evidence=meant.case.evidence, waiver=meant.case.waiver, waived=gate.waived(meant.case))
    every = {
        statements.SBOM: said["sbom"],
        statements.provenance_type(said["provenance"]): said["provenance"],
        statements.PATCHES: patches.model_dump(mode="json"),
        statements.SMOKE: smoke.model_dump(mode="json", by_alias=True),
    }
    for kind, predicate in every.items():
        yield statements.make(kind, predicate, name=meant.to.name, digest=made.digest)
    if meant.signer:
        yield statements.signature(name=meant.to.name, digest=made.digest)


def _checker(meant: Intent, made: Receipt) -> sign.Verifier | None:
    """Return who finds out whether an attached statement is one that whoever publishes now has signed."""
    if not meant.signer:
        return None
    request = meant.request
    return sign.Verifier(
        cosign=meant.signer.cosign,
        key=str(_public_key(meant, made)) if request.key else "",
        identity=request.identity if request.keyless else "",
        issuer=request.issuer if request.keyless else "",
        scratch=meant.catalog.state,
    )


def _signed(meant: Intent, every: Iterator[Statement], there: tuple[Statement, ...]) -> Iterator[attached.Attachment]:
    """Yield what is not there yet: in the clear where nobody signs, else signed, the signature of the image last."""
    known = [statements.lasting(statement) for statement in there]
    for statement in every:
        if statements.lasting(statement) in known:
            continue
        yield attached.Attachment(statement=statement, bundle=meant.signer.sign(statement) if meant.signer else b"")


def _public_key(meant: Intent, made: Receipt) -> Path:
    return meant.output / f"{made.kind}-cosign.pub"


def _refused(what: str, problems: list[Finding]) -> errors.PublishRefused:
    lines = [f"  {found.where}: {found.problem}" for found in problems]
    hints = dict.fromkeys(found.hint for found in problems if found.hint)
    return errors.PublishRefused("\n".join([f"{what}:", *lines]), hint="\n        ".join(hints))
