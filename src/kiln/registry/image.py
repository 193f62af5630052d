"""Opens an image in a registry: its manifest for one platform, its config, its layers with their diff ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kiln import errors
from kiln.registry import records, reference
from kiln.registry.records import Damaged, Descriptor, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from kiln.registry.client import Registry

PLATFORM = "linux/amd64"
_MAX_CONFIG_BYTES = 8 << 20
# as containerd reads them: Docker runs an entry of an index under any of these names
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


class Content(Protocol):
    """Layers to be read: in a registry, or in what `docker save` wrote."""

    @property
    def layers(self) -> tuple[Descriptor, ...]: ...

    @property
    def diff_ids(self) -> tuple[str, ...]: ...

    def stream_blob(self, descriptor: Descriptor) -> AbstractContextManager[Iterator[bytes]]:
        """Yield the pieces of a blob, verified at its end."""
        ...


class Store(Protocol):
    """Where manifests and small blobs come from, the repository settled."""

    def manifest(self, ref: str) -> Manifest:
        """Return the manifest of a tag or digest, verified."""
        ...

    def read_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        """Return a blob, verified."""
        ...


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of one platform; `index_digest` is "" where no index names it, `layers` begin with the lowest."""

    manifest: Manifest
    config: dict[str, Any]
    index_digest: str = ""

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return self.manifest.layers

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return tuple(self.config["rootfs"]["diff_ids"])

    @property
    def labels(self) -> dict[str, str]:
        return dict((self.config.get("config") or {}).get("Labels") or {})

    @property
    def platform(self) -> str:
        return platform_of(self.config)


@dataclass(frozen=True, kw_only=True)
class RemoteImage(Image):
    """An image in a registry."""

    registry: Registry
    repository: str

    def stream_blob(self, descriptor: Descriptor) -> AbstractContextManager[Iterator[bytes]]:
        """Yield the pieces of a layer, verified at its end."""
        return self.registry.stream_blob(self.repository, descriptor)


@dataclass(frozen=True, kw_only=True)
class _Repository:
    registry: Registry
    name: str

    def manifest(self, ref: str) -> Manifest:
        return self.registry.manifest(self.name, ref)

    def read_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        return self.registry.read_blob(self.name, descriptor, limit=limit)


def open_image(registry: Registry, repository: str, ref: str, platform: str = PLATFORM) -> RemoteImage:
    """Return the image that a tag or digest stands for on a platform; raises Missing where it has none for it."""
    where = f"{registry.host}/{repository}{'@' if reference.is_digest(ref) else ':'}{ref}"
    found = opened(_Repository(registry=registry, name=repository), ref, platform, where)
    return RemoteImage(
        manifest=found.manifest,
        config=found.config,
        index_digest=found.index_digest,
        registry=registry,
        repository=repository,
    )


def opened(store: Store, ref: str, platform: str, where: str) -> Image:
    """Return manifest and config of an image, whichever store has them."""
    top = store.manifest(ref)
    manifest = store.manifest(_choose(top, platform, where).digest) if top.is_index else top
    if manifest.config is None:
        raise Damaged(f"{where}: its index names another index for {platform}")
    if manifest.config.media_type not in _CONFIGS:
        raise errors.BadInput(f"{where}: not an image, but {manifest.artifact_type or manifest.config.media_type}")
    data = store.read_blob(manifest.config, limit=_MAX_CONFIG_BYTES)
    config = _read_config(data, manifest, where)
    if not _fits(platform_of(config), platform):
        raise errors.Missing(f"{where}: it is for {platform_of(config)}, not {platform}")
    return Image(manifest=manifest, config=config, index_digest=top.digest if top.is_index else "")


def platform_of(config: dict[str, Any]) -> str:
    """Return OS/ARCHITECTURE[/VARIANT] of an image's config."""
    return "/".join(str(config[key]) for key in ("os", "architecture", "variant") if config.get(key))


def _choose(index: Manifest, platform: str, where: str) -> Descriptor:
    found = [each for each in index.manifests if _fits(each.platform, platform)]
    if not found:
        known = sorted({each.platform for each in index.manifests} - {"", "unknown/unknown"})
        raise errors.Missing(f"{where}: nothing for {platform}; it is there for {', '.join(known) or 'no platform'}")
    if len({each.digest for each in found}) > 1:
        raise Damaged(f"{where}: {len(found)} different images for {platform}")
    return found[0]


def _fits(found: str, wanted: str) -> bool:
    system, *rest = found.lower().split("/")
    known = "/".join((system, *(_ARCHITECTURES.get(each, each) for each in rest)))
    return known == wanted or known.startswith(f"{wanted}/")


def _read_config(data: bytes, manifest: Manifest, where: str) -> dict[str, Any]:
    """Return an image's config; raises Damaged unless it has one diff id for each layer, and labels that are texts."""
    config = records.read_json(data, f"{where}: its config")
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(
        isinstance(each, str) and reference.is_digest(each) for each in diff_ids
    ):
        raise Damaged(f"{where}: its config has no diff ids")
    if len(diff_ids) != len(manifest.layers):
        raise Damaged(f"{where}: {len(manifest.layers)} layers, but {len(diff_ids)} diff ids")
    settings = config.get("config") or {}
    labels = (settings.get("Labels") or {}) if isinstance(settings, dict) else None
    if not isinstance(labels, dict) or not all(isinstance(each, str) for each in labels.values()):
        raise Damaged(f"{where}: its config has labels that are not texts")
    return config
