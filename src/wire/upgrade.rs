//! The request head of a connection (RFC 9112, parsed by httparse) and every HTTP response to it.
//!
//! A connection carries one request: a WebSocket upgrade, a read of a workspace, or a page. Every
//! answer other than 101 closes it. The [protocol](crate::wire) lists the answers and the order of
//! the checks (P1 to P14, P100 to P107). The checks run from the outside in, and the first one that
//! fails determines the answer.
//!
//! Invariant: no answer repeats anything that the client sent, so no answer can leak a token or a
//! workspace id.

use std::fmt;

use httparse::Status;
use tungstenite::handshake::derive_accept_key;

use self::negotiation::Parameters;
use self::target::Target;
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX, HEADERS_USUAL};
use crate::wire::version::ProtocolVersion;

pub use self::answer::Answer;
pub use self::negotiation::ResumePoint;
pub use self::page::{PageRequest, Provenance, WebPage};
pub use self::state_request::{ReadTarget, StateRequest};
pub use self::tag::matches_tag;

use self::head::Head;
use self::host::UriHost;
use self::page::PAGES;

mod answer;
mod body;
mod head;
mod host;
mod negotiation;
mod page;
mod state_request;
mod tag;
mod target;

/// The request that a connection was opened for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A WebSocket connection to a workspace.
    Sync(SyncRequest),
    /// The state or the members of a workspace, over plain HTTP.
    State(StateRequest),
    /// A page, or a file that belongs to one.
    Page(PageRequest),
    /// A browser's preflight request, which asks for the permissions of a page from another origin
    /// (WHATWG Fetch, "CORS-preflight request").
    Preflight {
        /// The page's origin.
        origin: Option<String>,
    },
    /// `/healthz`: whether the process is alive (P90).
    Healthz {
        /// Whether it is a HEAD request, whose answer has no body.
        head_only: bool,
    },
    /// `/readyz`: whether every shard can serve (P91).
    Readyz {
        /// Whether it is a HEAD request, whose answer has no body.
        head_only: bool,
    },
}

/// A well-formed upgrade request. Its token is not checked yet.
#[derive(Clone, PartialEq, Eq)]
pub struct SyncRequest {
    /// The workspace id, percent-decoded: 1 to 256 bytes, no control characters.
    pub workspace: String,
    /// The token, from the query, the `Authorization` header or the offered subprotocols; never
    /// empty.
    pub token: Option<String>,
    /// The version of the protocol that the connection speaks.
    pub version: ProtocolVersion,
    /// The name of that version for [`switching_protocols`], if the client requested it by name.
    pub subprotocol: Option<&'static str>,
    /// The point from which the client resumes. Only with version 2, like the next two.
    pub resume: Option<ResumePoint>,
    /// Whether the client wants to be a peer: `presence=1`.
    pub has_presence: bool,
    /// The client's previous connection, whose peer it replaces.
    pub replaces: Option<u64>,
    /// The self-chosen name of the client, from the query parameter `userId`. It is not verified.
    pub user: Option<String>,
    /// The `Origin` of the page that connects. Only browsers send one.
    pub origin: Option<String>,
    /// The `Sec-WebSocket-Accept` for [`switching_protocols`].
    pub accept_key: String,
}

impl fmt::Debug for SyncRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncRequest")
            .field("workspace", &self.workspace)
            .field("token", &self.token.as_ref().map(|_| "[redacted]"))
            .field("version", &self.version)
            .field("subprotocol", &self.subprotocol)
            .field("resume", &self.resume)
            .field("has_presence", &self.has_presence)
            .field("replaces", &self.replaces)
            .field("user", &self.user)
            .field("origin", &self.origin)
            .field("accept_key", &self.accept_key)
            .finish()
    }
}

/// Parses the request head at the start of `bytes`. Returns its length and the request.
///
/// Returns `None` if the head is incomplete and not yet too long. The error is the answer to send
/// before closing the connection.
pub fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Request)>, Answer> {
    let mut usual = [httparse::EMPTY_HEADER; HEADERS_USUAL];
    match parse_fields(bytes, &mut usual) {
        // Initializing an array for the maximum number of fields on every request would be too
        // expensive.
        Err(HeadError::TooManyFields) => {
            let mut all = vec![httparse::EMPTY_HEADER; HEADERS_MAX];
            parse_fields(bytes, &mut all)
        }
        outcome => outcome,
    }
    .map_err(|error| match error {
        HeadError::Refused(answer) => answer,
        HeadError::TooManyFields => too_long(),
    })
}

/// The reason why a head could not be parsed into a request.
enum HeadError {
    /// The head has more fields than the buffer can hold.
    TooManyFields,
    /// The request is refused with this answer.
    Refused(Answer),
}

impl From<Answer> for HeadError {
    fn from(answer: Answer) -> Self {
        Self::Refused(answer)
    }
}

fn too_long() -> Answer {
    Answer::header_fields_too_large("the request head is over 16 KiB")
}

/// Parses a head like [`parse_head`], provided that its fields fit into `fields`.
fn parse_fields<'a>(
    bytes: &'a [u8],
    fields: &mut [httparse::Header<'a>],
) -> Result<Option<(usize, Request)>, HeadError> {
    let mut head = httparse::Request::new(fields);
    let within_limit = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let head_bytes = match head.parse(within_limit) {
        Ok(Status::Complete(head_bytes)) => head_bytes,
        Ok(Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(Status::Partial) => return Err(too_long().into()),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooManyFields),
        Err(error) => return Err(Answer::bad_request(reason(error)).into()),
    };
    let head = Head {
        method: head.method.unwrap_or_default(),
        target: head.path.unwrap_or_default(),
        is_http_1_1: head.version == Some(1),
        fields: head.headers,
    };
    match request(&head) {
        Ok(request) => Ok(Some((head_bytes, request))),
        // RFC 9110 section 9.3.2: no answer to HEAD has a body, not even an error.
        Err(answer) => Err(answer.for_method(head.method == "HEAD").into()),
    }
}

/// Appends the 101 answer that opens the WebSocket, with the name of the version that the client
/// requested. Frames follow it.
pub fn switching_protocols(accept_key: &str, subprotocol: Option<&'static str>, out: &mut Vec<u8>) {
    let (field, subprotocol) = match subprotocol {
        Some(subprotocol) => ("\r\nSec-WebSocket-Protocol: ", subprotocol),
        None => ("", ""),
    };
    for part in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: ",
        accept_key,
        field,
        subprotocol,
        "\r\n\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

fn reason(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName | httparse::Error::HeaderValue => "a header field is malformed",
        httparse::Error::Version => "the HTTP version must be 1.0 or 1.1",
        _ => "the request is malformed",
    }
}

fn request(head: &Head<'_>) -> Result<Request, Answer> {
    let host = head.single("host", "Host must not be repeated")?;
    if host.is_none() && head.is_http_1_1 {
        return Err(Answer::bad_request("Host is required"));
    }
    if host.is_some_and(|host| UriHost::parse(host).is_none()) {
        return Err(Answer::bad_request(
            "Host must be a name or an address, with or without a port",
        ));
    }
    let has_body = body::has_body(head)?;
    let target = Target::split(head.target)
        .ok_or_else(|| Answer::bad_request("the request target is malformed"))?;
    let head_only = head.method == "HEAD";
    let is_read = head_only || head.method == "GET";
    match target.path {
        "/healthz" if is_read => Ok(Request::Healthz { head_only }),
        "/readyz" if is_read => Ok(Request::Readyz { head_only }),
        "/healthz" | "/readyz" => Err(Answer::method_not_allowed("GET, HEAD")),
        path => {
            if let Some((_, page)) = PAGES.iter().find(|(known, _)| *known == path) {
                return page_request(head, *page, target.host);
            }
            let Some((folder, segment)) = path.rsplit_once('/') else {
                return Err(Answer::not_found());
            };
            match folder {
                // The bytes after the head are frames, so a body would be read as frames.
                "/v1/sync" if has_body && head.method == "GET" => Err(Answer::bad_request(
                    "an upgrade request must not have a body",
                )),
                "/v1/sync" => sync_request(head, segment, target.query).map(Request::Sync),
                "/v1/workspaces" => state_request(head, ReadTarget::State, segment, target.query),
                "/v1/presence" => state_request(head, ReadTarget::Presence, segment, target.query),
                _ => Err(Answer::not_found()),
            }
        }
    }
}

fn page_request(
    head: &Head<'_>,
    page: WebPage,
    target_host: Option<UriHost<'_>>,
) -> Result<Request, Answer> {
    match head.method {
        "OPTIONS" if page == WebPage::ClientModule => Ok(Request::Preflight {
            origin: head.origin(),
        }),
        "GET" | "HEAD" => Ok(Request::Page(PageRequest {
            page,
            provenance: Provenance::of(head, target_host),
            if_none_match: head.joined("if-none-match"),
            head_only: head.method == "HEAD",
        })),
        _ => Err(Answer::method_not_allowed("GET, HEAD")),
    }
}

/// Checks an upgrade request as RFC 6455 section 4.2.1 requires.
fn sync_request(head: &Head<'_>, segment: &str, query: &str) -> Result<SyncRequest, Answer> {
    if head.method != "GET" {
        return Err(Answer::method_not_allowed("GET"));
    }
    // RFC 9110 section 7.8: an Upgrade in an HTTP/1.0 request is ignored.
    if !head.is_http_1_1
        || !head.lists("connection", "upgrade")
        || !head.lists("upgrade", "websocket")
    {
        return Err(Answer::upgrade_required(
            "this path needs a WebSocket upgrade over HTTP/1.1",
        ));
    }
    match head.single(
        "sec-websocket-version",
        "Sec-WebSocket-Version must not be repeated",
    )? {
        Some(b"13") => {}
        Some(_) => return Err(Answer::upgrade_required("Sec-WebSocket-Version must be 13")),
        None => return Err(Answer::bad_request("Sec-WebSocket-Version is required")),
    }
    let key = head
        .single(
            "sec-websocket-key",
            "Sec-WebSocket-Key must not be repeated",
        )?
        .ok_or_else(|| Answer::bad_request("Sec-WebSocket-Key is required"))?;
    if !is_key(key) {
        return Err(Answer::bad_request(
            "Sec-WebSocket-Key must be 16 bytes in base64",
        ));
    }
    let workspace = target::workspace_id(segment).map_err(Answer::bad_request)?;
    let offered = negotiation::offered_version(head);
    let token = match offered {
        Some(_) => negotiation::only_token(head, query)?,
        None => target::query_token(query).or_else(|| head.bearer_tokens().next()),
    };
    let Parameters {
        resume,
        has_presence,
        replaces,
    } = match offered {
        Some(ProtocolVersion::V2) => Parameters::parse(query)?,
        Some(ProtocolVersion::V1) | None => Parameters::default(),
    };
    Ok(SyncRequest {
        workspace,
        token,
        version: offered.unwrap_or(ProtocolVersion::V1),
        subprotocol: offered.map(ProtocolVersion::subprotocol),
        resume,
        has_presence,
        replaces,
        user: target::query_user(query),
        origin: head.origin(),
        accept_key: derive_accept_key(key),
    })
}

fn state_request(
    head: &Head<'_>,
    target: ReadTarget,
    segment: &str,
    query: &str,
) -> Result<Request, Answer> {
    if head.method == "OPTIONS" {
        return Ok(Request::Preflight {
            origin: head.origin(),
        });
    }
    if !matches!(head.method, "GET" | "HEAD") {
        return Err(Answer::method_not_allowed("GET, HEAD, OPTIONS"));
    }
    Ok(Request::State(StateRequest {
        target,
        workspace: target::workspace_id(segment).map_err(Answer::bad_request)?,
        token: target::query_token(query).or_else(|| head.bearer_tokens().next()),
        origin: head.origin(),
        if_none_match: head.joined("if-none-match"),
        head_only: head.method == "HEAD",
    }))
}

/// Returns whether `value` is 16 bytes in base64: 22 characters and the padding.
fn is_key(value: &[u8]) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    value.len() == 24
        && value
            .strip_suffix(b"==")
            .is_some_and(|digits| digits.iter().all(is_base64))
}

#[cfg(test)]
mod tests;
