//! A private copy of a Postgres installation, with the extension under test in it.
//!
//! Tests must not write into the real installation: a server may run from it, and a server that has obanrs
//! loaded would crash when its library changes. Postgres finds its files relative to its own binary, so a
//! tree of the same shape works anywhere. The tree is copied and not linked, because the user that runs the
//! servers may not be able to read the original.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::workspace::{output, workspace};

pub struct Installation {
    pub bin: PathBuf,
    /// The folder of the control files and scripts of extensions.
    pub extensions: PathBuf,
}

/// The copy of the Postgres that OBANRS_PG_CONFIG names, with the package that OBANRS_PACKAGE names.
pub fn installation() -> &'static Installation {
    static INSTALLATION: OnceLock<Installation> = OnceLock::new();
    INSTALLATION.get_or_init(|| {
        let wanted = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this with make"))
        };
        copy(Path::new(&wanted("OBANRS_PG_CONFIG")), Path::new(&wanted("OBANRS_PACKAGE")))
    })
}

fn copy(pg_config: &Path, package: &Path) -> Installation {
    let ask = |option: &str| PathBuf::from(output(Command::new(pg_config).arg(option)));
    let (bin, lib, share) = (ask("--bindir"), ask("--pkglibdir"), ask("--sharedir"));
    let common: PathBuf = bin
        .components()
        .zip(lib.components())
        .zip(share.components())
        .take_while(|((a, b), c)| a == b && b == c)
        .map(|((a, _), _)| a)
        .collect();
    assert!(common.components().count() > 1, "this Postgres can't be moved: {bin:?}, {lib:?}, {share:?}");
    // Programs look for their libraries relative to themselves, up to two folders above the installation. (In
    // a Python wheel that is the folder `*.libs`.) So the copy is as deep.
    let root = workspace().folder.join("postgres/a/b");
    let new = |old: &Path| root.join(old.strip_prefix(&common).expect("they begin so"));
    let (new_bin, new_lib, new_share) = (new(&bin), new(&lib), new(&share));
    copy_tree(&bin, &new_bin);
    copy_tree(&lib, &new_lib);
    copy_tree(&share, &new_share);
    let beside = ask("--libdir");
    if lib.starts_with(&beside) && beside != common {
        copy_tree(&beside, &new(&beside));
    }
    if let Some(above) = common.parent().and_then(Path::parent) {
        for folder in entries(above).iter().filter(|p| p.extension().is_some_and(|e| e == "libs")) {
            copy_tree(folder, &workspace().folder.join("postgres").join(folder.file_name().unwrap()));
        }
    }

    let packaged =
        |folder: &Path| package.join(folder.strip_prefix("/").expect("pg_config prints whole paths"));
    for (from, to) in
        [(packaged(&lib), &new_lib), (packaged(&share).join("extension"), &new_share.join("extension"))]
    {
        for file in entries(&from).iter().filter(|p| p.is_file()) {
            fs::copy(file, to.join(file.file_name().unwrap())).expect("our files can be copied");
        }
    }
    // The server's user has to read all of it, whatever the umask is.
    output(Command::new("chmod").arg("-R").arg("a+rX").arg(workspace().folder.join("postgres")));
    Installation { bin: new_bin, extensions: new_share.join("extension") }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
    read.map(|entry| entry.expect("a folder can be read").path()).collect()
}

/// Copies the files of `from` into `to`. It leaves out those that are there already, and obanrs' own files:
/// those of an installed version would hide the ones under test. A link becomes what it leads to, if that
/// exists.
fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the workspace is ours");
    for entry in entries(from) {
        let name = entry.file_name().unwrap();
        let target = to.join(name);
        if entry.is_dir() {
            copy_tree(&entry, &target);
        } else if entry.is_file() && !target.exists() && !name.to_string_lossy().starts_with("obanrs") {
            fs::copy(&entry, &target).unwrap_or_else(|e| panic!("{entry:?} can't be copied: {e}"));
        }
    }
}
