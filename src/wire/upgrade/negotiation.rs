//! Negotiation of the protocol version: the version that a client requests, the token in its offer,
//! and the version 2 parameters (P100 to P107).

use std::str::FromStr;

use super::answer::Answer;
use super::head::Head;
use super::target::{parameter, query_tokens};
use crate::generation::Generation;
use crate::seq::Seq;
use crate::wire::version::ProtocolVersion;

const FIELD: &str = "sec-websocket-protocol";
/// The start of an offered name that carries a token.
const BEARER: &[u8] = b"bearer.";

/// The point in the history of a workspace from which a version 2 client resumes (P130).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumePoint {
    /// The last change that the client has seen; it has seen every change up to this one.
    pub since: Seq,
    /// The history to which `since` refers.
    pub generation: Generation,
}

/// Returns the version that the client prefers among those that it offers by name, or `None` if it
/// offers none of them. It then gets version 1, and the answer names none.
///
/// A name that is unknown or malformed is skipped, as RFC 6455 section 4.2.2 requires of unknown
/// ones: a version 1 client may always have offered anything.
pub(super) fn offered_version(head: &Head<'_>) -> Option<ProtocolVersion> {
    head.elements(FIELD).find_map(|offered| {
        let is_offered = |version: &ProtocolVersion| version.subprotocol().as_bytes() == offered;
        ProtocolVersion::ALL.into_iter().find(is_offered)
    })
}

/// Returns the token of a client that offers a version by name. It may be sent in three places, and
/// must be the same in all of them (P103).
pub(super) fn only_token(head: &Head<'_>, query: &str) -> Result<Option<String>, Answer> {
    let in_offer = head.elements(FIELD).filter_map(|offered| {
        let token = offered.strip_prefix(BEARER)?;
        (!token.is_empty()).then(|| String::from_utf8_lossy(token).into_owned())
    });
    let mut tokens = query_tokens(query)
        .chain(head.bearer_tokens())
        .chain(in_offer);
    let token = tokens.next();
    if tokens.any(|other| Some(other) != token) {
        return Err(Answer::bad_request(
            "the request has two different tokens: send one, in the query, in Authorization or \
             in Sec-WebSocket-Protocol",
        ));
    }
    Ok(token)
}

/// The query parameters that only version 2 has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub resume: Option<ResumePoint>,
    pub has_presence: bool,
    pub replaces: Option<u64>,
}

impl Parameters {
    /// Parses the parameters of a version 2 request.
    pub fn parse(query: &str) -> Result<Self, Answer> {
        let since = single(query, "since", "since must be given only once")?;
        let generation = single(query, "generation", "generation must be given only once")?;
        let presence = single(query, "presence", "presence must be given only once")?;
        let replaces = single(query, "replaces", "replaces must be given only once")?;
        let resume = match (since, generation) {
            (None, None) => None,
            (Some(since), Some(generation)) => Some(ResumePoint {
                since: Seq::new(number(&since).ok_or_else(|| {
                    Answer::bad_request("since must be a seq: an integer in decimal digits")
                })?),
                generation: Generation::from_str(&generation).map_err(|_| {
                    Answer::bad_request("generation must be 16 lower-case hex digits, as received")
                })?,
            }),
            _ => {
                return Err(Answer::bad_request(
                    "since and generation must be given together, or neither of them",
                ));
            }
        };
        if presence.as_ref().is_some_and(|presence| presence != "1") {
            return Err(Answer::bad_request("presence must be 1 if it is given"));
        }
        let replaces = replaces.map(|connection| {
            number(&connection).ok_or_else(|| {
                Answer::bad_request("replaces must be the id of a connection, as received")
            })
        });
        Ok(Self {
            resume,
            has_presence: presence.is_some(),
            replaces: replaces.transpose()?,
        })
    }
}

/// Returns a parameter that must not be repeated, or an error with the message `if_repeated`.
fn single(
    query: &str,
    name: &'static str,
    if_repeated: &'static str,
) -> Result<Option<String>, Answer> {
    let mut values = parameter(query, name);
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Answer::bad_request(if_repeated)),
    }
}

/// Parses decimal digits. `u64::from_str` would also accept a plus sign.
fn number(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests;
