//! Servers on their own network, behind a proxy that runs a file from `tuning/` and terminates TLS.

use crate::support::raw::{Answer, Raw};
use crate::support::server::{Server, Setup};
use crate::support::{PATIENCE, eventually, files, skipped, token};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::{Pid, Signal, kill_process};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The name in the certificate.
const HOST: &str = "sync.example";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Haproxy,
    Nginx,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Haproxy => "haproxy",
            Kind::Nginx => "nginx",
        }
    }

    fn shipped_file(self) -> &'static str {
        match self {
            Kind::Haproxy => "tuning/haproxy.cfg",
            Kind::Nginx => "tuning/nginx.conf",
        }
    }
}

/// Returns the path of the program with this name, or `None` if it is not installed.
fn program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    // A user's PATH usually lacks the folder of the daemons.
    let mut folders = std::env::split_paths(&paths).chain(["/usr/sbin".into()]);
    folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()))
}

/// A range of addresses in 127.0.0.0/8 that no other test uses, indexed by host number.
#[derive(Clone, Copy)]
struct Network(u32);

impl Network {
    fn new() -> Network {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let number = std::process::id().wrapping_mul(8).wrapping_add(count) % 0xFE00;
        // 127.0.0.x is in general use.
        Network(0x7F00_0000 + ((number + 0x100) << 8))
    }

    fn host(self, host: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.0 + host)
    }
}

/// Replaces a part of the text, which must contain it.
pub fn put(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "the file does not contain {old:?}");
    text.replace(old, new)
}

/// A running proxy.
struct Proxy {
    kind: Kind,
    child: Child,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The nginx master process stops its workers on SIGTERM only. HAProxy ends on either
        // signal.
        let asked = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let ended = self.child.wait();
        if !std::thread::panicking() {
            asked.unwrap_or_else(|error| panic!("{:?} has already exited ({error})", self.kind));
            ended.expect("the child has not been reaped");
        }
    }
}

/// Several servers behind one proxy.
pub struct Site {
    kind: Kind,
    network: Network,
    pub nodes: Vec<Server>,
    /// The file as shipped, with the test's changes.
    pub config: String,
    proxy: Option<Proxy>,
    /// Bytes sent to this address reach the proxy over TLS.
    pub door: SocketAddr,
    way_in: JoinHandle<()>,
    folder: TempDir,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.way_in.abort();
    }
}

impl Site {
    /// Starts three servers and the proxy. Returns `None`, and prints a reason, if the proxy is not
    /// installed. `args` returns the arguments of each server.
    pub async fn start(kind: Kind, args: impl Fn(usize) -> Vec<String>) -> Option<Site> {
        for name in [kind.name(), "openssl"] {
            if program(name).is_none() {
                let is_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
                assert!(!is_ci, "{name} is not installed");
                skipped(format_args!("{name} is not installed"));
                return None;
            }
        }
        let network = Network::new();
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("log")).expect("the folder can be created");
        make_certificate(folder.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let door = listener.local_addr().expect("a bound socket");
        let certificate = folder.path().join("etherply.crt");
        let proxy_addr = format!("{}:8443", network.host(1));
        let mut site = Site {
            kind,
            network,
            nodes: Vec::new(),
            config: std::fs::read_to_string(kind.shipped_file()).expect("the file exists"),
            proxy: None,
            door,
            way_in: tokio::spawn(let_in(listener, proxy_addr, certificate)),
            folder,
        };
        for number in 0..3 {
            let args = args(number);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            site.add_node(Setup::new().args(&args)).await;
        }
        Some(site)
    }

    /// Adds a server, at the address that replaces its name in the file.
    pub async fn add_node(&mut self, setup: Setup) {
        let host = self.node_host(self.nodes.len()).to_string();
        let server = setup
            .args(&["--host", &host, "--port", "8080"])
            .start()
            .await;
        self.nodes.push(server);
    }

    fn node_host(&self, number: usize) -> Ipv4Addr {
        let number = u32::try_from(number).expect("the number of servers is small");
        self.network.host(11 + number)
    }

    /// Starts or restarts the proxy with the current file, in which the addresses, ports and paths
    /// are replaced by those of the test.
    pub async fn start_proxy(&mut self) {
        self.proxy = None;
        let folder = self.folder.path();
        let path = |name: &str| folder.join(name).display().to_string();
        let proxy_addr = format!("{}:8443", self.network.host(1));
        let mut config = put(&self.config, "0.0.0.0:443", &proxy_addr);
        for number in 0..self.nodes.len() {
            let name = format!("n{}.internal:8080", number + 1);
            config = put(&config, &name, &format!("{}:8080", self.node_host(number)));
        }
        let file = path(self.kind.name());
        let mut command = Command::new(program(self.kind.name()).expect("the program was found"));
        match self.kind {
            Kind::Haproxy => {
                config = put(&config, "/etc/haproxy/etherply.pem", &path("etherply.pem"));
                command.args(["-f", &file]);
            }
            Kind::Nginx => {
                config = put(&config, "/etc/nginx/", &path(""));
                config = put(&config, "/var/log/nginx/", &path("log/"));
                config = put(&config, "/run/nginx.pid", &path("pid"));
                let scratch = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|what| format!("{what}_temp_path {};", path(what)));
                config = put(
                    &config,
                    "http {\n",
                    &format!("http {{\n{}\n", scratch.join("\n")),
                );
                command.args(["-p", &path(""), "-c", &file, "-g", "daemon off;"]);
            }
        }
        std::fs::write(&file, config).expect("the file can be written");
        let log = std::fs::File::create(path("log/output")).expect("the file can be created");
        let errors = log.try_clone().expect("the file handle can be cloned");
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        let mut child = child.expect("the proxy can be started");
        eventually("the proxy accepts connections", async || {
            let ended = child.try_wait().expect("the child has not been reaped");
            assert!(ended.is_none(), "the proxy exited: {}", self.logs());
            TcpStream::connect(&proxy_addr).await.ok()
        })
        .await;
        self.proxy = Some(Proxy {
            kind: self.kind,
            child,
        });
    }

    pub fn stop_proxy(&mut self) {
        self.proxy = None;
    }

    /// Returns everything that the proxy has logged.
    pub fn logs(&self) -> String {
        let image = files::image(&self.folder.path().join("log"));
        let texts = image.values().map(|bytes| String::from_utf8_lossy(bytes));
        texts.collect::<Vec<_>>().concat()
    }

    /// Sends a GET through the proxy and returns the response.
    pub async fn get(&self, path: &str) -> Answer {
        get(self.door, path).await
    }

    /// Returns the nodes whose own log contains this workspace.
    pub async fn homes(&self, id: &str) -> Vec<usize> {
        let mut homes = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let state = node.get(&look_path("workspaces", &encoded(id))).await;
            if state.json()["seq"] != 0 {
                homes.push(number);
            }
        }
        homes
    }
}

pub async fn get(addr: SocketAddr, path: &str) -> Answer {
    let mut socket = Raw::connect(addr).await;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    socket.send(head.as_bytes()).await;
    socket.answer().await
}

/// Returns a path under `/v1/`, with a token.
pub fn look_path(kind: &str, segment: &str) -> String {
    format!("/v1/{kind}/{segment}?token={}", token::valid())
}

/// Encodes an id as a path segment.
pub fn encoded(id: &str) -> String {
    utf8_percent_encode(id, NON_ALPHANUMERIC).to_string()
}

/// Encodes an id with each byte percent-encoded, which is equivalent to [`encoded`].
pub fn encoded_throughout(id: &str) -> String {
    id.bytes().fold(String::new(), |segment, byte| {
        format!("{segment}%{byte:02x}")
    })
}

/// Creates the certificate as the comments in both files describe, under the names that both use.
fn make_certificate(folder: &Path) {
    let names = format!("subjectAltName=DNS:{HOST}");
    let subject = format!("/CN={HOST}");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:prime256v1", "-noenc", "-days", "30"])
        .args(["-subj", &subject, "-addext", &names])
        .args(["-keyout", "etherply.key", "-out", "etherply.crt"])
        .current_dir(folder)
        .output();
    let made = made.expect("openssl can be run");
    assert!(
        made.status.success(),
        "openssl made no certificate: {made:?}"
    );
    let read = |name: &str| {
        std::fs::read_to_string(folder.join(name)).expect("the certificate can be read")
    };
    let both = read("etherply.key") + &read("etherply.crt");
    std::fs::write(folder.join("etherply.pem"), both).expect("the file can be written");
}

/// Connects every accepted connection to the proxy over TLS, through an `openssl` process that
/// checks the certificate and its host name.
async fn let_in(listener: TcpListener, proxy_addr: String, certificate: PathBuf) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let child = tokio::process::Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error"])
            .args(["-connect", &proxy_addr, "-alpn", "http/1.1"])
            .args(["-servername", HOST, "-verify_hostname", HOST])
            .arg("-CAfile")
            .arg(&certificate)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut child = child.expect("openssl can be run");
        tokio::spawn(async move {
            let mut to_proxy = child.stdin.take().expect("stdin is piped");
            let mut from_proxy = child.stdout.take().expect("stdout is piped");
            let (mut reads, mut writes) = stream.split();
            // When either direction ends, so does the other.
            tokio::select! {
                _ = tokio::io::copy(&mut reads, &mut to_proxy) => {}
                _ = tokio::io::copy(&mut from_proxy, &mut writes) => {}
            }
            // The process has ended, or its connection is no longer needed.
            let _ = child.start_kill();
            tokio::time::timeout(PATIENCE, child.wait()).await
        });
    }
}
