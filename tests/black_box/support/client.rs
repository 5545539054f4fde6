//! A WebSocket client that fails the test, and prints the message, if it receives anything
//! unexpected.

use super::raw::handshake_head;
use super::server::Server;
use super::{stamp, within};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message, client::IntoClientRequest};
use tokio_tungstenite::{WebSocketStream, client_async};

/// The next event on a client's connection.
#[derive(Debug)]
pub enum Event {
    Text(String),
    Close(u16, String),
    /// The connection ended without a close frame.
    Lost(String),
}

/// An op, as a client sends and receives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    pub key: String,
    pub value: Value,
    pub timestamp: u64,
}

impl Op {
    pub fn new(key: &str, value: Value, timestamp: u64) -> Op {
        Op {
            key: key.into(),
            value,
            timestamp,
        }
    }

    /// Parses a message from the server. Returns `None` if it is not an op.
    pub fn parse(text: &str) -> Option<Op> {
        let mut message = parse(text);
        if message["type"] != "op" {
            return None;
        }
        assert_fields(&message, &["payload", "type"], text);
        let payload = message["payload"].take();
        assert_fields(&payload, &["key", "timestamp", "value"], text);
        let key = payload["key"]
            .as_str()
            .unwrap_or_else(|| panic!("the key is not a string: {text}"));
        let timestamp = payload["timestamp"]
            .as_u64()
            .unwrap_or_else(|| panic!("the timestamp is not an integer: {text}"));
        Some(Op::new(key, payload["value"].clone(), timestamp))
    }
}

/// A connected client. It has read its init message unless it was created with [`Client::dial`].
pub struct Client {
    socket: WebSocketStream<TcpStream>,
    pub init: Map<String, Value>,
    pub init_text: String,
}

impl Client {
    /// Connects to a workspace with a valid token and reads the init message.
    pub async fn connect(server: &Server, workspace: &str) -> Client {
        Client::connect_path(server, &Server::sync_path(workspace)).await
    }

    /// Connects to the given path (and query) and reads the init message.
    pub async fn connect_path(server: &Server, path: &str) -> Client {
        let dialed = Client::dial(server.addr(), path).await;
        let mut client = dialed.unwrap_or_else(|error| panic!("the handshake failed: {error}"));
        let text = client.next_text().await;
        client.take_init(&text);
        client
    }

    /// Connects, retrying until it succeeds, for use while a shard is failing.
    pub async fn connect_at_last(server: &Server, workspace: &str) -> Client {
        super::eventually(&format!("a client connects to {workspace}"), async || {
            let mut client = Client::dial(server.addr(), &Server::sync_path(workspace))
                .await
                .ok()?;
            match client.event().await {
                Event::Text(text) => client.take_init(&text),
                Event::Close(..) | Event::Lost(_) => return None,
            }
            Some(client)
        })
        .await
    }

    /// Performs the handshake only.
    pub async fn dial(addr: SocketAddr, path: &str) -> Result<Client, Error> {
        let stream = within("a TCP connection", TcpStream::connect(addr)).await?;
        Client::dial_over(stream, path).await
    }

    /// Performs the handshake over a connection that the test has opened.
    pub async fn dial_over(stream: TcpStream, path: &str) -> Result<Client, Error> {
        stream.set_nodelay(true)?;
        let request = format!("ws://test{path}").into_client_request()?;
        let (socket, _) =
            within("the answer to a handshake", client_async(request, stream)).await?;
        Ok(Client {
            socket,
            init: Map::new(),
            init_text: String::new(),
        })
    }

    /// Performs the handshake with these values of `Sec-WebSocket-Protocol`. Returns the client and
    /// the protocol that the server chose.
    pub async fn dial_protocols(
        addr: SocketAddr,
        path: &str,
        protocols: &str,
    ) -> Result<(Client, Option<String>), Error> {
        let stream = within("a TCP connection", TcpStream::connect(addr)).await?;
        stream.set_nodelay(true)?;
        let mut request = format!("ws://test{path}").into_client_request()?;
        let protocols = protocols.parse().expect("a header value");
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocols);
        let (socket, answer) =
            within("the answer to a handshake", client_async(request, stream)).await?;
        let chosen = answer.headers().get("Sec-WebSocket-Protocol");
        let chosen = chosen.map(|chosen| chosen.to_str().expect("a name").to_owned());
        let client = Client {
            socket,
            init: Map::new(),
            init_text: String::new(),
        };
        Ok((client, chosen))
    }

    /// Stores the state from an init message.
    pub fn take_init(&mut self, text: &str) {
        let mut message = parse(text);
        assert_eq!(
            message["type"], "init",
            "the first message is not init: {text}"
        );
        assert_fields(&message, &["data", "type"], text);
        let Value::Object(data) = message["data"].take() else {
            panic!("init has no object as data: {text}");
        };
        self.init = data;
        text.clone_into(&mut self.init_text);
    }

    // ---- sending ----

    pub async fn send(&mut self, message: Message) {
        let outcome = within("space in the socket", self.socket.send(message)).await;
        outcome.expect("the message can be sent");
    }

    /// Sends a message and returns whether the connection accepted it.
    pub async fn try_send(&mut self, message: Message) -> bool {
        within("space in the socket", self.socket.send(message))
            .await
            .is_ok()
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    pub async fn send_op(&mut self, op: &Op) {
        self.send_text(&op_text(op)).await;
    }

    /// Sends an op that wins because its timestamp is greater than all earlier ones.
    pub async fn write(&mut self, key: &str, value: Value) -> Op {
        let op = Op::new(key, value, stamp());
        self.send_op(&op).await;
        op
    }

    /// Sends an op whose value is exactly this JSON text, and returns its timestamp.
    pub async fn write_spelled(&mut self, key: &str, value: &str) -> u64 {
        let timestamp = stamp();
        let key = Value::from(key);
        self.send_text(&format!(
            r#"{{"type":"op","payload":{{"key":{key},"value":{value},"timestamp":{timestamp}}}}}"#
        ))
        .await;
        timestamp
    }

    /// Sends a close frame and reads until the server has answered it.
    pub async fn close(mut self) {
        self.send(Message::Close(None)).await;
        while let Event::Text(_) = self.event().await {}
    }

    // ---- receiving ----

    /// Waits for the next event other than a ping or pong.
    pub async fn event(&mut self) -> Event {
        let socket = &mut self.socket;
        let reading = async {
            loop {
                match socket.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Text(text))) => return Event::Text(text.to_string()),
                    Some(Ok(Message::Close(frame))) => {
                        let no_code = (1005, String::new());
                        let (code, reason) =
                            frame.map_or(no_code, |f| (f.code.into(), f.reason.to_string()));
                        return Event::Close(code, reason);
                    }
                    Some(Ok(other)) => {
                        panic!("the server sent a frame that is not text: {other:?}")
                    }
                    Some(Err(error)) => return Event::Lost(error.to_string()),
                    None => return Event::Lost("the end of the stream".into()),
                }
            }
        };
        within("a message from the server", reading).await
    }

    pub async fn next_text(&mut self) -> String {
        match self.event().await {
            Event::Text(text) => text,
            other => panic!("expected a message, got {other:?}"),
        }
    }

    pub async fn next(&mut self) -> Value {
        parse(&self.next_text().await)
    }

    pub async fn next_op(&mut self) -> Op {
        let text = self.next_text().await;
        Op::parse(&text).unwrap_or_else(|| panic!("expected an op, got {text}"))
    }

    pub async fn expect_op(&mut self, op: &Op) {
        assert_eq!(&self.next_op().await, op);
    }

    /// Expects an error with the given code and returns its message.
    pub async fn expect_error(&mut self, code: u16) -> String {
        let text = self.next_text().await;
        error_of(&text, code).unwrap_or_else(|| panic!("expected an error {code}, got {text}"))
    }

    /// Expects a close frame with the given code and returns its reason.
    pub async fn expect_close(&mut self, code: u16) -> String {
        match self.event().await {
            Event::Close(found, reason) if found == code => reason,
            other => panic!("expected a close with {code}, got {other:?}"),
        }
    }

    /// Reads until the connection is closed and returns the close code.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            match self.event().await {
                Event::Text(_) => {}
                Event::Close(code, _) => return code,
                Event::Lost(error) => panic!("expected a close frame, got {error}"),
            }
        }
    }

    /// Checks that no message is in flight to this client: the next one to arrive must be an op
    /// that `peer` sends now.
    pub async fn expect_silence(&mut self, peer: &mut Client) {
        let barrier = peer
            .write("barrier of expect_silence", json!(stamp()))
            .await;
        let next = self.next_op().await;
        assert_eq!(next, barrier, "another op arrived before the barrier");
    }

    /// Checks, without a peer, that nothing is on its way to this client: the next message to
    /// arrive is the error reply to a malformed message.
    pub async fn expect_no_answer(&mut self) {
        self.send_text(r#"{"type":"barrier of expect_no_answer"}"#)
            .await;
        self.expect_error(400).await;
    }
}

/// Returns an op message as text.
pub fn op_text(op: &Op) -> String {
    let payload = json!({"key": op.key, "value": op.value, "timestamp": op.timestamp});
    json!({"type": "op", "payload": payload}).to_string()
}

/// Returns the message of an error with the given code, or `None` if `text` is anything else.
pub fn error_of(text: &str, code: u16) -> Option<String> {
    let message = parse(text);
    let matches = message["type"] == "error" && message["payload"]["code"] == code;
    matches.then(|| {
        message["payload"]["message"]
            .as_str()
            .expect("an error has a message")
            .to_string()
    })
}

/// Returns the state of a workspace as received by a client that joins now.
pub async fn state_of(server: &Server, workspace: &str) -> Map<String, Value> {
    Client::connect(server, workspace).await.init
}

/// Returns the head of a handshake request without its final line.
pub fn unfinished_head(workspace: &str) -> String {
    let head = handshake_head(&Server::sync_path(workspace), "");
    head[..head.len() - 2].to_string()
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text)
        .unwrap_or_else(|error| panic!("the message is not JSON ({error}): {text}"))
}

fn assert_fields(object: &Value, fields: &[&str], text: &str) {
    let mut found: Vec<&str> = object
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    found.sort_unstable();
    assert_eq!(found, fields, "{text} has other fields");
}
