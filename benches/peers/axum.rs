//! The server that a Rust developer writes in an afternoon: axum, a tokio broadcast channel per
//! workspace, `serde_json`, and a buffered file to which each op is appended. It has one thread.
//! Unlike in most servers written in an afternoon, a task that wakes up handles everything that has
//! arrived, and flushes once.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::Ipv4Addr;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use axum::serve::ListenerExt as _;
use clap::Parser;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use serde_json::{Map, Value};
use tokio::net::TcpSocket;
use tokio::sync::broadcast;

const BACKLOG: u32 = 4096;

/// A server that a Rust developer writes in an afternoon
#[derive(Parser)]
#[command(no_binary_name = true)]
struct AxumSettings {
    /// The port to listen on; 0: a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The file that each op is appended to
    #[arg(long, default_value = "/dev/null")]
    log: PathBuf,
    /// Ops that a workspace keeps for slow clients; slower ones are dropped
    #[arg(long, default_value_t = 1024)]
    channel: usize,
}

pub fn serve(arguments: &[String]) -> io::Result<()> {
    let settings = AxumSettings::parse_from(arguments);
    let hub = Arc::new(Hub {
        inside: Mutex::new(Inside {
            workspaces: HashMap::new(),
            log: open(&settings.log)?,
            next_client: 0,
        }),
        channel: settings.channel,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let router = Router::new()
            .route("/v1/sync/{workspace}", get(upgrade))
            .with_state(hub);
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, settings.port).into())?;
        // With the default backlog, some of many simultaneous clients would wait a second before
        // retrying.
        let listener = socket.listen(BACKLOG)?;
        super::tell_address(listener.local_addr()?)?;
        let listener = listener.tap_io(|stream| {
            // This fails if the peer has already closed the connection.
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, router).await
    })
}

fn open(log: &FilePath) -> io::Result<BufWriter<File>> {
    let file = File::options().create(true).append(true).open(log)?;
    Ok(BufWriter::new(file))
}

struct Hub {
    inside: Mutex<Inside>,
    channel: usize,
}

struct Inside {
    workspaces: HashMap<String, Workspace>,
    log: BufWriter<File>,
    next_client: u64,
}

struct Workspace {
    data: HashMap<String, (u64, Value)>,
    ops: broadcast::Sender<Sent>,
}

/// An op as it is sent to all clients, and the client that it came from.
#[derive(Clone)]
struct Sent {
    client: u64,
    text: Utf8Bytes,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state, a receiver of all later ops, and a number for the client.
    fn join(&self, workspace: &str) -> (String, broadcast::Receiver<Sent>, u64) {
        let mut inside = self.lock();
        inside.next_client += 1;
        let client = inside.next_client;
        let channel = self.channel;
        let workspace = inside.workspaces.entry(workspace.to_owned());
        let workspace = workspace.or_insert_with(|| Workspace {
            data: HashMap::new(),
            ops: broadcast::channel(channel).0,
        });
        let fields = workspace.data.iter();
        let data: Map<String, Value> = fields
            .map(|(key, (_, value))| (key.clone(), value.clone()))
            .collect();
        let init = format!(r#"{{"type":"init","data":{}}}"#, Value::Object(data));
        (init, workspace.ops.subscribe(), client)
    }
}

impl Inside {
    /// Applies an op, appends it to the log and broadcasts it; `None` if the message is invalid.
    fn apply(&mut self, name: &str, client: u64, text: &str) -> Option<()> {
        let message: Value = serde_json::from_str(text).ok()?;
        if message["type"] != "op" {
            return Some(());
        }
        let payload = message["payload"].as_object()?;
        let timestamp = payload.get("timestamp")?.as_u64()?;
        let key = payload.get("key")?.as_str()?.to_owned();
        let value = payload.get("value")?.clone();
        let workspace = self.workspaces.get_mut(name)?;
        if let Some((held, _)) = workspace.data.get(&key)
            && *held >= timestamp
        {
            return Some(());
        }
        let text = message.to_string();
        writeln!(self.log, "{name} {text}").ok()?;
        workspace.data.insert(key, (timestamp, value));
        // This fails if no client is connected.
        let _ = workspace.ops.send(Sent {
            client,
            text: text.into(),
        });
        Some(())
    }
}

async fn upgrade(
    Path(workspace): Path<String>,
    State(hub): State<Arc<Hub>>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade.on_upgrade(move |socket| async move {
        // A connection that has failed needs no further handling.
        let _ = converse(socket, &workspace, &hub).await;
    })
}

/// Serves a client until it leaves, sends an invalid message, or becomes unreachable.
async fn converse(mut socket: WebSocket, workspace: &str, hub: &Hub) -> Result<(), axum::Error> {
    let (init, mut ops, client) = hub.join(workspace);
    socket.send(Message::Text(init.into())).await?;
    loop {
        tokio::select! {
            message = socket.recv() => {
                let mut message = message;
                let mut inside = hub.lock();
                loop {
                    match message {
                        Some(Ok(Message::Text(text))) => {
                            if inside.apply(workspace, client, &text).is_none() {
                                return Ok(());
                            }
                        }
                        Some(Ok(Message::Close(_))) | None => return Ok(()),
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Err(error),
                    }
                    let Some(next) = socket.next().now_or_never() else { break };
                    message = next;
                }
                inside.log.flush().map_err(axum::Error::new)?;
            }
            op = ops.recv() => {
                let mut op = op.map_err(axum::Error::new)?;
                loop {
                    if op.client != client {
                        socket.feed(Message::Text(op.text)).await?;
                    }
                    let Ok(next) = ops.try_recv() else { break };
                    op = next;
                }
                socket.flush().await?;
            }
        }
    }
}
