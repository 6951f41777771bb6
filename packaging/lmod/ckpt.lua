-- SPDX-License-Identifier: LGPL-2.1-only
-- Lmod: MODULEPATH/ckpt/@VERSION@.lua, for what was laid or unpacked below root.
whatis("Name: ckpt")
whatis("Version: @VERSION@")
whatis("Description: saves a running program to an executable file that restarts it")
help([[ckpt PROGRAM runs PROGRAM so that it can be saved: man ckpt.]])

local root = "@PREFIX@"
prepend_path("PATH", pathJoin(root, "bin"))
prepend_path("MANPATH", pathJoin(root, "share/man"))
prepend_path("CPATH", pathJoin(root, "include"))
prepend_path("LIBRARY_PATH", pathJoin(root, "lib"))
prepend_path("LD_LIBRARY_PATH", pathJoin(root, "lib"))
prepend_path("PKG_CONFIG_PATH", pathJoin(root, "lib/pkgconfig"))
prepend_path("PYTHONPATH", pathJoin(root, "lib/python"))
