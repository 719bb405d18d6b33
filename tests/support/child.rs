//! Processes that end with the test that started them, and with the process of the tests.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::DEADLINE;

/// A started program. It must end at the end of its stdin, which comes when the process of the tests ends: also by a
/// signal, or while a `static`, which is never dropped, holds this.
pub struct Running {
    child: Child,
    /// Whether it was told to end.
    told: Arc<AtomicBool>,
}

impl Running {
    /// Starts `command` and waits for the first line on its stdout from which `ready` makes a value.
    /// Panics with what the program said on stderr if it ends, or [`DEADLINE`] passes, before that.
    pub fn start<T: Send + 'static>(command: &mut Command, ready: impl Fn(&str) -> Option<T> + Send + 'static) -> (Self, T) {
        Self::start_logging(command, ready, String::new)
    }

    /// The same with a program that writes a log, of which a person is told when it ends untold: else every test that
    /// comes after says only that nobody answers.
    pub fn start_logging<T: Send + 'static>(
        command: &mut Command,
        ready: impl Fn(&str) -> Option<T> + Send + 'static,
        log: impl Fn() -> String + Send + 'static,
    ) -> (Self, T) {
        let told = Arc::new(AtomicBool::new(false));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // Both pipes are read to their end: a full one would stop the program.
        let mut stderr = child.stderr.take().expect("piped");
        let (untold, name) = (Arc::clone(&told), format!("{command:?}"));
        let said = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            let text = String::from_utf8_lossy(&text).into_owned();
            if !untold.load(Ordering::SeqCst) {
                // Not to what the test says, which is shown only if that very test fails.
                let _ = writeln!(std::io::stderr(), "{name} ended, and nobody told it to:\n{text}\n{}", log());
            }
            text
        });
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, first) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(value) = ready(&line) {
                    let _ = sender.send(value);
                }
            }
        });

        let mut running = Self { child, told };
        let Ok(value) = first.recv_timeout(DEADLINE) else {
            running.kill();
            let said = said.join().expect("reading does not panic");
            panic!("{command:?} did not get ready:\n{said}");
        };
        (running, value)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it was started").is_none()
    }

    /// Ends it by SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        self.told.store(true, Ordering::SeqCst);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end by SIGTERM and waits until it has. Panics after [`DEADLINE`].
    pub fn stop(&mut self) {
        self.told.store(true, Ordering::SeqCst);
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let start = Instant::now();
        while self.child.try_wait().expect("it was started").is_none() {
            assert!(start.elapsed() < DEADLINE, "SIGTERM did not end it within {DEADLINE:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
