"""The frozen records that the catalog's YAML files hold."""

from __future__ import annotations

import pathlib  # noqa: TC003  # pydantic looks it up
from typing import Annotated, Literal

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator


def _version(text: str) -> str:
    Version(text)
    return text


def _specifier(text: str) -> str:
    SpecifierSet(text)
    return text


def _contained(text: str) -> str:
    if ".." in text.split("/"):
        raise ValueError("leaves its folder")
    return text


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
Text = Annotated[str, StringConstraints(min_length=1)]
Release = Annotated[Text, AfterValidator(_version)]
Specifier = Annotated[Text, AfterValidator(_specifier)]
Path = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_+.-][A-Za-z0-9_+./-]*$"), AfterValidator(_contained)]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
GitUrl = Annotated[str, StringConstraints(pattern=r"^https://[A-Za-z0-9.-]+(/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$", max_length=64)]
EnvValue = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e]*$", max_length=256)]
WheelFile = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+-[A-Za-z0-9_.+!]+-[A-Za-z0-9_.-]+\.whl$")]
Repository = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$", max_length=255)
]
Vendor = Literal["amd", "nvidia"]


class Record(BaseModel):
    """Base of every record: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# images/releases.yaml


class Product(Record):
    """One GPU product: its 8-GPU (or tray) node as the field sells it; `platform` is that of the node's host."""

    name: Text
    gpus: int = Field(ge=1, le=72)
    vram_gb: int = Field(ge=1)
    platform: Literal["linux/amd64", "linux/arm64"] = "linux/amd64"


class Arch(Record):
    vendor: Vendor
    generation: Text
    products: dict[Name, Product] = Field(min_length=1)


class WheelPin(Record):
    """A wheel by file name and content hash, on the configured package index or on the `index` that alone has it."""

    project: Name
    file: WheelFile
    sha256: Sha256
    index: Text | None = None

    @property
    def version(self) -> str:
        return self.file.split("-")[1]


class DigestPin(Record):
    """A registry digest; `confidence` is A, B, C for three, two, one public records that agree."""

    digest: Digest
    confidence: Literal["A", "B", "C"]


class ImagePin(Record):
    """An image tag with its index digest and the digest of its linux/amd64 manifest, where known."""

    repository: Text
    tag: Text
    index: DigestPin | None = None
    manifest: DigestPin | None = None

    @property
    def reference(self) -> str:
        """The tag reference, for people; builds use `repository@manifest.digest`."""
        return f"{self.repository}:{self.tag}"


class Source(Record):
    """A commit that a wheel is built from, with its submodules, which the commit pins; `env` is set for the build.

    `build_requires` are what the build imports and the image lacks; they are in the build's stage only.
    """

    repository: GitUrl
    commit: Commit
    env: dict[EnvName, EnvValue] = {}
    build_requires: tuple[WheelPin, ...] = ()


class Install(Record):
    """A package that some targets get over their base, never with what it depends on; empty lists mean every target.

    `companions` are the wheels that this version cannot do without. `pins` are the stack's pins that are others then.
    """

    package: Name
    version: Release
    reason: Text
    variants: tuple[Name, ...] = ()
    arches: tuple[Name, ...] = ()
    wheel: WheelPin | None = None
    source: Source | None = None
    companions: tuple[WheelPin, ...] = ()
    pins: dict[Name, Text] = {}

    @model_validator(mode="after")
    def _has_one_origin(self) -> Install:
        if (self.wheel is None) == (self.source is None):
            raise ValueError("comes from a wheel or from a source: exactly one of the two")
        return self


class Fit(Record):
    """What a version of one pin needs of the others; `because` says who says so."""

    pin: Name
    versions: Specifier
    needs: dict[Name, Specifier] = Field(min_length=1)
    because: Text


class CudaStack(Record):
    image: ImagePin
    cuda: Text
    ubuntu: Text
    python: Text
    torch: Text
    torchvision: Text
    torchaudio: Text
    triton: Text
    flashinfer: Text
    cutlass_dsl: Text
    nccl: Text | None = None
    installs: tuple[Install, ...] = ()


class RocmStack(Record):
    image: ImagePin
    base_image: Text
    rocm: Text
    python: Text
    aiter: Text
    aiter_use_system_triton: bool
    triton_ref: Text
    triton_reported: Text | None = None
    torch_ref: Text
    torch_reported: Text
    torchvision: Text
    flash_attention_ref: Text
    mori: Text
    amd_quark: Text
    flydsl: Text | None = None
    pybind11: Text | None = None
    base_dockerfile_sha256_16: Text
    installs: tuple[Install, ...] = ()


class TwinExtra(Record):
    """One file of the release's GPU wheel that its CPU wheel lacks."""

    member: Path
    sha256: Sha256
    reason: Text


class Twin(Record):
    """What a CPU-only image of a release is made of.

    Its base is made here from Debian's packages, or is an image in a registry that holds Debian's Python 3.11.
    """

    base: Literal["debian"] | ImagePin
    python: Text
    wheel: WheelPin
    torch: WheelPin
    requirements: Path
    extras: tuple[TwinExtra, ...] = ()


class ReleasePins(Record):
    date: Text
    commit: Text
    wheel: WheelPin
    cuda: CudaStack
    rocm: RocmStack
    twin: Twin | None = None
    no_twin_because: Text | None = None


class Matrix(Record):
    """What `--all` stands for: every possible target of these; an empty list means every one."""

    releases: tuple[Release, ...] = ()
    variants: tuple[Name, ...] = ()
    arches: tuple[Name, ...] = ()


class Budget(Record):
    """What a build may add: megabytes (of 1,000,000 bytes) as they are pushed, and layers."""

    added_mb: int = Field(ge=0)
    layers: int = Field(ge=0)


class Budgets(Record):
    """What each kind of build may add to its base; `install` is for each package that a target gets, on top."""

    patched: Budget
    install: Budget
    thin: Budget
    twin: Budget


class Releases(Record):
    """`compatibility` is what the stacks, and every install on them, are checked against."""

    default_release: Release
    compatibility: tuple[Fit, ...] = ()
    matrix: Matrix = Matrix()
    budgets: Budgets
    arches: dict[Name, Arch] = Field(min_length=1)
    releases: dict[Release, ReleasePins] = Field(min_length=1)


# patches/


class FileHashes(Record):
    """sha256 of a file before and after an edition; absent `pre` means created, absent `post` deleted."""

    pre: Sha256 | None = None
    post: Sha256 | None = None


class Edition(Record):
    sha256: Sha256
    files: dict[Path, FileHashes] = Field(min_length=1)


class Applies(Record):
    """Where a patch is needed; an empty list means every one."""

    models: tuple[Text, ...] = ()
    variants: tuple[Name, ...] = ()
    arches: tuple[Name, ...] = ()
    releases: Specifier


class Upstream(Record):
    status: Literal["not-reported", "open", "merged", "declined", "withdrawn"]
    links: tuple[Text, ...] = ()


class Probe(Record):
    """How probe.py is run: over the source text alone, or with the patched vllm importable."""

    needs: Literal["source", "vllm"]
    shows: Text


class Patch(Record):
    """`requires` and `conflicts` name patches that a series must, and must not, hold beside this one.

    `upstream_since` is the first release that has the change itself, `withdrawn_in` the one that took it back.
    `unported` are releases that need the patch and have no edition: their targets are refused. `preconditions` map a
    pin of the image to the versions that the patch works with. An entry without editions only tells what is known.
    """

    id: Name
    title: Text
    reason: Text
    lost_without: Text
    upstream: Upstream
    upstream_since: Release | None = None
    withdrawn_in: Release | None = None
    drop_when: Text
    applies: Applies
    unported: tuple[Release, ...] = ()
    requires: tuple[Name, ...] = ()
    conflicts: tuple[Name, ...] = ()
    preconditions: dict[Name, Specifier] = {}
    probe: Probe | None = None
    editions: dict[Release, Edition] = {}


class SeriesOrder(Record):
    order: tuple[Name, ...]


# recipes/ (the vLLM recipe dialect, the part that Kiln reads so far)


class Layer(Record):
    """Arguments and environment that one layer of a recipe adds."""

    extra_args: tuple[Text, ...] = ()
    extra_env: dict[Text, str] = {}


class Feature(Record):
    description: Text
    args: tuple[Text, ...]


class Variant(Layer):
    model_id: Text | None = None
    precision: Name
    vram_minimum_gb: int = Field(ge=1)
    description: Text
    supported_hardware: tuple[Name, ...] = Field(min_length=1)
    tp: int | None = Field(default=None, ge=1)
    hardware_overrides: dict[Name, Layer] = {}


class Meta(Record):
    title: Text
    slug: Name
    provider: Text
    description: Text


class Model(Record):
    model_id: Text
    min_vllm_version: Release
    base_args: tuple[Text, ...] = ()
    base_env: dict[Text, str] = {}


class Recipe(Record):
    """`args_since` maps a flag to the first release that takes it; it is left out on older ones (our own key)."""

    meta: Meta
    model: Model
    features: dict[Name, Feature]
    opt_in_features: tuple[Text, ...] = ()
    variants: dict[Name, Variant] = Field(min_length=1)
    hardware_overrides: dict[Name, Layer] = {}
    args_since: dict[Text, Release] = {}


# kiln.yaml (a person's own configuration, optional)


class Config(Record):
    """A person's own settings.

    `mirrors` maps the beginning of an image's or a repository's name to what it is fetched from instead. `ca` is a PEM
    bundle that registries and builds trust, by its path from this file. `publish` is the HOST/REPOSITORY to publish to.
    """

    mirrors: dict[Text, Text] = {}
    ca: pathlib.Path | None = None
    publish: Repository | None = None
