//! Clocks that are wrong, and jump: a library that is loaded before libc's and moves the real-time clock of one process by what a file
//! says. Where processes ask the kernel's own code in their memory for the time (the vDSO), as ClickHouse does past libc, it puts its own in that place.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Environment;

const SOURCE: &str = include_str!("clock.c");

/// The clock of a process, which may be set while that runs.
pub struct Clock {
    file: PathBuf,
    library: PathBuf,
    offset: i64,
}

impl Clock {
    /// A right one, of a process of a name. The library is made by the C compiler that building Kubemeter needs anyway.
    pub fn new(folder: &Path, name: &str) -> Self {
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        if !library.exists() {
            std::fs::write(&source, SOURCE).expect("a temporary file");
            let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
            let made = Command::new(compiler).args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
            assert!(made.expect("a C compiler").success(), "the library for wrong clocks can't be made");
        }
        let file = folder.join(format!("{name}.clock"));
        std::fs::write(&file, 0_i64.to_ne_bytes()).expect("a temporary file");
        Self { file, library, offset: 0 }
    }

    /// Lets it be wrong by so many seconds from now on.
    pub fn set(&mut self, offset: i64) {
        self.offset = offset;
        let file = File::options().write(true).open(&self.file).expect("it was made");
        file.write_all_at(&offset.to_ne_bytes(), 0).expect("a temporary file");
    }

    /// By how many seconds it is wrong.
    pub const fn offset(&self) -> i64 {
        self.offset
    }

    /// What makes a process go by it.
    pub fn environment(&self) -> Environment {
        vec![("LD_PRELOAD", self.library.clone().into()), ("CLOCK_OFFSET_FILE", self.file.clone().into())]
    }
}
