//! What the server shows of itself: the console, the client module, figures.
//!
//! The pages are files in this folder and part of the binary. Nothing on them comes from elsewhere: the policy that they are sent
//! with (Content Security Policy Level 3) lets them load from this server alone, and forbids inline scripts and styles.

use serde_json::json;

use crate::admin::stats::ShardStats;
use crate::wire::upgrade::{Answer, Page};

pub mod stats;

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The pages of a server.
#[derive(Debug)]
pub struct Pages {
    has_console: bool,
    /// What the console's form is filled with.
    token: Option<String>,
}

impl Pages {
    /// The client module, and the console where it is asked for. `token` is given to everybody who opens that: it is for servers
    /// that only this machine reaches.
    #[must_use]
    pub fn new(has_console: bool, token: Option<String>) -> Self {
        Self { has_console, token }
    }

    /// The answer to a request for a page.
    #[must_use]
    pub fn answer(&self, page: Page, uptime_us: u64, shards: &[ShardStats]) -> Answer {
        if page == Page::ClientModule {
            let module = include_bytes!("client.mjs").as_slice();
            return content("text/javascript; charset=utf-8", module)
                .with("Access-Control-Allow-Origin", "*")
                .with("Cross-Origin-Resource-Policy", "cross-origin");
        }
        if !self.has_console {
            return Answer::not_found();
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
                fresh(session.to_string().into_bytes())
            }
            Page::ConsoleStats | Page::ClientModule => fresh(stats::to_json(uptime_us, shards)),
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

fn fresh(body: Vec<u8>) -> Answer {
    Answer::json(body)
        .with("Cache-Control", "no-store")
        .with("X-Content-Type-Options", "nosniff")
}
