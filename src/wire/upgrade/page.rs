//! Requests for pages and files, and their provenance (P92 to P94).

use super::head::Head;
use super::host::UriHost;

/// A well-formed request for a page or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The page or file.
    pub page: WebPage,
    /// The source of the request, as far as the head reveals it.
    pub provenance: Provenance,
    /// The entity tags of the versions that the client already has (RFC 9110 section 13.1.2).
    pub if_none_match: Option<String>,
    /// Whether it is a HEAD request, whose answer has no body.
    pub head_only: bool,
}

/// A page or file that the server provides. Each has its own path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebPage {
    /// The console: HTML.
    Console,
    /// The style sheet of the console.
    ConsoleStyle,
    /// The script of the console.
    ConsoleScript,
    /// The initial values of the console's form, as JSON.
    ConsoleSession,
    /// The figures that the console plots, as JSON.
    ConsoleStats,
    /// The Prometheus metrics.
    Metrics,
    /// The client library as a JavaScript module, for pages of any origin.
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

/// The source of a request, as far as its head reveals it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Whether a proxy has forwarded the request.
    pub is_forwarded: bool,
    /// Whether the requested host can only be this machine.
    pub is_host_loopback: bool,
}

impl Provenance {
    /// Reads the provenance from a head.
    ///
    /// `target_host` is the host in the request target, if there is one. `is_host_loopback` is true
    /// only if both `target_host` and the `Host` field can only be this machine.
    pub(super) fn of(head: &Head<'_>, target_host: Option<UriHost<'_>>) -> Self {
        let host_field = head.values("host").next().and_then(UriHost::parse);
        Self {
            is_forwarded: head.fields.iter().any(|field| is_proxy_field(field.name)),
            is_host_loopback: host_field.is_some_and(UriHost::is_loopback)
                && target_host.is_none_or(UriHost::is_loopback),
        }
    }
}

/// Header fields that proxies add: those of RFC 7239 and RFC 9110, and vendor-specific ones. All
/// names that begin with `X-Forwarded` count, too.
const PROXY_FIELDS: [&str; 12] = [
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

fn is_proxy_field(name: &str) -> bool {
    const PREFIX: &str = "x-forwarded";
    let start = name.get(..PREFIX.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
        || PROXY_FIELDS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P94.
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
