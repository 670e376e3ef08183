//! What a directory would hold after the power failed now, kept beside it.
//!
//! Preloaded (`LD_PRELOAD`) into a process, it stands in for `fsync`, `fdatasync`, `unlink` and `unlinkat`. Under `FORGETFUL_ROOT` only what was
//! synced counts: a file has the content of its last sync, and a directory the names of its last sync, so a file that was made since has
//! no name yet, and one that was removed since is still there. `FORGETFUL_SHADOW` holds that state:
//!
//! ```text
//! content/N          the content of file N at its last sync
//! names/PATH         of a directory ('/' in PATH as '%'): a line for each entry, `d NAME` or `f N NAME`
//! ```
//!
//! A test ends the process at any moment and makes the directory anew from there (`harness::power`). A real disk may keep more than
//! this; a program that is right here needs nothing of it.

use libc::{c_char, c_int};
use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct Shadow {
    root: PathBuf,
    shadow: PathBuf,
    /// File N by device and inode.
    files: HashMap<(u64, u64), u64>,
    next: u64,
}

static SHADOW: Mutex<Option<Shadow>> = Mutex::new(None);

fn shadow() -> MutexGuard<'static, Option<Shadow>> {
    SHADOW.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs before `main`: at that moment all that lies in the directory is durable.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    let (Some(root), Some(target)) = (std::env::var_os("FORGETFUL_ROOT"), std::env::var_os("FORGETFUL_SHADOW")) else {
        return;
    };
    let mut state = Shadow { root: root.into(), shadow: target.into(), files: HashMap::new(), next: 0 };
    let _ = fs::create_dir_all(state.shadow.join("content"));
    let _ = fs::create_dir_all(state.shadow.join("names"));
    let mut open = vec![state.root.clone()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { open.push(path) } else { state.file_synced(&path) }
        }
        state.directory_synced(&directory);
    }
    *shadow() = Some(state);
}

impl Shadow {
    fn number(&mut self, path: &Path) -> Option<u64> {
        let about = fs::metadata(path).ok()?;
        let next = &mut self.next;
        Some(*self.files.entry((about.dev(), about.ino())).or_insert_with(|| {
            *next += 1;
            *next
        }))
    }

    fn file_synced(&mut self, path: &Path) {
        if let Some(number) = self.number(path) {
            let content = self.shadow.join("content");
            let (draft, whole) = (content.join("draft"), content.join(number.to_string()));
            if fs::copy(path, &draft).is_ok() {
                let _ = fs::rename(draft, whole);
            }
        }
    }

    fn directory_synced(&mut self, path: &Path) {
        let mut list = Vec::new();
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                list.extend_from_slice(b"d ");
            } else if let Some(number) = self.number(&entry.path()) {
                let _ = write!(list, "f {number} ");
            } else {
                continue;
            }
            list.extend_from_slice(entry.file_name().as_bytes());
            list.push(b'\n');
        }
        let relative = path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().replace('/', "%");
        let names = self.shadow.join("names");
        let (draft, whole) = (names.join("%draft"), names.join(format!("%{relative}")));
        if fs::write(&draft, list).is_ok() {
            let _ = fs::rename(draft, whole);
        }
    }

    fn synced(&mut self, descriptor: c_int) {
        let Ok(path) = fs::read_link(format!("/proc/self/fd/{descriptor}")) else { return };
        if path.starts_with(&self.root) && path.exists() {
            if path.is_dir() { self.directory_synced(&path) } else { self.file_synced(&path) }
        }
    }

    /// Its inode may be given to another file at once.
    fn unlinked(&mut self, path: &Path) {
        if let Ok(about) = fs::symlink_metadata(path)
            && path.starts_with(&self.root)
        {
            self.files.remove(&(about.dev(), about.ino()));
        }
    }
}

fn after_sync(descriptor: c_int, result: libc::c_long) -> c_int {
    if result == 0
        && let Some(state) = shadow().as_mut()
    {
        state.synced(descriptor);
    }
    result as c_int
}

/// # Safety
/// As the C library's: any descriptor may be given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(descriptor: c_int) -> c_int {
    // SAFETY: the kernel checks the descriptor.
    after_sync(descriptor, unsafe { libc::syscall(libc::SYS_fsync, descriptor) })
}

/// # Safety
/// As the C library's: any descriptor may be given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    // SAFETY: the kernel checks the descriptor.
    after_sync(descriptor, unsafe { libc::syscall(libc::SYS_fdatasync, descriptor) })
}

/// # Safety
/// As the C library's: `path` ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: as this function's own.
    unsafe { unlinkat(libc::AT_FDCWD, path, 0) }
}

/// # Safety
/// As the C library's: `path` ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    // Held over the call, so that the inode is not given to a new file before it is forgotten.
    let mut state = shadow();
    if let Some(state) = state.as_mut() {
        // SAFETY: the caller promises a string that ends with a zero byte.
        let given = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
        let base = if directory == libc::AT_FDCWD {
            PathBuf::new()
        } else {
            fs::read_link(format!("/proc/self/fd/{directory}")).unwrap_or_default()
        };
        state.unlinked(&base.join(given));
    }
    // SAFETY: as this function's own.
    unsafe { libc::syscall(libc::SYS_unlinkat, directory, path, flags) as c_int }
}
