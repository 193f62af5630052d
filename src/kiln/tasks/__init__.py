"""What a person types: Invoke tasks, each a few lines over the package."""

from __future__ import annotations

from invoke.collection import Collection


def namespace() -> Collection:
    """Return every task, under the names that tasks.py and `kiln` show."""
    from kiln.tasks import drift, engine, image, lock, patch, publish, quality, run, target

    root = Collection()
    for item in (
        target.plan,
        target.build,
        target.smoke,
        publish.publish,
        publish.verify,
        run.run,
        drift.drift,
        quality.lint,
        quality.check,
        quality.test,
    ):
        root.add_task(item)
    for name, module in (("engine", engine), ("image", image), ("lock", lock), ("patch", patch)):
        root.add_collection(Collection.from_module(module, name=name))
    root.collections["lock"].default = "images"  # ./inv lock
    return root
