//! Output that cannot be written, files of any size, and memory that is not there: errors, and the exit status.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use fused_adamw::Device;

use crate::error::TraceError;
use crate::malformed::File;
use crate::run::replay;
use crate::tally::{read, replay_all};
use crate::trace::Trace;

/// Takes so many bytes, as a disk does.
struct Disk(usize);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn committed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/traces/{name}.safetensors"))
}

/// A file of these bytes, in a folder of the tests.
fn written(name: &str, bytes: &[u8]) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&file, bytes).unwrap();
    file
}

/// One trace that passes, one that fails, one that is none: every kind of line.
fn files() -> [PathBuf; 3] {
    let mut wrong = fs::read(committed("defaults")).unwrap();
    let last = wrong.len() - 4;
    wrong[last..].copy_from_slice(&10_f32.to_le_bytes());
    [committed("f16"), written("wrong.safetensors", &wrong), written("none.safetensors", b"no trace")]
}

fn status(files: &[PathBuf], out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    replay_all(files, &Device::cpu(), out, err)
}

#[test]
fn the_status_is_that_of_the_worst_file() {
    let [passes, fails, none] = files();
    let of = |files: &[&PathBuf]| {
        let files: Vec<_> = files.iter().copied().cloned().collect();
        status(&files, &mut io::sink(), &mut io::sink()).unwrap()
    };
    assert_eq!((of(&[&passes]), of(&[&passes, &fails]), of(&[&fails, &none, &passes])), (0, 1, 2));
}

#[test]
fn output_that_ends_anywhere_is_an_error() {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert_eq!(status(&files(), &mut out, &mut err).unwrap(), 2);
    for room in (0..out.len()).step_by(20).chain([out.len() - 1]) {
        let error = status(&files(), &mut Disk(room), &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{room} bytes");
    }
    assert_eq!(status(&files(), &mut Disk(out.len()), &mut Vec::new()).unwrap(), 2);
}

#[test]
fn a_closed_pipe_is_an_error() {
    let (reader, mut writer) = io::pipe().unwrap();
    drop(reader);
    let error = status(&files(), &mut writer, &mut io::sink()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn notes_that_cannot_be_written_change_no_status() {
    for room in [0, 1, 40] {
        assert_eq!(status(&files(), &mut io::sink(), &mut Disk(room)).unwrap(), 2);
    }
}

#[test]
fn a_file_with_too_long_a_header_is_not_read() {
    let file = written("long-header", &99_000_000_u64.to_le_bytes());
    fs::File::options().write(true).open(&file).unwrap().set_len(1 << 30).unwrap(); // a hole: it takes no disk
    let error = format!("{:#}", read(&file).unwrap_err());
    assert!(error.ends_with("the header claims 99000000 bytes, a trace's has from 1 to 8388608"), "{error}");
    fs::remove_file(file).unwrap();
    if cfg!(unix) {
        assert!(format!("{:#}", read(Path::new("/dev/zero")).unwrap_err()).contains("claims 0 bytes"));
    }
}

/// Runs `body`, the whole of the test `name`, in a process that may have 400 MiB of address space.
fn in_400_mib(name: &str, body: fn()) {
    const CHILD: &str = "FUSED_ADAMW_TEST_IN_400_MIB";
    if let Some(what) = env::var_os(CHILD) {
        return if what == "body" {
            body()
        };
    }
    let child = |what: &str| {
        let mut child = Command::new("sh");
        child.args(["-c", "ulimit -v 409600 && exec \"$0\" \"$@\""]).arg(env::current_exe().unwrap());
        child.args([&format!("limits::{name}"), "--exact", "--nocapture"]).env(CHILD, what).output()
    };
    // Not where there is no such limit, nor with a sanitizer, which takes more by itself.
    if child("nothing").is_ok_and(|done| done.status.success()) {
        let done = child("body").unwrap();
        let [out, err] = [&done.stdout, &done.stderr].map(|text| String::from_utf8_lossy(text));
        assert!(done.status.success() && out.contains("1 passed"), "{}: {out}{err}", done.status);
    }
}

#[test]
fn json_that_takes_too_much_memory_is_an_error() {
    in_400_mib("json_that_takes_too_much_memory_is_an_error", || {
        let lists = [r#"{"":0},"#, "[0],", "0,", r#"{"":{"":{"":0}}},"#, r#""","#];
        for list in lists.map(|item| item.repeat((8 << 20) / item.len() - 10)) {
            let header = format!("{{\"a\":[{}]}}", list.trim_end_matches(','));
            let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
            assert!(matches!(Trace::parse(&file), Err(TraceError::Memory { bytes: 1_000_000_000.. })));
        }
    });
}

#[test]
fn a_replay_that_takes_too_much_memory_is_an_error() {
    in_400_mib("a_replay_that_takes_too_much_memory_is_an_error", || {
        let mut file = File::new();
        for name in ["param.2.0", "grad.2.1", "expect.param.2.2", "expect.exp_avg.2.2", "expect.exp_avg_sq.2.2"] {
            file.add(name, "F32", 3_000_000);
        }
        let bytes = file.bytes();
        let trace = Trace::parse(&bytes).unwrap();
        let error = replay(&trace, &Device::cpu()).unwrap_err().to_string();
        assert_eq!(error, "624001040 bytes of memory may be needed, and are not to be had");
    });
}
