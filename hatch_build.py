"""Compile the kernel of ``paramdex_builder.avx2_kernels``, where there is a C compiler for a processor that runs it.

Nothing depends on that: without it the builder takes PyTorch's product. So what goes wrong here is said (``pip -v``
shows it) and is no error.
"""

import hashlib
import os
import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["-O3", "-fvisibility=hidden", "-fPIC", "-shared"]


class KernelHook(BuildHookInterface):
    def initialize(self, version, build_data):  # noqa: ARG002
        """Put the kernel beside its source; a wheel that has it is one for this platform."""
        if self.target_name != "wheel" or platform.machine().lower() not in ("x86_64", "amd64"):
            return
        source = Path(self.root) / "builder" / "paramdex_builder" / "avx2_kernels.c"
        number = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
        made = source.with_name(f"avx2_kernels-{number}.so")
        for old in source.parent.glob("avx2_kernels-*.so"):
            old.unlink()
        command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, "-o", str(made), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            said = str(getattr(error, "stderr", None) or error).strip().splitlines()[0]
            self.app.display_warning(f"paramdex: no compiled kernel, PyTorch's products are used ({said})")
            made.unlink(missing_ok=True)
            return
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["artifacts"].append(f"/builder/paramdex_builder/{made.name}")
