//! Processes that end with the test that started them, and with the process of the tests.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use super::DEADLINE;

/// A started program. What it says on stderr is kept for the message of a panic.
pub struct Running {
    child: Child,
    leash: Option<Leash>,
}

impl Running {
    /// Starts `command` and waits for the first line on its stdout from which `ready` makes a value.
    /// Panics with what the program said on stderr if it ends, or [`DEADLINE`] passes, before that.
    ///
    /// With a `leash`, it is killed and that directory removed should the process of the tests end first: by a
    /// signal, or because a `static` holds this, which is never dropped. Without, the end of its stdin must do.
    pub fn start<T: Send + 'static>(
        command: &mut Command,
        leash: Option<&Path>,
        ready: impl Fn(&str) -> Option<T> + Send + 'static,
    ) -> (Self, T) {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let leash = leash.map(|directory| Leash::new(child.id(), directory));
        // Both pipes are read to their end: a full one would stop the program.
        let mut stderr = child.stderr.take().expect("piped");
        let said = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
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

        let mut running = Self { child, leash };
        let Ok(value) = first.recv_timeout(DEADLINE) else {
            running.kill();
            let said = said.join().expect("reading does not panic");
            panic!("{command:?} did not get ready:\n{}", String::from_utf8_lossy(&said));
        };
        (running, value)
    }

    /// Ends it by SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        self.leash = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end by SIGTERM and waits until it has.
    pub fn stop(&mut self) {
        self.leash = None;
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A shell that waits for the end of its stdin, which comes when the process of the tests ends in whatever way.
struct Leash(Child);

impl Leash {
    fn new(pid: u32, directory: &Path) -> Self {
        let wait_and_end = r#"cat >/dev/null; kill -KILL "$1" 2>/dev/null; rm -rf "$2""#;
        let mut shell = Command::new("sh");
        shell.args(["-c", wait_and_end, "leash", &pid.to_string()]).arg(directory);
        Self(shell.stdin(Stdio::piped()).spawn().expect("there is a shell"))
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        // Before the pipe is closed: the pid may be another's by now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
