//! The HTTP responses that end a connection (P2, P3).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use httpdate::HttpDate;
use serde_json::json;
use tungstenite::http::StatusCode;

/// An answer after which the connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    status: StatusCode,
    fields: Vec<(&'static str, String)>,
    /// Empty if the answer has no content.
    content_type: &'static str,
    body: Cow<'static, [u8]>,
    /// The length of the part of the body that the caller sends after this answer.
    further_bytes: usize,
    has_body: bool,
}

const JSON: &str = "application/json";

impl Answer {
    /// Creates a 401: the token is missing or refused.
    #[must_use]
    pub fn unauthorized(message: &str) -> Self {
        // RFC 9110 section 15.5.2 requires the challenge.
        Self::error(StatusCode::UNAUTHORIZED, message).with("WWW-Authenticate", "Bearer")
    }

    /// Creates a 500: the log cannot be written, or the server panicked.
    #[must_use]
    pub fn internal_server_error() -> Self {
        Self::error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the server cannot take writes, try again later",
        )
    }

    /// Creates a 503: the server is stopping or starting, or a limit is reached.
    #[must_use]
    pub fn unavailable(message: &str, retry_after_s: u32) -> Self {
        Self::error(StatusCode::SERVICE_UNAVAILABLE, message)
            .with("Retry-After", &retry_after_s.to_string())
    }

    /// Creates a 408: the head was not complete in time.
    #[must_use]
    pub fn request_timeout() -> Self {
        Self::error(
            StatusCode::REQUEST_TIMEOUT,
            "the request head took too long",
        )
    }

    /// Creates the answer to `/healthz` or `/readyz`: 200 or 503 with `{"status":state}`.
    #[must_use]
    pub fn health(ok: bool, head_only: bool, state: &str) -> Self {
        let status = if ok {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let body = json!({ "status": state }).to_string();
        let answer = Self {
            status,
            ..Self::content(JSON, body.into_bytes())
        };
        answer.for_method(head_only)
    }

    /// Creates a 200 with a body of the given media type.
    #[must_use]
    pub fn content(content_type: &'static str, body: impl Into<Cow<'static, [u8]>>) -> Self {
        Self {
            status: StatusCode::OK,
            fields: Vec::new(),
            content_type,
            body: body.into(),
            further_bytes: 0,
            has_body: true,
        }
    }

    /// Creates a 200 with a JSON body.
    #[must_use]
    pub fn json(body: Vec<u8>) -> Self {
        Self::content(JSON, body)
    }

    /// Creates a 200 with JSON that begins with `start`.
    ///
    /// The caller sends the remaining `further_bytes` of the JSON, except in response to HEAD.
    #[must_use]
    pub fn json_start(start: Vec<u8>, further_bytes: usize) -> Self {
        Self {
            further_bytes,
            ..Self::json(start)
        }
    }

    /// Creates a 304: the client already has the current version.
    #[must_use]
    pub fn not_modified() -> Self {
        Self {
            status: StatusCode::NOT_MODIFIED,
            ..Self::content("", Vec::new())
        }
    }

    /// Creates a 204 that lists the permissions of a page from another origin: reads with a token
    /// (P86).
    #[must_use]
    pub fn preflight() -> Self {
        let answer = Self {
            status: StatusCode::NO_CONTENT,
            ..Self::content("", Vec::new())
        };
        answer
            .with("Access-Control-Allow-Methods", "GET, HEAD")
            .with(
                "Access-Control-Allow-Headers",
                "Authorization, If-None-Match",
            )
            .with("Access-Control-Max-Age", "86400")
    }

    /// Creates a 403: the origin or the source of the request is not allowed.
    #[must_use]
    pub fn forbidden(message: &str) -> Self {
        Self::error(StatusCode::FORBIDDEN, message)
    }

    /// Creates a 404 with a generic message.
    #[must_use]
    pub fn not_found() -> Self {
        Self::not_found_as("there is nothing at this path")
    }

    /// Creates a 404 with a specific message.
    #[must_use]
    pub fn not_found_as(message: &str) -> Self {
        Self::error(StatusCode::NOT_FOUND, message)
    }

    /// Returns whether the answer is sent with its body.
    #[must_use]
    pub fn has_body(&self) -> bool {
        self.has_body
    }

    /// Adds a header field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.fields.push((name, value.to_owned()));
        self
    }

    /// Drops the body if the request was a HEAD. The fields remain, including `Content-Length` (RFC
    /// 9110 section 9.3.2).
    #[must_use]
    pub fn for_method(self, head_only: bool) -> Self {
        Self {
            has_body: self.has_body && !head_only,
            ..self
        }
    }

    pub(super) fn bad_request(message: &str) -> Self {
        Self::error(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn method_not_allowed(allowed: &str) -> Self {
        Self::error(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not allow the method",
        )
        .with("Allow", allowed)
    }

    pub(super) fn upgrade_required(message: &str) -> Self {
        Self::error(StatusCode::UPGRADE_REQUIRED, message)
            .with("Upgrade", "websocket")
            .with("Sec-WebSocket-Version", "13")
    }

    pub(super) fn header_fields_too_large(message: &str) -> Self {
        Self::error(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message)
    }

    fn error(status: StatusCode, message: &str) -> Self {
        let body = json!({ "error": reason_phrase(status), "message": message }).to_string();
        Self {
            status,
            ..Self::content(JSON, body.into_bytes())
        }
    }

    /// Returns the status code, 200 to 599.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// Returns the error message for the log, or an empty string if the request succeeded.
    #[must_use]
    pub fn message(&self) -> String {
        if self.status.is_success() || self.content_type != JSON {
            return String::new();
        }
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let message = [&body["message"], &body["status"]];
        let mut texts = message.iter().filter_map(|text| text.as_str());
        texts.next().unwrap_or_default().to_owned()
    }

    /// Appends the answer, except the bytes that the caller sends after it.
    ///
    /// `unix_us` is the current time, for the `Date` field (RFC 9110 section 6.6.1).
    pub fn encode(&self, unix_us: u64, out: &mut Vec<u8>) {
        // RFC 9110 section 7.8: a sender of Upgrade must list it in Connection, too.
        let has_upgrade = self.fields.iter().any(|(name, _)| *name == "Upgrade");
        let connection = if has_upgrade {
            "close, Upgrade"
        } else {
            "close"
        };
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nDate: {}\r\n",
            self.status.as_str(),
            reason_phrase(self.status),
            http_date(unix_us),
        );
        // RFC 9110 sections 8.6 and 15.4.5: a 204 or 304 must not announce the length of a body
        // that it does not have.
        if !self.content_type.is_empty() {
            let (content_type, body_bytes) =
                (self.content_type, self.body.len() + self.further_bytes);
            let _ = write!(
                head,
                "Content-Type: {content_type}\r\nContent-Length: {body_bytes}\r\n"
            );
        }
        let _ = write!(head, "Connection: {connection}\r\n");
        for (name, value) in &self.fields {
            for part in [name, ": ", value, "\r\n"] {
                head.push_str(part);
            }
        }
        head.push_str("\r\n");
        out.extend_from_slice(head.as_bytes());
        if self.has_body {
            out.extend_from_slice(&self.body);
        }
    }
}

/// Returns the time as an IMF-fixdate (RFC 9110 section 5.6.7), which ends with the year 9999.
fn http_date(unix_us: u64) -> HttpDate {
    const LAST_S: u64 = 253_402_300_799;
    let since_epoch = Duration::from_micros(unix_us).min(Duration::from_secs(LAST_S));
    HttpDate::from(UNIX_EPOCH + since_epoch)
}

fn reason_phrase(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &Answer, status: u16, head: &str, body: &str) {
        let mut out = Vec::new();
        answer.encode(1_000_000_000_999_999, &mut out);
        assert_eq!(answer.status(), status);
        let (line, fields) = head.split_once("\r\n").unwrap();
        let date = "Date: Sun, 09 Sep 2001 01:46:40 GMT";
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("HTTP/1.1 {line}\r\n{date}\r\n{fields}\r\n\r\n{body}")
        );
    }

    #[test]
    fn dates() {
        for (unix_s, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX / 1_000_000, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            let date = http_date((unix_s * 1_000_000).saturating_add(999_999));
            assert_eq!(date.to_string(), expected);
        }
    }

    /// P2, P3.
    #[test]
    fn answers() {
        let json = "Content-Type: application/json\r\nContent-Length:";
        for (answer, status, head, body) in [
            (
                Answer::unauthorized("the token has expired"),
                401,
                format!(
                    "401 Unauthorized\r\n{json} 58\r\nConnection: close\r\nWWW-Authenticate: Bearer"
                ),
                r#"{"error":"Unauthorized","message":"the token has expired"}"#,
            ),
            (
                Answer::internal_server_error(),
                500,
                format!("500 Internal Server Error\r\n{json} 92\r\nConnection: close"),
                concat!(
                    r#"{"error":"Internal Server Error","#,
                    r#""message":"the server cannot take writes, try again later"}"#
                ),
            ),
            (
                Answer::unavailable("draining \"now\"", 5),
                503,
                format!(
                    "503 Service Unavailable\r\n{json} 60\r\nConnection: close\r\nRetry-After: 5"
                ),
                r#"{"error":"Service Unavailable","message":"draining \"now\""}"#,
            ),
            (
                Answer::request_timeout(),
                408,
                format!("408 Request Timeout\r\n{json} 70\r\nConnection: close"),
                r#"{"error":"Request Timeout","message":"the request head took too long"}"#,
            ),
            (
                Answer::health(true, false, "ok"),
                200,
                format!("200 OK\r\n{json} 15\r\nConnection: close"),
                r#"{"status":"ok"}"#,
            ),
            (
                Answer::health(false, false, "draining"),
                503,
                format!("503 Service Unavailable\r\n{json} 21\r\nConnection: close"),
                r#"{"status":"draining"}"#,
            ),
            (
                Answer::health(true, true, "ok"),
                200,
                format!("200 OK\r\n{json} 15\r\nConnection: close"),
                "",
            ),
            (
                Answer::upgrade_required("x"),
                426,
                format!(
                    "426 Upgrade Required\r\n{json} 42\r\nConnection: close, Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Version: 13"
                ),
                r#"{"error":"Upgrade Required","message":"x"}"#,
            ),
        ] {
            check(&answer, status, &head, body);
        }
    }
}
