//! The server's own small files: configuration, secrets, marks. The one place of the binary that
//! touches the file system directly.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Reads a text file.
pub fn read_text(file: &Path) -> io::Result<String> {
    fs::read_to_string(file)
}

/// Reads a file that must be readable by its owner alone.
pub fn read_secret(file: &Path) -> io::Result<Vec<u8>> {
    let mode = fs::metadata(file)?.permissions().mode();
    if mode & 0o077 != 0 {
        let text = format!("readable by others (mode {:o}): chmod 600 it", mode & 0o777);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    fs::read(file)
}

/// Lists a folder's entries in name order.
pub fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    entries.sort();
    Ok(entries)
}

/// Name of the folder that `mkfs.ext4` leaves in every new file system.
const LOST_AND_FOUND: &str = "lost+found";

/// Whether a folder with these entries holds nothing: a new file system counts as empty.
pub fn is_blank(entries: &[PathBuf]) -> bool {
    entries.iter().all(|entry| entry.file_name().is_some_and(|name| name == LOST_AND_FOUND))
}

/// Whether a path exists.
pub fn exists(path: &Path) -> bool {
    path.exists()
}

/// Makes a folder and its parents, readable by the owner alone.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Makes a folder of the user's own where others may write too, as below `/tmp`: a folder that is already there
/// must be the user's, and closed to all others. Whoever made it before us could otherwise exchange what is in it.
pub fn make_own_folder(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    let found = fs::symlink_metadata(folder)?;
    let own = fs::metadata("/proc/self")?.uid();
    if !found.is_dir() || found.uid() != own || found.permissions().mode() & 0o077 != 0 {
        let text = "exists and is not a folder of yours that is closed to others; remove it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(())
}

/// Writes a file that anyone may read, durably, replacing what was there.
pub fn write_public(file: &Path, content: &[u8]) -> io::Result<()> {
    write(file, content, 0o644)
}

/// Writes a file that only its owner may read, durably, replacing what was there.
pub fn write_secret(file: &Path, content: &[u8]) -> io::Result<()> {
    write(file, content, 0o600)
}

/// Removes a folder and everything below it.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    fs::remove_dir_all(folder)
}

/// Removes a file.
pub fn remove(file: &Path) -> io::Result<()> {
    fs::remove_file(file)
}

/// Share of a file system that a disk takes where no size is set, in percent: the rest is the file system's own.
const SPACE_PERCENT: u64 = 95;

/// Returns the bytes that a disk may take on the file system of a folder.
pub fn space_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail * stat.f_frsize / 100 * SPACE_PERCENT)
}

/// Writes beside the target, syncs, renames over it and syncs the folder: a crash leaves the old or the new file.
fn write(file: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let draft = file.with_extension("draft");
    // A draft of an earlier crash may have other rights, and below /tmp it may be a stranger's link.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut handle = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
    handle.write_all(content)?;
    handle.sync_all()?;
    fs::rename(&draft, file)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_that_others_can_reach_is_not_taken_for_our_own() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("own");
        make_own_folder(&own).unwrap();
        make_own_folder(&own).unwrap();
        let open = root.path().join("open");
        fs::DirBuilder::new().mode(0o777).create(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(make_own_folder(&open).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let link = root.path().join("link");
        symlink(&own, &link).unwrap();
        assert_eq!(make_own_folder(&link).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_secret_is_never_written_through_what_stands_in_its_way() {
        let root = tempfile::tempdir().unwrap();
        let (file, victim) = (root.path().join("node.key"), root.path().join("victim"));
        write_public(&victim, b"untouched").unwrap();
        symlink(&victim, file.with_extension("draft")).unwrap();
        write_secret(&file, b"secret").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"untouched");
        assert_eq!(read_secret(&file).unwrap(), b"secret");
        // A draft that anyone may read, left behind by a crash.
        write_public(&file.with_extension("draft"), b"old").unwrap();
        write_secret(&file, b"again").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
