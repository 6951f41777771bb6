# SPDX-License-Identifier: LGPL-2.1-only
# Below a repository of your own: packages/ckpt/package.py; then `spack install ckpt`.

from spack.package import *


class Ckpt(Package):
    """Saves a running program to an executable file that restarts it."""

    homepage = "file:///usr/share/doc/ckpt/README.md"
    url = "@TAR@"
    license("LGPL-2.1-only")

    # The static binary with what belongs to it: built alike for every compiler and target, so there is nothing to tune.
    version("@VERSION@", sha256="@TAR_SHA256@")

    requires("platform=linux target=x86_64:")

    def install(self, spec, prefix):
        install_tree(".", prefix)

    def setup_run_environment(self, env):
        env.prepend_path("PYTHONPATH", self.prefix.lib.python)

    @run_after("install")
    @on_package_attributes(run_tests=True)
    def check_install(self):
        Executable(self.prefix.bin.ckpt)("--version")
