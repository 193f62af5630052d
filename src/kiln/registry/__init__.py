"""Registries as the OCI distribution specification has them: manifests, blobs, referrers, and the files in layers."""
