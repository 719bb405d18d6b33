//! The product's processes.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::world::control_plane;
use crate::support::Clock;

/// How long a process may take to end when it is asked to.
const END: Duration = Duration::from_secs(60);

/// A process that is killed in the end, with the port that it listens on and the log that it writes.
pub struct Process {
    pub child: Option<Child>,
    pub command: &'static str,
    pub url: String,
    pub port: u16,
    pub clock: Clock,
    pub log: PathBuf,
}

impl Process {
    /// Starts it if it does not run; tells whether it did not.
    pub fn ensure(&mut self) -> bool {
        if let Some(child) = &mut self.child
            && child.try_wait().expect("it was started").is_none()
        {
            return false;
        }
        let log = File::options().create(true).append(true).open(&self.log).expect("a file in a temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubemeter"));
        command.args([self.command, "--clickhouse-url", &self.url, "--listen", &format!("127.0.0.1:{}", self.port)]);
        if self.command == "operator" {
            command.arg("--leader-election=false");
        } else {
            command.arg("--insecure-no-auth");
        }
        command.envs(self.clock.environment()).env("KUBECONFIG", &control_plane().kubeconfig).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        self.child = Some(command.spawn().expect("it was built"));
        true
    }

    /// Ends it by SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it by SIGTERM.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        let start = Instant::now();
        while child.try_wait().expect("it was started").is_none() {
            assert!(start.elapsed() < END, "SIGTERM did not end {}", self.command);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
