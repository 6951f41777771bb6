// SPDX-License-Identifier: LGPL-2.1-only
//! The packages of `scripts/package`: what is in them, and that an installed one works. What needs a system of its own to be
//! installed in, or whole builds, is left to `scripts/test --packages`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A directory that goes with the test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ckpt-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The packages that are named, of the binary that the tests run.
    fn pack(&self, what: &str) {
        let binary = std::env::var("CKPT_BIN").unwrap_or_else(|_| {
            let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
            format!("{target}/x86_64-unknown-linux-musl/release/ckpt")
        });
        self.sh(&format!("cd {TOP} && CKPT_BIN={binary} scripts/package \"$PLACE/out\" {what}"));
    }

    /// Runs a script of bash, which finds this place in $PLACE; what it has printed.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &format!("{ALONE}{script}")])
            .env("PLACE", &self.0)
            .env("TOP", TOP);
        // What the test runner is told is for nobody else.
        for name in ["LD_LIBRARY_PATH", "PYTHONPATH", "CARGO_MAKEFLAGS", "RUSTFLAGS"] {
            bash.env_remove(name);
        }
        let output = bash.output().expect("bash");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}\n{}\n{said}{told}", output.status);
        said
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the caller has left open, a lock perhaps, is nothing that programs of a test are saved with.
const ALONE: &str = "for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ $fd -le 2 ] || [ $fd = 255 ] || eval \"exec $fd>&-\"; done\n";

const TOP: &str = env!("CARGO_MANIFEST_DIR");

/// What the quick example says at its end.
const WENT_ON: &str = "it went on\n";

#[track_caller]
fn has(folder: &Path, names: &[&str]) {
    let missing: Vec<_> = names.iter().filter(|name| !folder.join(name).exists()).collect();
    assert!(missing.is_empty(), "{} lacks {missing:?}", folder.display());
}

#[test]
fn the_deb_holds_an_installation_that_works() {
    let place = Place::new("deb");
    place.pack("deb");
    let told = place.sh("dpkg-deb -f \"$PLACE\"/out/*.deb Package Version Architecture Depends");
    assert_eq!(told, format!("Package: ckpt\nVersion: {VERSION}-1\nArchitecture: amd64\n"));
    place.sh("dpkg-deb -x \"$PLACE\"/out/*.deb \"$PLACE/root\"");
    has(
        &place.path("root/usr"),
        &[
            "lib/libckpt.so",
            "include/ckpt.h",
            "lib/python3/dist-packages/ckpt.py",
            "share/man/man1/ckpt.1.gz",
            "share/man/man3/ckpt_hold.3.gz",
            "share/bash-completion/completions/ckpt",
            "share/zsh/vendor-completions/_ckpt",
            "share/doc/ckpt/copyright",
            "share/doc/ckpt/docs/manual.md",
            "share/doc/ckpt/examples/README.md",
        ],
    );
    let said = place.sh("PATH=$PLACE/root/usr/bin:$PATH sh \"$TOP/tests/programs/quick.sh\"");
    assert!(said.ends_with(WENT_ON), "{said}");
}

/// The module of an installed wheel saves the program that uses it.
const MODULE: &str = "import ckpt, os\n\
     assert os.path.dirname(ckpt.__file__).endswith('/ckpt')\n\
     restarted = ckpt.checkpoint(os.environ['PLACE'] + '/module.ckpt')\n\
     print('restarted' if restarted else 'not ended', flush=True)\n";

#[test]
fn the_wheel_brings_the_command_and_the_module() {
    let place = Place::new("wheel");
    place.pack("wheel");
    place.sh("/usr/bin/python3 -m pip install -q --no-index --root-user-action ignore --target \"$PLACE/site\" \"$PLACE\"/out/*.whl");
    let said = place.sh("PATH=$PLACE/site/bin:$PATH sh \"$TOP/tests/programs/quick.sh\"");
    assert!(said.ends_with(WENT_ON), "{said}");
    fs::write(place.path("module.py"), MODULE).expect("a program");
    let script = "export PYTHONPATH=$PLACE/site; \"$PLACE/site/bin/ckpt\" /usr/bin/python3 \"$PLACE/module.py\"; \
                  \"$PLACE/module.ckpt\"";
    assert_eq!(place.sh(script), "restarted\n");
}

#[test]
fn the_bill_of_materials_names_what_is_locked() {
    let place = Place::new("sbom");
    place.pack("sbom");
    let script = "import json, os; told = json.load(open(os.environ['PLACE'] + '/out/ckpt.cdx.json'))\n\
                  assert told['bomFormat'] == 'CycloneDX'\n\
                  refs = {part['bom-ref'] for part in told['components']} | {told['metadata']['component']['bom-ref']}\n\
                  assert all(set(row['dependsOn']) | {row['ref']} <= refs for row in told['dependencies'])\n\
                  for part in told['components']: print(part['name'], part['version'], 'licenses' in part)";
    fs::write(place.path("read.py"), script).expect("a script");
    let said = place.sh("python3 \"$PLACE/read.py\"");
    let lock = fs::read_to_string(Path::new(TOP).join("Cargo.lock")).expect("Cargo.lock");
    for line in said.lines().filter(|line| !line.starts_with("std ")) {
        let [name, version, "True"] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("no licence: {line}");
        };
        assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")), "{line}");
    }
    for name in ["goblin", "nix", "snow", "ckpt-cipher"] {
        assert!(said.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {said}");
    }
}

#[test]
fn the_recipes_are_filled_in() {
    let place = Place::new("recipes");
    place.pack("recipes");
    let said = place.sh(
        "cd \"$PLACE/out\" && ! grep -r '@[A-Z_]*@' conda spack easybuild modules && \
         python3 -c 'import ast, sys; [ast.parse(open(f).read()) for f in sys.argv[1:]]' spack/packages/ckpt/package.py easybuild/*.eb && \
         bash -n conda/build.sh && sha256sum *.tar.gz && cat conda/recipe.yaml spack/packages/ckpt/package.py easybuild/*.eb",
    );
    // Each tarball by its sum: the source for conda, the binary for both others.
    for (name, times) in [("-linux-x86_64.tar.gz", 3), (".tar.gz", 2)] {
        let end = format!("  ckpt-{VERSION}{name}");
        let sum = said.lines().find_map(|line| line.strip_suffix(&end)).expect("a sum");
        assert_eq!(said.matches(sum).count(), times, "{name}: {said}");
    }
    // What Spack, EasyBuild and Lmod do: unpack below a prefix.
    place.sh(
        "mkdir \"$PLACE/opt\" && tar -C \"$PLACE/opt\" -xzf \"$PLACE\"/out/*-linux-x86_64.tar.gz",
    );
    has(
        &place.path("opt").join(format!("ckpt-{VERSION}")),
        &["bin/ckpt", "lib/python/ckpt.py", "share/man/man1/ckpt.1"],
    );
}

/// As conda-forge's tool reads a recipe.
const RENDERED: &str = "import sys\n\
     from rattler_build import Stage0Recipe\n\
     for one in Stage0Recipe.from_file(sys.argv[1]).render():\n\
     \x20   print(one.recipe.package.name, one.recipe.package.version)\n";

#[test]
#[ignore = "scripts/test --packages: takes rattler-build from PyPI"]
fn conda_renders_its_recipe() {
    let place = Place::new("rendered");
    place.pack("recipes");
    fs::write(place.path("render.py"), RENDERED).expect("a script");
    let said = place.sh("cd \"$PLACE\" && /usr/bin/python3 -m venv venv && \
         venv/bin/pip install -q --disable-pip-version-check py-rattler-build && \
         venv/bin/python render.py out/conda/recipe.yaml");
    assert_eq!(said, format!("ckpt {VERSION}\n"));
}

#[test]
#[ignore = "scripts/test --packages: makes a Debian of its own"]
fn dpkg_installs_it_in_a_clean_debian() {
    let place = Place::new("debian");
    place.pack("deb");
    let said = place.sh(
        "root=$PLACE/root; debootstrap --variant=minbase --include=man-db,python3 stable \"$root\" > \"$PLACE/log\" 2>&1
         cp \"$PLACE\"/out/*.deb \"$root\"; cp \"$TOP/tests/programs/quick.sh\" \"$root\"
         unshare --mount --pid --fork --kill-child sh -ec '
           mount -t proc proc \"$0/proc\"
           chroot \"$0\" sh -ec \"dpkg -i /*.deb > /dev/null; man -w ckpt; man -w ckpt_hold; \\
             python3 -c \\\"import ckpt; print(ckpt.info().restarted)\\\"; sh /quick.sh; dpkg -r ckpt > /dev/null; ! command -v ckpt\"
         ' \"$root\"",
    );
    assert!(said.ends_with(WENT_ON), "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "/usr/share/man/man1/ckpt.1.gz");
    assert_eq!(lines[2], "0");
}

#[test]
#[ignore = "scripts/test --packages: needs rpm"]
fn rpm_installs_it_in_a_root_of_its_own() {
    let place = Place::new("rpm");
    place.pack("rpm");
    let said = place.sh(
        "root=$PLACE/root; mkdir -p \"$root\"/{bin,tmp,proc,dev}; cp \"$(command -v busybox)\" \"$root/bin\"
         chroot \"$root\" /bin/busybox --install -s /bin; mknod \"$root/dev/null\" c 1 3; chmod 666 \"$root/dev/null\"
         rpm --root \"$root\" --initdb; rpm --root \"$root\" -i \"$PLACE\"/out/*.rpm; rpm --root \"$root\" -V ckpt
         cp \"$TOP/tests/programs/quick.sh\" \"$root\"
         unshare --mount --pid --fork --kill-child sh -ec '
           mount -t proc proc \"$0/proc\"; chroot \"$0\" /bin/env PATH=/usr/bin:/bin sh /quick.sh
         ' \"$root\"
         rpm --root \"$root\" -e ckpt; [ ! -e \"$root/usr/bin/ckpt\" ]",
    );
    assert!(said.ends_with(WENT_ON), "{said}");
}

#[test]
#[ignore = "scripts/test --packages: needs venv"]
fn pip_installs_it_in_a_venv() {
    let place = Place::new("venv");
    place.pack("wheel");
    let said = place.sh(
        "/usr/bin/python3 -m venv \"$PLACE/venv\"; . \"$PLACE/venv/bin/activate\"
         pip install -q --no-index \"$PLACE\"/out/*.whl; pip check; python -c 'import ckpt; ckpt.info()'
         sh \"$TOP/tests/programs/quick.sh\"; pip uninstall -q -y ckpt; [ ! -e \"$PLACE/venv/bin/ckpt\" ]",
    );
    assert!(said.ends_with(WENT_ON), "{said}");
}

#[test]
#[ignore = "scripts/test --packages: needs EasyBuild and Lmod"]
fn easybuild_makes_a_module_that_lmod_loads() {
    let place = Place::new("easybuild");
    place.pack("recipes");
    let said = place.sh(
        "/usr/bin/python3 -m venv \"$PLACE/venv\"; \"$PLACE/venv/bin/pip\" install -q easybuild-framework easybuild-easyblocks
         set +u; . /usr/share/lmod/lmod/init/bash; set -u
         export EB_PYTHON=$PLACE/venv/bin/python EASYBUILD_PREFIX=$PLACE/eb EASYBUILD_MODULES_TOOL=Lmod EASYBUILD_ROBOT_PATHS=$PLACE/out
         \"$PLACE/venv/bin/eb\" --allow-use-as-root-and-accept-consequences \"$PLACE\"/out/easybuild/*.eb > \"$PLACE/log\"
         module use \"$PLACE/eb/modules/all\"; module load ckpt; command -v ckpt; python3 -c 'import ckpt; ckpt.info()'
         sh \"$TOP/tests/programs/quick.sh\"; module unload ckpt
         # The module file of packaging/, for what was unpacked by hand.
         tar -C \"$PLACE\" -xzf \"$PLACE\"/out/*-linux-x86_64.tar.gz; cd \"$TOP\"
         sed \"s,/opt/ckpt/,$PLACE/ckpt-,\" \"$PLACE\"/out/modules/ckpt/*.lua > \"$PLACE/it.lua\"
         mkdir -p \"$PLACE/own/ckpt\"; mv \"$PLACE/it.lua\" \"$PLACE/own/ckpt/1.lua\"
         module use \"$PLACE/own\"; module load ckpt/1; command -v ckpt; sh \"$TOP/tests/programs/quick.sh\"",
    );
    assert_eq!(said.matches(WENT_ON).count(), 2, "{said}");
}

#[test]
#[ignore = "scripts/test --packages: builds everything twice"]
fn two_builds_are_the_same_bytes() {
    let place = Place::new("twice");
    place.sh(
        "git -C \"$TOP\" archive HEAD > \"$PLACE/source.tar\"
         for at in one/two a-place-with-a-longer-name; do
           mkdir -p \"$PLACE/$at\"; tar -x -C \"$PLACE/$at\" -f \"$PLACE/source.tar\"
           env -u CKPT_BIN CARGO_TARGET_DIR=\"$PLACE/$at/target\" SOURCE_DATE_EPOCH=1700000000 \
             \"$PLACE/$at/scripts/package\" \"$PLACE/$at/out\" binary tar deb rpm wheel sbom
           (cd \"$PLACE/$at/out\" && sha256sum * > \"$PLACE/sums-${at%%/*}\"); rm -rf \"$PLACE/$at/target\"
         done; diff \"$PLACE\"/sums-*",
    );
    let text = fs::read(place.path("one/two/out/ckpt")).expect("the binary");
    let home = std::env::var("HOME").expect("HOME");
    for own in [&home, &place.0.display().to_string()] {
        let found = text.windows(own.len()).any(|part| part == own.as_bytes());
        assert!(!found, "{own} is in the binary");
    }
}

#[test]
#[ignore = "scripts/test --packages: builds everything once more"]
fn cargo_installs_it() {
    let place = Place::new("cargo");
    let said = place.sh(
        "cd \"$TOP\"; cargo install --quiet --locked --path . --root \"$PLACE/root\" --target-dir \"$PLACE/target\"
         PATH=$PLACE/root/bin:$PATH sh tests/programs/quick.sh",
    );
    assert!(said.ends_with(WENT_ON), "{said}");
}
