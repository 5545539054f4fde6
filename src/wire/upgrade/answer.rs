//! The HTTP answers that end a connection.

use serde_json::json;
use tungstenite::http::StatusCode;

/// An answer behind which the connection is closed. It has no `Date`: the wire does not know the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    status: StatusCode,
    fields: Vec<(&'static str, String)>,
    body: String,
    has_body: bool,
}

impl Answer {
    /// 401: no token, or one that is refused.
    #[must_use]
    pub fn unauthorized(message: &str) -> Self {
        // RFC 9110 section 15.5.2 wants the challenge.
        Self::error(StatusCode::UNAUTHORIZED, message).with("WWW-Authenticate", "Bearer")
    }

    /// 500: the log cannot be written, or serving has panicked.
    #[must_use]
    pub fn internal_server_error() -> Self {
        Self::error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the server cannot take writes, try again later",
        )
    }

    /// 503: draining, or over the connection limit.
    #[must_use]
    pub fn unavailable(message: &str, retry_after_s: u32) -> Self {
        Self::error(StatusCode::SERVICE_UNAVAILABLE, message)
            .with("Retry-After", &retry_after_s.to_string())
    }

    /// 408: the head was not finished in time.
    #[must_use]
    pub fn request_timeout() -> Self {
        Self::error(
            StatusCode::REQUEST_TIMEOUT,
            "the request head took too long",
        )
    }

    /// The answer of `/healthz` and `/readyz`: 200 or 503 with `{"status":state}`.
    #[must_use]
    pub fn health(ok: bool, head_only: bool, state: &str) -> Self {
        let status = if ok {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let body = json!({ "status": state }).to_string();
        Self {
            status,
            fields: Vec::new(),
            body,
            has_body: !head_only,
        }
    }

    pub(super) fn bad_request(message: &str) -> Self {
        Self::error(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn not_found() -> Self {
        Self::error(StatusCode::NOT_FOUND, "there is nothing at this path")
    }

    pub(super) fn method_not_allowed(allowed: &str) -> Self {
        Self::error(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not take the method",
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

    /// The answer to a HEAD request: the same fields, its `Content-Length` too, and no body.
    pub(super) fn without_body(self) -> Self {
        Self {
            has_body: false,
            ..self
        }
    }

    fn error(status: StatusCode, message: &str) -> Self {
        let body = json!({ "error": reason_phrase(status), "message": message }).to_string();
        Self {
            status,
            fields: Vec::new(),
            body,
            has_body: true,
        }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.fields.push((name, value.to_owned()));
        self
    }

    /// The status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// Appends the whole answer.
    pub fn encode(&self, out: &mut Vec<u8>) {
        // RFC 9110 section 7.8: who sends Upgrade names it in Connection too.
        let has_upgrade = self.fields.iter().any(|(name, _)| *name == "Upgrade");
        let connection = if has_upgrade {
            "close, Upgrade"
        } else {
            "close"
        };
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: {connection}\r\n",
            self.status.as_str(),
            reason_phrase(self.status),
            self.body.len(),
        );
        for (name, value) in &self.fields {
            for part in [name, ": ", value, "\r\n"] {
                head.push_str(part);
            }
        }
        head.push_str("\r\n");
        out.extend_from_slice(head.as_bytes());
        if self.has_body {
            out.extend_from_slice(self.body.as_bytes());
        }
    }
}

fn reason_phrase(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &Answer, status: u16, head: &str, body: &str) {
        let mut out = Vec::new();
        answer.encode(&mut out);
        assert_eq!(answer.status(), status);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("HTTP/1.1 {head}\r\n\r\n{body}")
        );
    }

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
                r#"{"error":"Internal Server Error","message":"the server cannot take writes, try again later"}"#,
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
                    "426 Upgrade Required\r\n{json} 42\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13"
                ),
                r#"{"error":"Upgrade Required","message":"x"}"#,
            ),
        ] {
            check(&answer, status, &head, body);
        }
    }
}
