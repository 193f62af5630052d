"""Finds releases that the catalog lacks, and drafts what a person adds for them: no more than was read somewhere."""

from __future__ import annotations

import ast
import contextlib
import email.parser
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from kiln import errors
from kiln.catalog import records
from kiln.image.rehearsal import DISTRIBUTION
from kiln.lock import ask, judge
from kiln.upstream import index
from kiln.upstream.wheel import RemoteWheel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kiln.catalog import Catalog
    from kiln.report import Reporter
    from kiln.upstream.index import Listed

_VERSION_FILE = "vllm/_version.py"
_COMMIT = re.compile(r"g?([0-9a-f]{7,40})")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!]*")
# requirement of the wheel -> pin of its CUDA image
_CUDA_PINS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "flashinfer-python": "flashinfer",
    "nvidia-cutlass-dsl": "cutlass_dsl",
}
_SOURCES = {
    "cuda": "docker/versions.json and requirements/cuda.txt of the source archive",
    "rocm": "docker/Dockerfile.rocm_base and requirements/rocm.txt of the source archive",
}


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A release that images/releases.yaml lacks: the start of its entry, or why there is none.

    `images` maps a tag reference to the linux/amd64 digest that its registry names, "" where it named none.
    """

    release: str
    block: str = ""
    images: dict[str, str]
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What the wheel of a release says of itself."""

    commit: str
    cuda: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A new release: its wheel, what that says or why it cannot be read, and the images it must have by kind."""

    release: str
    file: Listed | None
    read: _Read | errors.KilnError
    pins: dict[str, records.ImagePin]


def proposals(catalog: Catalog, reporter: Reporter, *, offline: bool) -> tuple[Proposal, ...]:
    """Return a proposal for each final release of the index that the catalog lacks, of those after its oldest.

    Raises Missing where the package index gives no answer; nothing of the catalog is edited.
    """
    names = sorted(catalog.releases.releases, key=Version)
    with reporter.step("look for new releases"), contextlib.closing(index.session()) as session:
        listed = index.releases(index.files(DISTRIBUTION, None, session))
        known = {Version(name) for name in names}
        new = {
            name: file
            for name, file in listed.items()
            if Version(name) > Version(names[0]) and Version(name) not in known
        }
        drafts = [_draft(catalog, names[-1], name, file) for name, file in new.items()]
    pins = [pin for draft in drafts for pin in draft.pins.values()]
    digests = _digests(catalog, pins, reporter) if pins and not offline else {}
    return tuple(_proposal(draft, digests) for draft in drafts)


def _draft(catalog: Catalog, newest: str, release: str, file: Listed | None) -> _Draft:
    stacks = catalog.releases.releases[newest]
    pins = {
        kind: records.ImagePin(repository=pin.repository, tag=pin.tag.replace(newest, release))
        for kind, pin in (("cuda", stacks.cuda.image), ("rocm", stacks.rocm.image))
    }
    return _Draft(release=release, file=file, read=_wheel(release, file), pins=pins)


def _wheel(release: str, file: Listed | None) -> _Read | errors.KilnError:
    if file is None:
        return errors.Missing("the index lists no wheel of it for Linux on x86-64 with a hash")
    metadata = f"{DISTRIBUTION}-{release}.dist-info/METADATA"
    try:
        remote = RemoteWheel(records.WheelPin(project=DISTRIBUTION, file=file.file, sha256=file.sha256), file.url)
        read = remote.read((_VERSION_FILE, metadata))
    except errors.KilnError as error:
        return error
    return _Read(commit=_commit(read.get(_VERSION_FILE, b"")), cuda=dict(_pins(read.get(metadata, b""))))


def _commit(source: bytes) -> str:
    """Return the commit that vLLM's own version file names, "" where it names none; the file is never run."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            match = _COMMIT.fullmatch(str(node.value.value))
            if match and "commit_id" in names:
                return match[1]
    return ""


def _pins(metadata: bytes) -> Iterator[tuple[str, str]]:
    """Yield the pins of the CUDA image that a wheel's requirements name exactly."""
    headers = email.parser.BytesParser().parsebytes(metadata, headersonly=True)
    for text in headers.get_all("Requires-Dist", []):
        with contextlib.suppress(InvalidRequirement):
            requirement = Requirement(str(text))
            specifiers = [(each.operator, each.version) for each in requirement.specifier]
            is_pinned = len(specifiers) == 1 and specifiers[0][0] == "==" and _VERSION.fullmatch(specifiers[0][1])
            if is_pinned and requirement.name in _CUDA_PINS and not requirement.marker:
                yield _CUDA_PINS[requirement.name], specifiers[0][1]


def _digests(catalog: Catalog, pins: list[records.ImagePin], reporter: Reporter) -> dict[str, str]:
    nothing = judge.Expected(index=None, manifest=None)
    questions = [
        ask.Question(image=pin.reference, pulled=catalog.mirrored(pin.reference), want=nothing) for pin in pins
    ]
    answers, _ = ask.every(questions, catalog.config.ca, reporter)
    return {name: answer.manifest for name, answer in answers.items()}


def _proposal(draft: _Draft, digests: Mapping[str, str]) -> Proposal:
    images = {pin.reference: digests.get(pin.reference, "") for pin in draft.pins.values()}
    if draft.file is None or isinstance(draft.read, errors.KilnError):
        problem = draft.read.message if isinstance(draft.read, errors.KilnError) else ""
        return Proposal(release=draft.release, images=images, problem=problem)
    block = "\n".join(_block(draft, draft.file, draft.read, images))
    return Proposal(release=draft.release, images=images, block=block)


def _block(draft: _Draft, file: Listed, read: _Read, images: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of an entry of images/releases.yaml; what has to be looked up by hand is a comment."""
    yield f"  {draft.release}:"
    yield "    # date: the day it was published"
    yield f"    commit: {read.commit}" if read.commit else "    # commit: of the release's tag"
    yield "    wheel:"
    yield f"      project: {DISTRIBUTION}"
    yield f"      file: {file.file}"
    yield f"      sha256: {file.sha256}"
    fields = {"cuda": records.CudaStack.model_fields, "rocm": records.RocmStack.model_fields}
    for kind, pin in draft.pins.items():
        found = read.cuda if kind == "cuda" else {}
        digest = images[pin.reference]
        yield f"    {kind}:"
        yield "      image:"
        yield f"        repository: {pin.repository}"
        yield f"        tag: {pin.tag}  # {digest or 'no registry has named its digest'}"
        yield from (f"      {name}: {version}" for name, version in found.items())
        lacking = [name for name, each in fields[kind].items() if each.is_required() and name not in {"image", *found}]
        yield f"      # {', '.join(lacking)}: {_SOURCES[kind]}"
    yield "    # twin, or no_twin_because"
