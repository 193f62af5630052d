"""What a person types: Invoke tasks, each a few lines over the package."""

from __future__ import annotations

from invoke.collection import Collection


def namespace() -> Collection:
    """Return every task, under the names that tasks.py and `kiln` show."""
    from kiln.tasks import drift, engine, lock, patch, quality, target

    root = Collection()
    for item in (target.plan, target.build, target.smoke, drift.drift, quality.lint, quality.check, quality.test):
        root.add_task(item)
    for name, module in (("engine", engine), ("lock", lock), ("patch", patch)):
        root.add_collection(Collection.from_module(module, name=name))
    return root
