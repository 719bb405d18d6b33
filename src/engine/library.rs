//! The engine's library: where it is, and the one call into it. With [`super::writes`] the crate's only `unsafe`.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use super::Error;

/// Version of the npm package that the library comes from; it names the folder in the cache.
pub const ENGINE_VERSION: &str = "26.7.3-stable.1";

/// Its name in that package, on every system.
const FILE: &str = "libchdb.so";

/// Finds the library: the file that was named, else the one that the set-up put into the cache.
///
/// # Errors
/// [`Error::Missing`] names the file that should be there.
pub fn find(named: Option<&Path>) -> Result<PathBuf, Error> {
    let file = match named {
        Some(file) => file.to_owned(),
        None => cache().ok_or(Error::NoCache)?.join("engine").join(ENGINE_VERSION).join(FILE),
    };
    if file.is_file() { Ok(file) } else { Err(Error::Missing(file)) }
}

fn cache() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("KUBEMETER_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("kubemeter")))
        .or_else(|| Some(folder("HOME")?.join(".cache").join("kubemeter")))
}

type QueryCommandLine = unsafe extern "C" fn(argc: c_int, argv: *mut *mut c_char) -> *mut c_void;
type ResultError = unsafe extern "C" fn(result: *mut c_void) -> *const c_char;

/// The loaded library.
pub(super) struct Library {
    run: QueryCommandLine,
    error: ResultError,
}

impl Library {
    /// Loads the library for good: ClickHouse's threads may outlive any call, so it is never unloaded.
    pub(super) fn load(file: &Path) -> Result<Self, Error> {
        let unusable = |why: libloading::Error| Error::Unusable { file: file.to_owned(), why: why.to_string() };
        // SAFETY: running the initialisers of a library is as safe as the library. It is the file that the user named,
        // or the one whose hash the set-up checked.
        #[allow(unsafe_code)]
        let library = Box::leak(Box::new(unsafe { libloading::Library::new(file) }.map_err(unusable)?));
        #[cfg(target_os = "linux")]
        super::writes::arm()?;
        // SAFETY: the types are those of the library's header, `chdb.h`; the symbols live as long as the leaked library.
        #[allow(unsafe_code)]
        unsafe {
            Ok(Self {
                run: *library.get::<QueryCommandLine>(b"chdb_query_cmdline\0").map_err(unusable)?,
                error: *library.get::<ResultError>(b"chdb_result_error\0").map_err(unusable)?,
            })
        }
    }

    /// Runs the whole `clickhouse local` program with these arguments; returns when it is through.
    pub(super) fn run(&self, arguments: &[String]) -> Result<(), Error> {
        let arguments = arguments.iter().map(|argument| CString::new(argument.as_str())).collect::<Result<Vec<_>, _>>();
        let arguments = arguments.map_err(|_| Error::Engine("takes no NUL in a path".to_owned()))?;
        let mut pointers: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
        let count = c_int::try_from(pointers.len()).map_err(|why| Error::Engine(why.to_string()))?;
        pointers.push(std::ptr::null_mut());
        // SAFETY: `pointers` is an argv as C has it, `count` strings and a null, and outlives the call.
        #[allow(unsafe_code)]
        let result = unsafe { (self.run)(count, pointers.as_mut_ptr()) };
        if result.is_null() {
            return Err(Error::Engine("ended without a result".to_owned()));
        }
        // SAFETY: the result came from the call above and is not freed; its error is null or a C string that lives with it.
        #[allow(unsafe_code)]
        let error = unsafe {
            let text = (self.error)(result);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        error.map_or(Ok(()), |why| Err(Error::Engine(format!("failed: {why}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_engine_names_the_file_and_the_set_up() {
        let why = find(Some(Path::new("/nowhere/libchdb.so"))).unwrap_err().to_string();
        assert!(why.contains("/nowhere/libchdb.so") && why.contains("make setup"), "{why}");
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let why = Library::load(file.path()).err().unwrap().to_string();
        assert!(why.contains("is no ClickHouse engine"), "{why}");
    }
}
