//! What the server shows of itself: the console, the client module, figures; and to whom.
//!
//! The pages are files in this folder and part of the binary. Nothing on them comes from elsewhere: the policy that they are sent
//! with (Content Security Policy Level 3) lets them load from this server alone, and forbids inline scripts and styles.

use serde_json::json;

use crate::io::post::{Door, Status};
use crate::wire::upgrade::{Answer, Page};

pub mod metrics;
pub mod stats;

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The pages of a server.
#[derive(Debug)]
pub struct Pages {
    has_console: bool,
    /// What the console's form is filled with.
    token: Option<String>,
    has_admin_port: bool,
    are_metrics_public: bool,
}

/// Who asks for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visitor {
    /// Where it came in.
    pub door: Door,
    /// Its address is one of this machine.
    pub is_local: bool,
}

impl Pages {
    /// The client module, and the console where it is asked for. `token` is given to everybody who opens that: it is for servers
    /// that only this machine reaches.
    #[must_use]
    pub fn new(has_console: bool, token: Option<String>) -> Self {
        Self {
            has_console,
            token,
            has_admin_port: false,
            are_metrics_public: false,
        }
    }

    /// With a port of their own for the console and the metrics: they are on no other.
    #[must_use]
    pub fn with_admin_port(self, has_admin_port: bool) -> Self {
        Self {
            has_admin_port,
            ..self
        }
    }

    /// Where the metrics are on the port of the clients: they are for everybody there, and not for this machine alone.
    #[must_use]
    pub fn with_public_metrics(self, are_metrics_public: bool) -> Self {
        Self {
            are_metrics_public,
            ..self
        }
    }

    /// The answer to a request for a page.
    #[must_use]
    pub fn answer(&self, page: Page, visitor: Visitor, uptime_us: u64, status: &Status) -> Answer {
        if page == Page::ClientModule {
            let module = include_bytes!("client.mjs").as_slice();
            return content("text/javascript; charset=utf-8", module)
                .with("Access-Control-Allow-Origin", "*")
                .with("Cross-Origin-Resource-Policy", "cross-origin");
        }
        if self.has_admin_port && visitor.door == Door::Public {
            return Answer::not_found();
        }
        if let Page::Metrics { is_forwarded } = page {
            let is_near = visitor.is_local && !is_forwarded;
            if visitor.door == Door::Public && !is_near && !self.are_metrics_public {
                return Answer::forbidden(
                    "metrics are for this machine alone (--metrics-public, --admin-port)",
                );
            }
            return fresh(metrics::CONTENT_TYPE, metrics::text(status, uptime_us));
        }
        if !self.has_console {
            return match page {
                Page::Console => Answer::not_found_as("the console is off: start with --console"),
                _ => Answer::not_found(),
            };
        }
        let answer = match page {
            Page::Console => {
                let html = include_bytes!("console/index.html").as_slice();
                content("text/html; charset=utf-8", html)
            }
            Page::ConsoleStyle => {
                let css = include_bytes!("console/console.css").as_slice();
                content("text/css; charset=utf-8", css)
            }
            Page::ConsoleScript => {
                let script = include_bytes!("console/console.mjs").as_slice();
                content("text/javascript; charset=utf-8", script)
            }
            Page::ConsoleSession { is_local } => {
                let mut session = json!({ "workspace": "demo" });
                // A page whose own name was made to lead here (DNS rebinding) would be of this origin.
                if let Some(token) = self.token.as_ref().filter(|_| is_local) {
                    session["token"] = json!(token);
                }
                fresh_json(session.to_string().into_bytes())
            }
            Page::ConsoleStats | Page::ClientModule | Page::Metrics { .. } => {
                fresh_json(stats::to_json(uptime_us, &status.stats))
            }
        };
        answer
            .with("Content-Security-Policy", CONTENT_SECURITY_POLICY)
            .with("Cross-Origin-Resource-Policy", "same-origin")
            .with("Referrer-Policy", "no-referrer")
    }
}

fn content(content_type: &'static str, body: &'static [u8]) -> Answer {
    // A newer server has newer pages, and they are small.
    Answer::content(content_type, body)
        .with("Cache-Control", "no-cache")
        .with("X-Content-Type-Options", "nosniff")
}

fn fresh_json(body: Vec<u8>) -> Answer {
    fresh("application/json", body)
}

fn fresh(content_type: &'static str, body: Vec<u8>) -> Answer {
    Answer::content(content_type, body)
        .with("Cache-Control", "no-store")
        .with("X-Content-Type-Options", "nosniff")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_and_the_console_are_for_those_who_are_meant() {
        let status = Status::new(1, 1);
        let pages = || Pages::new(true, None);
        let near = (Door::Public, true, false);
        let forwarded = (Door::Public, true, true);
        let far = (Door::Public, false, false);
        let admin = (Door::Admin, false, false);
        for (pages, (door, is_local, is_forwarded), metrics, console) in [
            (pages(), near, 200, 200),
            (pages(), forwarded, 403, 200),
            (pages(), far, 403, 200),
            (pages().with_public_metrics(true), forwarded, 200, 200),
            (pages().with_public_metrics(true), far, 200, 200),
            (pages().with_admin_port(true), near, 404, 404),
            (pages().with_admin_port(true), admin, 200, 200),
            (
                Pages::new(false, None).with_admin_port(true),
                admin,
                200,
                404,
            ),
        ] {
            let visitor = Visitor { door, is_local };
            let status_of = |page| pages.answer(page, visitor, 0, &status).status();
            let found = [
                status_of(Page::Metrics { is_forwarded }),
                status_of(Page::Console),
                status_of(Page::ClientModule),
            ];
            assert_eq!(
                found,
                [metrics, console, 200],
                "{pages:?} {visitor:?} {is_forwarded}"
            );
        }
    }
}
