//! Ends the process when it can't write, before it says that it has written.
//!
//! ClickHouse throws when a write fails. Its library leaves that out and goes on: on a full disk it would confirm an INSERT, or put a merged
//! part in the place of its sources, of which nothing is on the disk. So the library's `write` is this one, which lets a failure
//! be a crash: what was not confirmed counts once at most, what was stored before is there.

use std::ffi::{c_int, c_long, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;

/// Whether the library is loaded: a gateway must not end because its log's disk is full.
static ARMED: AtomicBool = AtomicBool::new(false);

/// From now on a failure to write a file is the end.
///
/// # Errors
/// When the dynamic linker would give the library another `write`, as of a program that was linked in another way.
pub(super) fn arm() -> Result<(), Error> {
    // SAFETY: the name is a C string; nothing is called.
    #[allow(unsafe_code)]
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"write".as_ptr()) };
    let own: unsafe extern "C" fn(c_int, *const c_void, usize) -> isize = write;
    if found as usize != own as usize {
        return Err(Error::Engine("would go on where it can't write: this program was not linked to stop that".to_owned()));
    }
    ARMED.store(true, Ordering::Relaxed);
    Ok(())
}

/// What the process ends with: `EX_IOERR` of `sysexits.h`.
const FAILED: c_int = 74;

/// The C library's `write`, in whose place the dynamic linker puts this one: the program's symbols go before those of libraries.
///
/// # Safety
/// That of `write(2)`: `bytes` points to `count` bytes.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, bytes: *const c_void, count: usize) -> isize {
    // SAFETY: these are the arguments of `write(2)`, which the caller answers for.
    let written = unsafe { libc::syscall(libc::SYS_write, c_long::from(file), bytes, count) };
    if written < 0 && ARMED.load(Ordering::Relaxed) {
        // Read before anything else can set it.
        let why = std::io::Error::last_os_error();
        let code = why.raw_os_error().unwrap_or_default();
        if code != libc::EINTR && is_of_data(file) {
            let said =
                format!("ClickHouse can't write to its data folder ({why}): it ends here rather than lose what it was told to keep\n");
            // Nothing runs any more, and nobody is told of a fault: it is none of the program's.
            // SAFETY: the text is there, and the process may end at any time.
            unsafe {
                libc::syscall(libc::SYS_write, c_long::from(libc::STDERR_FILENO), said.as_ptr(), said.len());
                libc::_exit(FAILED)
            }
        }
        // SAFETY: it is this thread's.
        unsafe { *libc::__errno_location() = code };
    }
    written as isize
}

/// Whether it is a file, and neither the log nor what is said to people.
fn is_of_data(file: c_int) -> bool {
    let path = Path::new("/proc/self/fd").join(file.to_string());
    let is_log = |target: &Path| target.file_name().is_some_and(|name| name.to_string_lossy().starts_with("clickhouse.log"));
    file > libc::STDERR_FILENO
        && std::fs::metadata(&path).is_ok_and(|of| of.is_file())
        && !std::fs::read_link(&path).is_ok_and(|target| is_log(&target))
}
