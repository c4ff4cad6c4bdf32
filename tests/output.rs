//! What the examples write: files are whole, or what was there before is there still.

#![expect(clippy::unwrap_used, reason = "a test stops at the first error")]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../examples/01_train_digits/output.rs"]
#[expect(dead_code, reason = "it says lines, too")]
mod output;

/// An empty folder of a test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder); // absent at first
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_by_the_whole_content() {
    let folder = folder("replaced");
    let file = folder.join("curves.png");
    for content in [&b"long at first"[..], b"short"] {
        output::save(&file, content).unwrap();
        assert_eq!(fs::read(&file).unwrap(), content);
    }
    assert_eq!(names(&folder), ["curves.png"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_what_was_there() {
    let folder = folder("full-disk");
    let file = folder.join("curves.png");
    output::save(&file, b"before").unwrap();
    // What `save` writes into first is on a disk without room.
    std::os::unix::fs::symlink("/dev/full", folder.join("curves.png.part")).unwrap();
    let error = output::save(&file, &[7; 100_000]).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot write {}", file.display()));
    assert_eq!(error.downcast_ref::<std::io::Error>().unwrap().kind(), std::io::ErrorKind::StorageFull);
    assert_eq!((names(&folder), fs::read(&file).unwrap()), (vec!["curves.png".to_owned()], b"before".to_vec()));
}

#[test]
fn a_folder_that_is_missing_is_named() {
    let file = folder("missing").join("nowhere/curves.png");
    let error = output::save(&file, b"content").unwrap_err();
    assert_eq!(error.to_string(), format!("cannot write {}", file.display()));
}
