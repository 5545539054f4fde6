//! Requests for pages, and what their heads say about where they come from.

use super::head::Head;
use super::host::UriHost;

/// A request for a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The page.
    pub page: WebPage,
    /// Where it comes from, as far as its head says.
    pub provenance: Provenance,
    /// The entity tags of what the client has of it (RFC 9110 section 13.1.2).
    pub if_none_match: Option<String>,
    /// A HEAD request: the answer has no body.
    pub head_only: bool,
}

/// What has an address of its own, beside the workspaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebPage {
    /// The console.
    Console,
    /// Its style sheet.
    ConsoleStyle,
    /// Its script.
    ConsoleScript,
    /// What its form is filled with.
    ConsoleSession,
    /// What its plots show.
    ConsoleStats,
    /// What monitoring reads.
    Metrics,
    /// The client as a JavaScript module, for everybody's pages.
    ClientModule,
}

/// The paths of the pages.
pub(super) const PAGES: [(&str, WebPage); 7] = [
    ("/", WebPage::Console),
    ("/console.css", WebPage::ConsoleStyle),
    ("/console.mjs", WebPage::ConsoleScript),
    ("/console/session.json", WebPage::ConsoleSession),
    ("/console/stats.json", WebPage::ConsoleStats),
    ("/metrics", WebPage::Metrics),
    ("/client.mjs", WebPage::ClientModule),
];

/// What a request head says about where the request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// A proxy has passed it on.
    pub is_forwarded: bool,
    /// It names this machine as its host by a name that no other machine can have.
    pub is_host_loopback: bool,
}

impl Provenance {
    /// `target_host` is the host in the request target, if that has one: it must be a name of this
    /// machine, and so must the `Host` field.
    pub(super) fn of(head: &Head<'_>, target_host: Option<UriHost<'_>>) -> Self {
        let host_field = head.values("host").next().and_then(UriHost::parse);
        Self {
            is_forwarded: head.fields.iter().any(|field| is_of_proxy(field.name)),
            is_host_loopback: host_field.is_some_and(UriHost::is_loopback)
                && target_host.is_none_or(UriHost::is_loopback),
        }
    }
}

/// Fields that proxies add. Beside RFC 7239 and 9110, each proxy has had a name of its own; every
/// name that begins with `X-Forwarded` is one of them.
const OF_PROXIES: [&str; 12] = [
    "cf-connecting-ip",
    "cf-ray",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "true-client-ip",
    "via",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-original-forwarded-for",
    "x-real-ip",
];

fn is_of_proxy(name: &str) -> bool {
    const PREFIX: &str = "x-forwarded";
    let start = name.get(..PREFIX.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
        || OF_PROXIES
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenances() {
        for (fields, target_host, is_forwarded, is_host_loopback) in [
            (&[("Host", "localhost")][..], None, false, true),
            (&[("Host", "[::1]:80")], None, false, true),
            (&[("Host", "localhost")], Some("127.0.0.1"), false, true),
            (&[("Host", "localhost")], Some("evil.example"), false, false),
            (&[("Host", "evil.example")], Some("localhost"), false, false),
            (&[("Host", "evil.example")], None, false, false),
            (&[("Host", "")], None, false, false),
            (&[], None, false, false),
            (&[("Host", "localhost"), ("Origin", "x")], None, false, true),
            (&[("X-Forwarded", "")], None, true, false),
            (&[("x-forwarded-for", "")], None, true, false),
            (&[("X-FORWARDED-HOST", "")], None, true, false),
            (&[("X-Forwarded-Proto", "")], None, true, false),
            (&[("X-Forwarde", "")], None, false, false),
            (&[("Forwarded", "")], None, true, false),
            (&[("Via", "")], None, true, false),
            (&[("X-Real-IP", "")], None, true, false),
            (&[("X-Client-IP", "")], None, true, false),
            (&[("CF-Connecting-IP", "")], None, true, false),
            (&[("True-Client-IP", "")], None, true, false),
            (&[("X", ""), ("Fastly-Client-IP", "")], None, true, false),
        ] {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| httparse::Header {
                    name,
                    value: value.as_bytes(),
                })
                .collect();
            let head = Head {
                method: "GET",
                target: "/metrics",
                is_http_1_1: true,
                fields: &fields,
            };
            let target_host = target_host.and_then(|host: &str| UriHost::parse(host.as_bytes()));
            let expected = Provenance {
                is_forwarded,
                is_host_loopback,
            };
            assert_eq!(Provenance::of(&head, target_host), expected, "{fields:?}");
        }
    }
}
