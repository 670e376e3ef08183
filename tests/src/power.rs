//! Power loss: a server whose directory forgets, at its end, what was not synced. See `tests/forgetful`.

use crate::Server;
use std::path::{Path, PathBuf};

/// The library that is preloaded.
fn library() -> PathBuf {
    crate::server::build(&["-p", "firstfall-forgetful"]).join("libfirstfall_forgetful.so")
}

/// A directory, and what of it would survive.
pub struct Disk {
    scratch: tempfile::TempDir,
    library: String,
}

impl Disk {
    pub fn new() -> Disk {
        let scratch = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(scratch.path().join("data")).expect("a directory");
        Disk { scratch, library: library().display().to_string() }
    }

    pub fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    fn shadow(&self) -> PathBuf {
        self.scratch.path().join("shadow")
    }

    /// A server on this disk. `fail_power` once it is killed.
    pub fn start(&self, environment: &[(&str, &str)]) -> Server {
        let _ = std::fs::remove_dir_all(self.shadow());
        let (data, shadow) = (self.data().display().to_string(), self.shadow().display().to_string());
        let mut all = vec![("LD_PRELOAD", self.library.as_str()), ("FORGETFUL_ROOT", &data), ("FORGETFUL_SHADOW", &shadow)];
        all.extend_from_slice(environment);
        Server::start_with(&self.data(), &[], &all)
    }

    /// Leaves in the directory what was synced, and nothing else.
    pub fn fail_power(&self) {
        std::fs::remove_dir_all(self.data()).expect("nobody uses it any more");
        self.restore(Path::new(""));
    }

    fn restore(&self, relative: &Path) {
        let target = self.data().join(relative);
        std::fs::create_dir(&target).expect("a directory");
        let list = self.shadow().join("names").join(format!("%{}", relative.display().to_string().replace('/', "%")));
        // A directory that was never synced has no names yet.
        for line in std::fs::read_to_string(list).unwrap_or_default().lines() {
            match line.split_once(' ').expect("a kind, then the rest") {
                ("d", name) => self.restore(&relative.join(name)),
                (_, rest) => {
                    let (number, name) = rest.split_once(' ').expect("a number, then the name");
                    let content = std::fs::read(self.shadow().join("content").join(number)).unwrap_or_default();
                    std::fs::write(target.join(name), content).expect("writable");
                }
            }
        }
    }
}

impl Default for Disk {
    fn default() -> Self {
        Disk::new()
    }
}
