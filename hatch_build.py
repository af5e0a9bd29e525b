"""Compile the kernels of ``paramdex_builder.project.kernels``, where a C compiler makes code for their processors.

Nothing depends on that: without them the builder takes PyTorch's products. So what goes wrong here is said (``pip -v``
shows it) and is no error.
"""

import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

FOLDER = Path("builder/paramdex_builder/project/kernels")
SOURCES = [FOLDER / name for name in ("avx2.c", "vnni.c")]
FLAGS = ["-O3", "-fvisibility=hidden", "-fPIC", "-shared"]


class KernelHook(BuildHookInterface):
    def initialize(self, version, build_data):  # noqa: ARG002
        """Put the kernels beside their source; a wheel that has them is one for this platform."""
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return
        try:
            made = [compiled(Path(self.root) / source) for source in SOURCES]
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            said = (str(getattr(error, "stderr", None) or error).strip().splitlines() or ["it said nothing"])[0]
            self.app.display_warning(f"paramdex: no compiled kernels, PyTorch's products are used ({said})")
            return
        systems = (tag.platform for tag in sys_tags())
        system = next(name for name in systems if "manylinux" not in name and "musllinux" not in name)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{system}"
        build_data["artifacts"] += [f"/{FOLDER.as_posix()}/{each.name}" for each in made]


def compiled(source):
    """The library of ``source``, beside it and named for what it says; there before, or all of it.

    Raises OSError, ValueError or SubprocessError, and leaves what was there.
    """
    number = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    made = source.with_name(f"{source.stem}-{number}.so")
    compiler = shlex.split(os.environ.get("CC") or "cc")
    with tempfile.TemporaryDirectory(dir=source.parent, prefix=".compiling-") as folder:
        new = Path(folder) / made.name
        command = [*compiler, *FLAGS, "-o", str(new), str(source)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        new.replace(made)
    for other in source.parent.glob(f"{source.stem}-*.so"):
        if other != made:
            other.unlink(missing_ok=True)
    return made
