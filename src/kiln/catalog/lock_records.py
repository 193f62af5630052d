"""The frozen records of images/lock.json, which ./inv lock writes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from kiln.catalog.records import Digest, Path, Record, Sha256, Text

Mode = Annotated[str, StringConstraints(pattern=r"^[0-7]{4}$")]
Time = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")]


# the version of what reads the layers: a base that another one read is read again; 2 knows every pinned distribution
READER = 2


class LockedDigest(Record):
    """A digest and what vouches for it: that many public records, or a registry that was asked at `confirmed`."""

    digest: Digest
    confidence: Literal["A", "B", "C", "registry"]
    confirmed: Time | None = None

    @model_validator(mode="after")
    def _has_its_time(self) -> LockedDigest:
        if (self.confidence == "registry") != bool(self.confirmed):
            raise ValueError("a digest has the time of its confirmation if, and only if, a registry vouches for it")
        return self


class Base(Record):
    """What was read out of an image's layers: where its vLLM lies, and what the editions of the release would meet.

    `files` and `bytecode` lie under `root`; `files` maps each path that an edition touches to its sha256, None where
    there is none. `record_layer` counts from the lowest of `layers`. `caches` are folders with JIT output. `modes` are
    those of `files`, of RECORD, and of every folder above these, above `bytecode` and above `caches`, by path in the
    image. `reader` is the READER that read it.
    """

    root: Path
    dist_info: Path
    record_sha256: Sha256
    record_layer: int = Field(ge=0)
    layers: tuple[Digest, ...] = Field(min_length=1)
    diff_ids: tuple[Digest, ...] = Field(min_length=1)
    files: dict[Path, Sha256 | None]
    bytecode: tuple[Path, ...] = ()
    caches: tuple[Path, ...] = ()
    modes: dict[Path, Mode] = Field(default_factory=dict)
    versions: dict[Text, Text] = Field(default_factory=dict)
    reader: int = Field(default=1, ge=1)


class LockedImage(Record):
    """One image: `inputs_sha256` is of the lines of releases.yaml that it was locked from, `sha256` of all the rest."""

    repository: Text
    tag: Text
    inputs_sha256: Sha256
    index: LockedDigest | None = None
    manifest: LockedDigest | None = None
    locked: Time
    base: Base | None = None
    sha256: Sha256 | None = None


class LockedPackage(Record):
    name: Text
    version: Text
    sha256: Sha256


class Lock(Record):
    """`images` by their tag reference; `debian` holds the packages of the twin's base and of its builder."""

    schema_version: Literal[1] = 1
    images: dict[Text, LockedImage] = Field(default_factory=dict)
    debian: dict[Literal["base", "builder"], tuple[LockedPackage, ...]] = Field(default_factory=dict)
