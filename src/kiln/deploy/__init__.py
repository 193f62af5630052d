"""Serves a target: one record, rendered as a docker command, a compose file or Kubernetes manifests."""
