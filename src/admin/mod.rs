//! The server's pages (the console, the client module and the metrics), and the rules for who may
//! access them.
//!
//! The pages are files in this folder that are compiled into the binary. They load nothing from
//! other servers: the policy that they are sent with (Content Security Policy Level 3) allows
//! loading from this server only, and forbids inline scripts and styles.
//!
//! # Access
//!
//! | what | on `--port` | on `--admin-port` |
//! | --- | --- | --- |
//! | `/client.mjs` | everyone | everyone |
//! | `/metrics` | this machine; everyone with `--metrics-public` | see below |
//! | the console: `/`, `/console…` | this machine | see below |
//! | `/console/session.json` with the token of `--dev` | this machine | this machine |
//!
//! *This machine* ([`Visitor::check_is_here`]) means that the connection comes from a loopback
//! address, no proxy has forwarded the request, and the request names a loopback host. The last
//! condition keeps out pages of another site whose name has been made to resolve to 127.0.0.1 (DNS
//! rebinding): the browser treats this server as that site and lets the site's scripts read the
//! responses, but it still sends the site's name in `Host`.
//!
//! An admin port answers every request that reaches its address, including requests through
//! proxies, because an operator has set those up. If the address is a loopback address, every page
//! that a browser on this machine opens can reach it too, so the host must be a loopback host. On
//! any other address the host may be any name, because monitoring systems scrape by names that only
//! their network knows; keep such an address out of reach of browsers.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use crate::core::shard::contract::ListenerKind;
use crate::status::Status;
use crate::wire::upgrade::{Answer, PageRequest, Provenance, WebPage, matches_tag};

mod console_stats;
pub mod metrics;

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The pages of a server.
#[derive(Debug)]
pub struct Pages {
    has_console: bool,
    /// The token that the console fills into its form.
    token: Mutex<Option<String>>,
    /// The address of the admin port, if there is one.
    admin_host: Option<IpAddr>,
    are_metrics_public: bool,
    files: Files,
}

/// The sender of a request for a page, as far as the connection identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visitor {
    /// The listener that accepted its connection.
    pub listener: ListenerKind,
    /// Whether it connected from an address of this machine.
    pub is_local: bool,
}

impl Visitor {
    /// Checks that a request came from this machine and was addressed to it. The error says which
    /// condition failed.
    pub fn check_is_here(self, provenance: Provenance) -> Result<(), &'static str> {
        if !self.is_local {
            return Err("the request comes from another machine");
        }
        if provenance.is_forwarded {
            return Err("a proxy forwarded the request");
        }
        check_host(provenance)
    }
}

fn check_host(provenance: Provenance) -> Result<(), &'static str> {
    provenance
        .is_host_loopback
        .then_some(())
        .ok_or("Host is not localhost, 127.0.0.1 or [::1]")
}

impl Pages {
    /// Creates the pages: the client module, and the console if it is enabled. Every visitor from
    /// this machine receives `token`, so pass one only if no other machine can reach the server.
    #[must_use]
    pub fn new(has_console: bool, token: Option<String>) -> Self {
        Self {
            has_console,
            token: Mutex::new(token),
            admin_host: None,
            are_metrics_public: false,
            files: Files::new(),
        }
    }

    /// Moves the console and the metrics to an admin port on this address, if there is one. They
    /// are then no longer available on the public port.
    #[must_use]
    pub fn with_admin_host(self, admin_host: Option<IpAddr>) -> Self {
        Self { admin_host, ..self }
    }

    /// Sets whether the metrics on the public port are available to everyone or only to this
    /// machine.
    #[must_use]
    pub fn with_public_metrics(self, are_metrics_public: bool) -> Self {
        Self {
            are_metrics_public,
            ..self
        }
    }

    /// Replaces the token, if there is one, because the secret that signs it may have changed.
    pub fn renew_token(&self, make: impl FnOnce() -> String) {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if token.is_some() {
            *token = Some(make());
        }
    }

    fn token(&self) -> Option<String> {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.clone()
    }

    /// Returns the answer to a request for a page.
    #[must_use]
    pub fn answer(
        &self,
        request: &PageRequest,
        visitor: Visitor,
        uptime_us: u64,
        status: &Status,
    ) -> Answer {
        let page = request.page;
        if page == WebPage::ClientModule {
            return self
                .files
                .client_module
                .answer(request)
                .with("Access-Control-Allow-Origin", "*")
                .with("Cross-Origin-Resource-Policy", "cross-origin");
        }
        let is_elsewhere = self.admin_host.is_some() && visitor.listener == ListenerKind::Public;
        if is_elsewhere {
            return Answer::not_found();
        }
        if page != WebPage::Metrics && !self.has_console {
            return match page {
                WebPage::Console => {
                    Answer::not_found_as("the console is off: start with --console")
                }
                _ => Answer::not_found(),
            };
        }
        if let Err(reason) = self.check(request, visitor) {
            let remedy = match page {
                WebPage::Metrics => "--admin-port or --metrics-public",
                _ => "--admin-port",
            };
            return Answer::forbidden(&format!(
                "this page is only available on the server's own machine, and {reason}: use \
                 {remedy} to make it available to others"
            ));
        }
        let answer = match page {
            WebPage::Metrics => {
                return fresh(metrics::CONTENT_TYPE, metrics::text(status, uptime_us));
            }
            WebPage::Console => self.files.console.answer(request),
            WebPage::ConsoleStyle => self.files.console_style.answer(request),
            WebPage::ConsoleScript => self.files.console_script.answer(request),
            WebPage::ConsoleSession => {
                let mut session = json!({ "workspace": "demo" });
                if let Some(token) = self.token() {
                    session["token"] = json!(token);
                }
                fresh_json(session.to_string().into_bytes())
            }
            WebPage::ConsoleStats | WebPage::ClientModule => {
                fresh_json(console_stats::to_json(uptime_us, &status.stats))
            }
        };
        answer
            .with("Content-Security-Policy", CONTENT_SECURITY_POLICY)
            .with("Cross-Origin-Resource-Policy", "same-origin")
            .with("Referrer-Policy", "no-referrer")
    }

    /// Applies the access rules of the table at the top of this module to a page that is not
    /// public.
    fn check(&self, request: &PageRequest, visitor: Visitor) -> Result<(), &'static str> {
        let PageRequest {
            page, provenance, ..
        } = *request;
        match visitor.listener {
            ListenerKind::Public if page == WebPage::Metrics && self.are_metrics_public => Ok(()),
            ListenerKind::Public => visitor.check_is_here(provenance),
            ListenerKind::Admin if page == WebPage::ConsoleSession && self.token().is_some() => {
                visitor.check_is_here(provenance)
            }
            ListenerKind::Admin if self.admin_host.is_some_and(|host| host.is_loopback()) => {
                check_host(provenance)
            }
            ListenerKind::Admin => Ok(()),
        }
    }
}

/// The files that are compiled into the binary.
#[derive(Debug)]
struct Files {
    client_module: PageFile,
    console: PageFile,
    console_style: PageFile,
    console_script: PageFile,
}

impl Files {
    fn new() -> Self {
        const SCRIPT: &str = "text/javascript; charset=utf-8";
        const STYLE: &str = "text/css; charset=utf-8";
        const HTML: &str = "text/html; charset=utf-8";
        Self {
            client_module: PageFile::new(SCRIPT, include_bytes!("client.mjs")),
            console: PageFile::new(HTML, include_bytes!("console/index.html")),
            console_style: PageFile::new(STYLE, include_bytes!("console/console.css")),
            console_script: PageFile::new(SCRIPT, include_bytes!("console/console.mjs")),
        }
    }
}

#[derive(Debug)]
struct PageFile {
    content_type: &'static str,
    bytes: &'static [u8],
    entity_tag: String,
}

impl PageFile {
    fn new(content_type: &'static str, bytes: &'static [u8]) -> Self {
        let entity_tag = format!("\"{:x}-{:08x}\"", bytes.len(), crc32c::crc32c(bytes));
        Self {
            content_type,
            bytes,
            entity_tag,
        }
    }

    fn answer(&self, request: &PageRequest) -> Answer {
        let list = request.if_none_match.as_deref();
        let answer = if list.is_some_and(|list| matches_tag(list, &self.entity_tag)) {
            Answer::not_modified()
        } else {
            Answer::content(self.content_type, self.bytes)
        };
        // A newer server has newer files, so a browser must check each time whether its copy is
        // current.
        answer
            .with("ETag", &self.entity_tag)
            .with("Cache-Control", "no-cache")
            .with("X-Content-Type-Options", "nosniff")
    }
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

    const HERE: Provenance = Provenance {
        is_forwarded: false,
        is_host_loopback: true,
    };
    const PROXIED: Provenance = Provenance {
        is_forwarded: true,
        ..HERE
    };
    const REBOUND: Provenance = Provenance {
        is_host_loopback: false,
        ..HERE
    };

    fn request(page: WebPage, provenance: Provenance) -> PageRequest {
        PageRequest {
            page,
            provenance,
            if_none_match: None,
            head_only: false,
        }
    }

    #[test]
    fn local_visitors() {
        for (is_local, provenance, reason) in [
            (true, HERE, None),
            (false, HERE, Some("another machine")),
            (true, PROXIED, Some("a proxy")),
            (true, REBOUND, Some("Host is not localhost")),
        ] {
            for listener in [ListenerKind::Public, ListenerKind::Admin] {
                let found = Visitor { listener, is_local }.check_is_here(provenance);
                match (found, reason) {
                    (Ok(()), None) => {}
                    (Err(found), Some(reason)) => assert!(found.contains(reason), "{found}"),
                    (found, reason) => panic!("expected {reason:?}, got {found:?}"),
                }
            }
        }
    }

    /// Checks the status codes of the metrics, the console, the session and the client module for
    /// this peer and listener.
    fn check(
        pages: &Pages,
        listener: ListenerKind,
        is_local: bool,
        provenance: Provenance,
        statuses: [u16; 4],
    ) {
        let status = Status::new(1, 1);
        let visitor = Visitor { listener, is_local };
        let found = [
            WebPage::Metrics,
            WebPage::Console,
            WebPage::ConsoleSession,
            WebPage::ClientModule,
        ]
        .map(|page| {
            let answer = pages.answer(&request(page, provenance), visitor, 0, &status);
            answer.status()
        });
        assert_eq!(found, statuses, "{listener:?} {is_local} {provenance:?}");
        // The console is visible either completely or not at all.
        for page in [
            WebPage::ConsoleStyle,
            WebPage::ConsoleScript,
            WebPage::ConsoleStats,
        ] {
            let answer = pages.answer(&request(page, provenance), visitor, 0, &status);
            assert_eq!(answer.status(), statuses[1], "{page:?}");
        }
    }

    #[test]
    fn each_page_is_served_only_to_its_audience() {
        use ListenerKind::{Admin, Public};
        let host = |text: &str| Some(text.parse().unwrap());
        let public = || Pages::new(true, None);
        let admin_here = || public().with_admin_host(host("127.0.0.1"));
        let admin_far = || public().with_admin_host(host("10.0.0.1"));
        let dev = || Pages::new(true, Some("token".into()));
        let dev_admin = || dev().with_admin_host(host("::1"));
        let open = || public().with_public_metrics(true);
        let bare = || Pages::new(false, None);
        let (near, far) = (true, false);
        for (pages, listener, is_local, provenance, statuses) in [
            (public(), Public, near, HERE, [200, 200, 200, 200]),
            (public(), Public, near, PROXIED, [403, 403, 403, 200]),
            (public(), Public, near, REBOUND, [403, 403, 403, 200]),
            (public(), Public, far, HERE, [403, 403, 403, 200]),
            (bare(), Public, near, HERE, [200, 404, 404, 200]),
            (bare(), Public, far, HERE, [403, 404, 404, 200]),
            (open(), Public, near, REBOUND, [200, 403, 403, 200]),
            (open(), Public, far, PROXIED, [200, 403, 403, 200]),
            (dev(), Public, near, HERE, [200, 200, 200, 200]),
            (dev(), Public, near, REBOUND, [403, 403, 403, 200]),
            (admin_here(), Public, near, HERE, [404, 404, 404, 200]),
            (admin_here(), Admin, near, HERE, [200, 200, 200, 200]),
            (admin_here(), Admin, near, PROXIED, [200, 200, 200, 200]),
            (admin_here(), Admin, near, REBOUND, [403, 403, 403, 200]),
            (admin_far(), Admin, far, PROXIED, [200, 200, 200, 200]),
            (admin_far(), Admin, far, REBOUND, [200, 200, 200, 200]),
            (dev_admin(), Admin, near, HERE, [200, 200, 200, 200]),
            (dev_admin(), Admin, near, PROXIED, [200, 200, 403, 200]),
            (dev_admin(), Admin, near, REBOUND, [403, 403, 403, 200]),
        ] {
            check(&pages, listener, is_local, provenance, statuses);
        }
    }

    #[test]
    fn each_file_has_its_own_entity_tag() {
        let files = Files::new();
        let files = [
            files.client_module,
            files.console,
            files.console_style,
            files.console_script,
        ];
        for file in &files {
            let same = files
                .iter()
                .filter(|other| other.entity_tag == file.entity_tag);
            assert_eq!(same.count(), 1, "{}", file.entity_tag);
            let mut request = request(WebPage::Console, HERE);
            for (list, status) in [(file.entity_tag.as_str(), 304), ("\"x\"", 200)] {
                request.if_none_match = Some(list.to_owned());
                assert_eq!(file.answer(&request).status(), status);
            }
        }
    }

    #[test]
    fn only_an_existing_token_is_renewed() {
        for (token, expected) in [(None, None), (Some("old"), Some("new"))] {
            let pages = Pages::new(true, token.map(str::to_owned));
            pages.renew_token(|| "new".into());
            assert_eq!(pages.token().as_deref(), expected);
        }
    }
}
