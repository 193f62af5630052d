"""Resolves a target into everything it needs: image, pins, series, serve command; pure, no I/O."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from kiln import errors, recipe
from kiln.catalog import installs, lock_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kiln.catalog import Catalog, records

DEFAULT_MODEL = "MiniMaxAI/MiniMax-M3"
# where a wheel is fetched from is no part of what a target is, and goes into no image
_ADDRESSES: dict[str, set[str]] = {"wheel": {"index"}, "torch": {"index"}}
_PLATFORM = "linux/amd64"  # of every image


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a person builds, smokes and publishes; `product` is the GPU whose recipe layers are used."""

    model: str
    variant: str
    arch: str
    product: str
    release: str

    @property
    def slug(self) -> str:
        """The name of the target in files and tags."""
        return slug(model=self.model, variant=self.variant, arch=self.arch, release=self.release)


@dataclass(frozen=True, kw_only=True)
class PatchUse:
    """One edition in a target's series; `files` maps a path to its sha256 before and after."""

    id: str
    title: str
    edition: str
    sha256: str
    files: tuple[tuple[str, str | None, str | None], ...]


@dataclass(frozen=True, kw_only=True)
class Image:
    """The upstream image of a real target, as locked.

    `digest` is that of the linux/amd64 manifest, None when unknown; `verified` says that a registry has confirmed it.
    """

    kind: Literal["rocm", "cuda"]
    repository: str
    tag: str
    digest: str | None
    confidence: str | None
    verified: bool

    @property
    def reference(self) -> str:
        """The reference a build pulls, by digest; the tag alone when no digest is known."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a target resolves to; `twin` is set where the release can be built without a GPU.

    `installs` is what the real image gets over its base; `pins` are those of the image with it.
    """

    target: Target
    image: Image
    wheel: records.WheelPin
    pins: tuple[tuple[str, str], ...]
    installs: tuple[records.Install, ...]
    twin: records.Twin | None
    no_twin_because: str
    series: tuple[PatchUse, ...]
    serve: recipe.Serve

    def as_data(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "target": asdict(self.target) | {"slug": self.target.slug},
            "image": asdict(self.image) | {"reference": self.image.reference},
            "wheel": self.wheel.model_dump(exclude={"index"}),
            "pins": dict(self.pins),
            "installs": [install.model_dump(mode="json", exclude_none=True) for install in self.installs],
            "twin": self.twin.model_dump(mode="json", exclude=_ADDRESSES) if self.twin else None,
            "no_twin_because": self.no_twin_because or None,
            "series": [asdict(use) | {"files": _files(use)} for use in self.series],
            "serve": asdict(self.serve) | {"command": self.serve.text},
        }


def make(
    catalog: Catalog,
    *,
    variant: str,
    arch: str,
    release: str = "",
    model: str = "",
) -> Plan:
    """Resolve one target; raises BadInput that lists every unknown name, or why the combination cannot work."""
    model, release = model or DEFAULT_MODEL, release or catalog.releases.default_release
    if unknown := list(_unknown(catalog, model=model, variant=variant, arch=arch, release=release)):
        raise errors.BadInput("\n".join(unknown), hint="see what there is: ./inv plan --list")
    model_recipe = catalog.recipes[model]
    spec = model_recipe.variants[variant]
    arch, product = _hardware(catalog.releases.arches, spec, variant, arch)
    if Version(release) < Version(model_recipe.model.min_vllm_version):
        raise errors.BadInput(f"{model} needs vLLM {model_recipe.model.min_vllm_version} or newer, not {release}")
    pins = catalog.releases.releases[release]
    chosen = _installs(catalog, variant=variant, arch=arch, release=release)
    target = Target(model=model, variant=variant, arch=arch, product=product, release=release)
    arch_record = catalog.releases.arches[arch]
    return Plan(
        target=target,
        image=_image(catalog.lock, pins, arch_record),
        wheel=pins.wheel,
        pins=tuple(_pins(pins, arch_record, chosen).items()),
        installs=chosen,
        twin=pins.twin,
        no_twin_because=pins.no_twin_because or "",
        series=tuple(_series(catalog, target)),
        serve=recipe.resolve(model_recipe, variant, (arch_record, product), release),
    )


def slug(*, model: str, variant: str, arch: str, release: str) -> str:
    """Return the name of a target that may be impossible to plan."""
    return f"{model.rsplit('/', 1)[-1].lower()}-{variant}-{arch}-{release}"


def possible(catalog: Catalog) -> Iterator[tuple[str, str, str, str]]:
    """Yield every (model, variant, arch, release) that a plan can be made for."""
    for model, model_recipe in catalog.recipes.items():
        for variant, spec in model_recipe.variants.items():
            for arch in _arches(catalog.releases.arches, spec):
                for release in catalog.releases.releases:
                    if Version(release) >= Version(model_recipe.model.min_vllm_version):
                        yield model, variant, arch, release


def bound(catalog: Catalog, *, model: str, variant: str, arch: str) -> tuple[records.Patch, ...]:
    """Return the patches that a target can need, in order, on whatever release."""
    patches = (catalog.patches[patch_id] for patch_id in catalog.order)
    return tuple(
        patch
        for patch in patches
        if (not patch.applies.models or model in patch.applies.models)
        and (not patch.applies.variants or variant in patch.applies.variants)
        and (not patch.applies.arches or arch in patch.applies.arches)
    )


def needed(catalog: Catalog, *, model: str, variant: str, arch: str, release: str) -> tuple[records.Patch, ...]:
    """Return the patches that a target needs, in order, whether or not they have an edition for its release."""
    patches = bound(catalog, model=model, variant=variant, arch=arch)
    return tuple(patch for patch in patches if covers(patch.applies, release))


def refusals(catalog: Catalog, *, model: str, variant: str, arch: str, release: str) -> Iterator[str]:
    """Yield why a target cannot be made: pins that do not fit, patches that clash, lack an edition or need others."""
    patches = needed(catalog, model=model, variant=variant, arch=arch, release=release)
    chosen = _installs(catalog, variant=variant, arch=arch, release=release)
    pins = _pins(catalog.releases.releases[release], catalog.releases.arches[arch], chosen)
    for problem in installs.misfits(catalog.releases.compatibility, pins):
        yield f"images/releases.yaml: {problem}"
    yield from clashes(patches)
    for patch in patches:
        if release not in patch.editions:
            known = ", ".join(patch.editions) or "none"
            yield f"patches/{patch.id}: needed on {release}, and has no edition for it; editions: {known}"
        for name, specifier in patch.preconditions.items():
            found = pins.get(name, "none")
            if not SpecifierSet(specifier).contains(found, prereleases=True):
                yield f"patches/{patch.id}: needs {name} {specifier}, and the image of {release} has {found}"


def covers(applies: records.Applies, release: str) -> bool:
    """Say whether a patch is needed on a release."""
    return SpecifierSet(applies.releases).contains(release, prereleases=True)


def nearest(patch: records.Patch, version: str) -> str:
    """Return the release of the newest edition that is not newer than `version`, else of the oldest."""
    releases = sorted(patch.editions, key=Version)
    older = [release for release in releases if Version(release) <= Version(version)]
    return older[-1] if older else releases[0]


def clashes(patches: Sequence[records.Patch]) -> Iterator[str]:
    """Yield what keeps these patches from being one series, both patches named."""
    present = [patch.id for patch in patches]
    for patch in patches:
        for other in patch.conflicts:
            if other in present:
                yield f"patches/{patch.id}: conflicts with {other}, and the series needs both"
        for other in patch.requires:
            if other not in present:
                yield f"patches/{patch.id}: requires {other}, which the series does not hold"


def _unknown(catalog: Catalog, *, model: str, variant: str, arch: str, release: str) -> Iterator[str]:
    arches = catalog.releases.arches
    products = {name: product for record in arches.values() for name, product in record.products.items()}
    variants = catalog.recipes[model].variants if model in catalog.recipes else {}
    if not variants:
        yield errors.unknown("model", model, catalog.recipes)
    if not variant:
        yield "--variant is missing" + (f"; known: {', '.join(variants)}" if variants else "")
    elif variants and variant not in variants:
        yield errors.unknown("variant", variant, variants)
    if not arch:
        hosts = sorted(name for name, product in products.items() if product.platform == _PLATFORM)
        yield f"--arch is missing; known: {', '.join(arches)}, or a product: {', '.join(hosts)}"
    elif arch not in arches and arch not in products:
        yield errors.unknown("arch", arch, {*arches, *products})
    if release not in catalog.releases.releases:
        yield errors.unknown("release", release, catalog.releases.releases)


def _hardware(arches: Mapping[str, records.Arch], spec: records.Variant, variant: str, asked: str) -> tuple[str, str]:
    """Return (arch, product) for an arch or a product name, or say which ones this variant can run on."""
    for arch, record in arches.items():
        candidates = record.products if asked == arch else {asked} & record.products.keys()
        for product in candidates:
            if _runs_on(record, product, spec):
                return arch, product
    able = "; ".join(f"{arch} ({', '.join(products)})" for arch, products in _arches(arches, spec).items())
    host = next((record.products[asked].platform for record in arches.values() if asked in record.products), _PLATFORM)
    why = f"cannot run on {asked}" if host == _PLATFORM else f"on {asked} needs a {host} image, and all are {_PLATFORM}"
    raise errors.BadInput(f"{variant} {why}; it runs on: {able}", hint="see every target there is: ./inv plan --list")


def _arches(arches: Mapping[str, records.Arch], spec: records.Variant) -> dict[str, list[str]]:
    able = {
        arch: [product for product in record.products if _runs_on(record, product, spec)]
        for arch, record in arches.items()
    }
    return {arch: products for arch, products in able.items() if products}


def _runs_on(arch: records.Arch, product: str, spec: records.Variant) -> bool:
    """Say whether a product has the memory for a variant, as its recipe says, and a host that the images are for."""
    return product in spec.supported_hardware and arch.products[product].platform == _PLATFORM


def _image(lock: lock_records.Lock, pins: records.ReleasePins, arch: records.Arch) -> Image:
    pin = pins.rocm.image if arch.vendor == "amd" else pins.cuda.image
    entry = lock.images.get(pin.reference)
    manifest = entry.manifest if entry else None
    return Image(
        kind="rocm" if arch.vendor == "amd" else "cuda",
        repository=pin.repository,
        tag=pin.tag,
        digest=manifest.digest if manifest else None,
        confidence=manifest.confidence if manifest else None,
        verified=bool(manifest and manifest.confirmed),
    )


def _installs(catalog: Catalog, *, variant: str, arch: str, release: str) -> tuple[records.Install, ...]:
    stack = installs.stack_of(catalog.releases.releases[release], catalog.releases.arches[arch])
    return installs.needed(stack, variant=variant, arch=arch)


def _pins(pins: records.ReleasePins, arch: records.Arch, chosen: tuple[records.Install, ...]) -> dict[str, str]:
    return {"vllm_commit": pins.commit} | installs.pins(installs.stack_of(pins, arch), chosen)


def _series(catalog: Catalog, target: Target) -> Iterator[PatchUse]:
    at = {"model": target.model, "variant": target.variant, "arch": target.arch, "release": target.release}
    if problems := list(refusals(catalog, **at)):
        culprit = problems[0].partition(":")[0].removeprefix("patches/")
        raise errors.BadInput(
            "\n".join(f"{target.slug}: {problem}" for problem in problems),
            hint=f"see what can be: ./inv plan --list --variant {target.variant}; why: ./inv patch.explain {culprit}",
        )
    for patch in needed(catalog, **at):
        edition = patch.editions[target.release]
        yield PatchUse(
            id=patch.id,
            title=patch.title,
            edition=target.release,
            sha256=edition.sha256,
            files=tuple((path, hashes.pre, hashes.post) for path, hashes in sorted(edition.files.items())),
        )


def _files(use: PatchUse) -> list[dict[str, str | None]]:
    return [{"path": path, "pre": pre, "post": post} for path, pre, post in use.files]
