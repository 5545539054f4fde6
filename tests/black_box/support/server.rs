//! The server as a process with its own data directory, on a free port.

use super::raw::{Answer, Raw};
use super::token::{self, SECRET};
use super::{PATIENCE, eventually, eventually_in, raise_open_files_limit, within};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// The configuration that a server is started with. A clone shares the data directory.
#[derive(Clone)]
pub struct Setup {
    shards: u32,
    args: Vec<String>,
    envs: Vec<(String, String)>,
    data_dir: PathBuf,
    /// Shell commands that prepare the process.
    prelude: Vec<String>,
    /// A command that executes the server in its own process, as prlimit(1) does.
    wrapper: Vec<String>,
    /// The socket that the server inherits as descriptor 3, as if from a service manager.
    passed: Option<Arc<OwnedFd>>,
    _folder: Arc<TempDir>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup::new()
    }
}

impl Setup {
    /// Returns a setup with two shards, an empty data directory and the secret [`SECRET`].
    pub fn new() -> Setup {
        raise_open_files_limit();
        let folder = TempDir::new().expect("a temporary folder");
        Setup {
            shards: 2,
            args: Vec::new(),
            envs: vec![("ETHERPLY_JWT_SECRET".into(), SECRET.into())],
            data_dir: folder.path().join("data"),
            prelude: Vec::new(),
            wrapper: Vec::new(),
            passed: None,
            _folder: Arc::new(folder),
        }
    }

    pub fn shards(mut self, shards: u32) -> Setup {
        self.shards = shards;
        self
    }

    pub fn args(mut self, args: &[&str]) -> Setup {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// Removes the arguments that were set.
    pub fn without_args(mut self) -> Setup {
        self.args.clear();
        self
    }

    /// Removes the secret and all other variables that were set.
    pub fn without_envs(mut self) -> Setup {
        self.envs.clear();
        self
    }

    pub fn in_data_dir(mut self, data_dir: &Path) -> Setup {
        data_dir.clone_into(&mut self.data_dir);
        self
    }

    /// Sets a limit on open files that the process cannot raise.
    pub fn open_files_limit(mut self, limit: u64) -> Setup {
        self.prelude.push(format!("ulimit -n {limit}"));
        self
    }

    /// Passes a descriptor as described in `sd_listen_fds(3)`. The shell moves it into place: it
    /// knows the process id that the variable needs, and std has no safe way to pass any descriptor
    /// other than the standard ones.
    pub fn passing(mut self, passed: impl Into<OwnedFd>) -> Setup {
        self.passed = Some(Arc::new(passed.into()));
        let commands = "exec 3<&0 </dev/null && export LISTEN_FDS=1 LISTEN_PID=$$";
        self.prelude.push(commands.into());
        self
    }

    /// Runs a shell command in the server's process before the server starts, after any already
    /// set.
    pub fn prepared(mut self, command: &str) -> Setup {
        self.prelude.push(command.into());
        self
    }

    /// Runs the server through this command, which must exec the server, as setpriv(1) and
    /// prlimit(1) do.
    pub fn wrapped(mut self, command: &[&str]) -> Setup {
        self.wrapper = command.iter().map(ToString::to_string).collect();
        self
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Starts the server and waits for the line with its address.
    pub async fn start(self) -> Server {
        let arguments = self.serve_arguments();
        let command = self.command(&arguments);
        let mut server = Server::spawn(self, command);
        server.until_it_listens().await;
        server
    }

    /// Starts the server and waits until its port is open. It may still be reading its log then.
    pub async fn start_reading(self) -> Server {
        let arguments = self.serve_arguments();
        let command = self.command(&arguments);
        let mut server = Server::spawn(self, command);
        let pid = server.child.id();
        let port = eventually("the server opens its port", async || listening_port(pid)).await;
        server.addr.set_port(port);
        server
    }

    /// Starts the server on a free port and connects as soon as the port is open.
    pub async fn start_and_connect(self) -> (Server, Raw) {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = free.local_addr().expect("the listener is bound");
        drop(free);
        let setup = self.args(&["--port", &addr.port().to_string()]);
        let command = setup.command(&setup.serve_arguments());
        let mut server = Server::spawn(setup, command);
        server.addr = addr;
        let connecting = async {
            while tokio::net::TcpStream::connect(addr).await.is_err() {
                tokio::task::yield_now().await;
            }
            Raw::connect(addr).await
        };
        let raw = within("the port to open", connecting).await;
        (server, raw)
    }

    /// Starts the server and kills it as soon as `moment` returns true.
    pub fn start_and_kill(&self, moment: impl Fn() -> bool) {
        let mut command = self.command(&self.serve_arguments());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("the binary starts");
        let begun = Instant::now();
        let has_ended = |child: &mut Child| {
            child
                .try_wait()
                .expect("the child has not been reaped")
                .is_some()
        };
        while !moment() && !has_ended(&mut child) && begun.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let came = !has_ended(&mut child) && begun.elapsed() < PATIENCE;
        // This fails if the process has already exited.
        let _ = child.kill();
        child.wait().expect("the killed child can be reaped");
        assert!(came, "the server did not reach that point of its start");
    }

    /// Starts a server that is expected to exit, and waits until it does.
    pub async fn run(&self) -> Outcome {
        self.run_arguments(&self.serve_arguments()).await
    }

    /// Runs the binary with exactly these arguments until it exits.
    pub async fn run_only(&self, arguments: &[&str]) -> Outcome {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        self.run_arguments(&arguments).await
    }

    async fn run_arguments(&self, arguments: &[String]) -> Outcome {
        let mut command = tokio::process::Command::from(self.command(arguments));
        let output = within(
            "the end of the process",
            command.kill_on_drop(true).output(),
        )
        .await;
        let output = output.expect("the binary starts");
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn serve_arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = vec!["serve".into()];
        let chosen = |flag: &str| {
            self.args
                .iter()
                .any(|arg| arg == flag || arg.starts_with(&format!("{flag}=")))
        };
        let has_env = |name: &str| self.envs.iter().any(|(set, _)| set == name);
        let defaults = [
            ("--host", "ETHERPLY_HOST", "127.0.0.1".to_string()),
            ("--port", "ETHERPLY_PORT", "0".to_string()),
            ("--shards", "ETHERPLY_SHARDS", self.shards.to_string()),
            (
                "--data-dir",
                "ETHERPLY_DATA_DIR",
                self.data_dir.display().to_string(),
            ),
        ];
        for (flag, env, value) in defaults {
            let is_address = matches!(flag, "--host" | "--port");
            let is_set = chosen(flag)
                || has_env(env)
                || (flag == "--port" && has_env("PORT"))
                || (is_address && self.passed.is_some());
            if !is_set {
                arguments.extend([flag.to_string(), value]);
            }
        }
        arguments.push("--no-pin".into());
        arguments.extend(self.args.iter().cloned());
        arguments
    }

    fn stdin(&self) -> Stdio {
        match &self.passed {
            Some(passed) => passed.try_clone().expect("a free file descriptor").into(),
            None => Stdio::null(),
        }
    }

    fn command(&self, arguments: &[String]) -> Command {
        let binary = env!("CARGO_BIN_EXE_etherply");
        let mut command = if self.prelude.is_empty() && self.wrapper.is_empty() {
            Command::new(binary)
        } else {
            let prelude = self.prelude.iter().map(String::as_str);
            let script: Vec<&str> = prelude.chain(["exec \"$@\""]).collect();
            let mut shell = Command::new("sh");
            shell.args(["-c", &script.join(" && "), "sh"]);
            shell.args(&self.wrapper).arg(binary);
            shell
        };
        command
            .args(arguments)
            .env_clear()
            .stdin(self.stdin())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in ["PATH", "ASAN_OPTIONS", "LSAN_OPTIONS"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        // A startup error must be a single line even with backtraces enabled.
        command.env("RUST_BACKTRACE", "1");
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// The exit code and the output of a process that has exited.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Expects a failed start: exit code 1 and one line without a backtrace. Returns the line.
    pub fn expect_refusal(&self) -> &str {
        assert_eq!(
            self.code,
            Some(1),
            "a failed start did not exit with 1: {self:?}"
        );
        assert!(
            !self.stdout.contains("listening on"),
            "a refused start printed an address: {self:?}"
        );
        let lines: Vec<&str> = self
            .stderr
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        assert_eq!(
            lines.len(),
            1,
            "a failed start printed more than one line on stderr: {}",
            self.stderr
        );
        lines[0]
    }
}

/// A running server. Dropping it kills the process.
pub struct Server {
    setup: Setup,
    child: Child,
    addr: SocketAddr,
    stdout: UnboundedReceiver<String>,
    output: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    /// Whether the test has seen the exit code.
    is_end_seen: bool,
}

impl Server {
    /// Starts a server with the defaults of [`Setup::new`].
    pub async fn start() -> Server {
        Setup::new().start().await
    }

    /// Starts a server with the defaults of [`Setup::new`] plus these arguments.
    pub async fn start_with(args: &[&str]) -> Server {
        Setup::new().args(args).start().await
    }

    fn spawn(setup: Setup, mut command: Command) -> Server {
        let mut child = command.spawn().expect("the binary starts");
        let output = Arc::new(Mutex::new(String::new()));
        let (sender, stdout) = unbounded_channel();
        let reader = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let lines = std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                // Drain the pipe even after the test has stopped reading.
                let _ = sender.send(line);
            }
        });
        let log = drain(
            child.stderr.take().expect("stderr is piped"),
            output.clone(),
        );
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        Server {
            setup,
            child,
            addr,
            stdout,
            output,
            readers: vec![lines, log],
            is_end_seen: false,
        }
    }

    /// Waits for the line with the server's address.
    pub async fn until_it_listens(&mut self) {
        let first = self.stdout_line().await;
        let addr = first
            .strip_prefix("listening on ")
            .and_then(|addr| addr.parse().ok());
        self.addr = addr.unwrap_or_else(|| {
            panic!("expected the address as the first line on stdout, got {first:?}")
        });
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn data_dir(&self) -> &Path {
        self.setup.data_dir()
    }

    /// Waits for the next line on stdout.
    pub async fn stdout_line(&mut self) -> String {
        let line = within("a line on the server's stdout", self.stdout.recv()).await;
        line.unwrap_or_else(|| {
            self.join_readers();
            panic!("the server closed its stdout; its stderr:\n{}", self.log())
        })
    }

    /// Returns everything that the server has written to stderr so far.
    pub fn log(&self) -> String {
        self.output
            .lock()
            .expect("the reader task does not panic")
            .clone()
    }

    /// Waits for a log line that contains all these words, and returns it.
    pub async fn log_line(&self, words: &[&str]) -> String {
        let found = async || {
            let log = self.log();
            log.lines()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(ToString::to_string)
        };
        eventually(&format!("a log line with {words:?} appears"), found).await
    }

    /// Returns the resident memory of the process (`VmRSS` in proc(5)).
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the server is running");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("a process has resident memory");
        let kib: u64 = line
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("VmRSS is a number of kB");
        kib * 1024
    }

    /// Returns the number of open files and sockets of the process.
    pub fn open_files_count(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .expect("the server is running")
            .count()
    }

    /// Returns the number of open sockets of the process. The number of files varies because a
    /// compaction opens some.
    pub fn open_sockets_count(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .expect("the server is running")
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    }

    /// Returns the request path for a workspace, with a valid token.
    pub fn sync_path(workspace: &str) -> String {
        let segment = utf8_percent_encode(workspace, NON_ALPHANUMERIC);
        format!("/v1/sync/{segment}?token={}", token::valid())
    }

    /// Sends a GET and returns the response.
    pub async fn get(&self, path: &str) -> Answer {
        let mut socket = Raw::connect(self.addr).await;
        socket
            .send(
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await;
        socket.answer().await
    }

    /// Sends a WebSocket handshake and returns the response.
    pub async fn handshake(&self, path: &str) -> Answer {
        Raw::connect(self.addr).await.handshake(path, "").await
    }

    /// Waits until `/readyz` responds with this status.
    pub async fn until_ready_is(&self, status: u16) {
        let what = format!("/readyz answers {status}; the log:\n{}", self.log());
        let limit = PATIENCE * 2;
        eventually_in(limit, &what, async || {
            (self.get("/readyz").await.status == status).then_some(())
        })
        .await;
    }

    /// Kills the process, so that everything it held in memory is lost.
    pub fn kill9(&mut self) {
        self.child.kill().expect("the server is running");
        let status = self.child.wait().expect("the killed child can be reaped");
        self.join_readers();
        assert_eq!(
            status.signal(),
            Some(Signal::KILL.as_raw()),
            "the server exited before it was killed ({status}); its log:\n{}",
            self.log()
        );
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the server is running");
    }

    /// Sends SIGTERM without waiting for the exit.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for the process to exit and returns its exit code, or `None` if a signal ended it.
    pub async fn exit_code_within(&mut self, limit: Duration) -> Option<i32> {
        let child = &mut self.child;
        let ended = async || child.try_wait().expect("the child has not been reaped");
        let status = eventually_in(limit, "the server ends", ended).await;
        self.join_readers();
        self.is_end_seen = true;
        status.code()
    }

    /// Sends SIGTERM and expects exit code 0.
    pub async fn stop(&mut self) {
        self.terminate();
        let code = self.exit_code_within(PATIENCE).await;
        assert_eq!(
            code,
            Some(0),
            "the server did not exit with 0 after the drain; its log:\n{}",
            self.log()
        );
    }

    /// Restarts the server on the same data directory. It must have exited.
    pub async fn restart(&mut self, shards: u32) {
        assert!(
            self.child
                .try_wait()
                .expect("the child has not been reaped")
                .is_some(),
            "the server is still running"
        );
        let next = self.setup.clone().shards(shards).start().await;
        *self = next;
    }

    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("the reader thread does not panic");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if the test has already seen the process exit.
        let _ = self.child.kill();
        let status = self.child.wait();
        if std::thread::panicking() {
            return;
        }
        self.join_readers();
        // A sanitizer report, an abort or a fault in a shard ends the server early, possibly after
        // the test was done with it.
        let ended_well = status.as_ref().is_ok_and(|status| {
            status.code() == Some(0) || status.signal() == Some(Signal::KILL.as_raw())
        });
        assert!(
            ended_well || self.is_end_seen,
            "the server exited unexpectedly ({status:?}); its log:\n{}",
            self.log()
        );
    }
}

/// Returns the port of the process's listening socket (`/proc/net/tcp` in proc(5)).
fn listening_port(pid: u32) -> Option<u16> {
    const LISTEN: &str = "0A";
    let opened = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let opened: Vec<String> = opened
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    let sockets = std::fs::read_to_string("/proc/net/tcp").ok()?;
    sockets.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let is_it = *state == LISTEN && opened.contains(&format!("socket:[{inode}]"));
        let (_, port) = local.split_once(':')?;
        is_it.then(|| u16::from_str_radix(port, 16).ok()).flatten()
    })
}

fn drain(mut stream: impl Read + Send + 'static, output: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut chunk) {
            let text = String::from_utf8_lossy(&chunk[..len]);
            output
                .lock()
                .expect("no log reader panics while holding the lock")
                .push_str(&text);
        }
    })
}
