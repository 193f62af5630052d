"""Lets plain `invoke` find Kiln's tasks."""

from kiln.tasks import namespace

namespace = namespace()
