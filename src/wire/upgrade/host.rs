//! The host of a request (P5, RFC 9112 section 3.2, RFC 3986 section 3.2.2).

// Imported from `core` rather than from `std::net`, which also has sockets.
use core::net::{Ipv4Addr, Ipv6Addr};

/// The `uri-host` of a request, without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UriHost<'a> {
    /// A name or an IPv4 address. It may be empty.
    Name(&'a str),
    /// An IPv6 address.
    V6(Ipv6Addr),
    /// An address of a future IP version (`IPvFuture`).
    Future,
}

impl<'a> UriHost<'a> {
    /// Parses `uri-host [ ":" port ]`: the value of `Host`, or the authority of a target. Returns
    /// `None` if the value does not have that form. User information is not allowed.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let value = str::from_utf8(value).ok()?;
        let (host, rest) = if let Some(literal) = value.strip_prefix('[') {
            let (address, rest) = literal.split_once(']')?;
            (Self::literal(address)?, rest)
        } else {
            let (name, rest) = value.split_at(value.find(':').unwrap_or(value.len()));
            (is_reg_name(name).then_some(Self::Name(name))?, rest)
        };
        let port = match rest.strip_prefix(':') {
            Some(port) => port,
            None if rest.is_empty() => "",
            None => return None,
        };
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
        is_port.then_some(host)
    }

    fn literal(address: &str) -> Option<Self> {
        if let Ok(address) = address.parse() {
            return Some(Self::V6(address));
        }
        let (version, rest) = address.strip_prefix(['v', 'V'])?.split_once('.')?;
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_future = !version.is_empty()
            && is_hex(version)
            && !rest.is_empty()
            && rest.bytes().all(|byte| byte == b':' || is_plain(byte));
        is_future.then_some(Self::Future)
    }

    pub fn is_empty(self) -> bool {
        self == Self::Name("")
    }

    /// Returns whether the host is a name or address that can only refer to this machine.
    ///
    /// This check detects DNS rebinding: if a page's own domain name is made to point to this
    /// machine, the page's requests still name its own host.
    pub fn is_loopback(self) -> bool {
        match self {
            Self::Name(name) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                let is_address = name
                    .parse()
                    .is_ok_and(|address: Ipv4Addr| address.is_loopback());
                // RFC 6761 section 6.3 reserves `localhost` and all its subdomains.
                let label = name.rsplit('.').next().unwrap_or_default();
                is_address || label.eq_ignore_ascii_case("localhost")
            }
            Self::V6(address) => address.to_canonical().is_loopback(),
            Self::Future => false,
        }
    }
}

/// Returns whether the text is a `reg-name`: `*( unreserved / pct-encoded / sub-delims )`.
fn is_reg_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        let is_good = match byte {
            b'%' => [bytes.next(), bytes.next()]
                .iter()
                .all(|digit| digit.is_some_and(|digit| digit.is_ascii_hexdigit())),
            byte => is_plain(byte),
        };
        if !is_good {
            return false;
        }
    }
    true
}

/// Returns whether the byte is `unreserved / sub-delims` (RFC 3986 section 2).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P5.
    #[test]
    fn hosts() {
        for (value, is_good) in [
            ("", true),
            (":80", true),
            ("a", true),
            ("a.example.", true),
            ("a_b-c~d", true),
            ("a,b;c=d!", true),
            ("%C3%A4", true),
            ("xn--bcher-kva.example:8443", true),
            ("127.0.0.1:8080", true),
            ("999.0.0.1", true),
            ("a:", true),
            ("a:000080", true),
            ("[::1]", true),
            ("[::1]:", true),
            ("[2001:DB8::7]:65536", true),
            ("[::ffff:127.0.0.1]", true),
            ("[v1.a:b]", true),
            ("a/b", false),
            ("a b", false),
            ("a, b", false),
            ("a\tb", false),
            ("user@a", false),
            ("user:password@a", false),
            ("a?b", false),
            ("a#b", false),
            ("a\\b", false),
            ("<a>", false),
            ("\"a\"", false),
            ("a:b", false),
            ("a:-1", false),
            ("a:80:81", false),
            ("::1", false),
            ("%", false),
            ("%4", false),
            ("%zz", false),
            ("ä", false),
            ("[", false),
            ("[]", false),
            ("[::1", false),
            ("::1]", false),
            ("[::1]80", false),
            ("[::1]]", false),
            ("[fe80::1%25eth0]", false),
            ("[127.0.0.1]", false),
            ("[1:2:3:4:5:6:7:8:9]", false),
            ("[v.a]", false),
            ("[v1.]", false),
            ("[v1]", false),
            ("[vg.a]", false),
        ] {
            assert_eq!(
                UriHost::parse(value.as_bytes()).is_some(),
                is_good,
                "{value}"
            );
        }
        assert_eq!(UriHost::parse(b"\xe4"), None);
    }

    /// P94.
    #[test]
    fn loopback_host_names() {
        for (value, is_loopback) in [
            ("localhost", true),
            ("LocalHost:80", true),
            ("localhost.", true),
            ("app.localhost:3000", true),
            ("127.0.0.1", true),
            ("127.255.0.3:80", true),
            ("[::1]:80", true),
            ("[0:0:0:0:0:0:0:1]", true),
            ("[::ffff:7f00:1]", true),
            ("", false),
            (":80", false),
            ("localhost.example", false),
            ("notlocalhost", false),
            ("127.0.0.1.example", false),
            ("127.1", false),
            ("0127.0.0.1", false),
            ("0.0.0.0", false),
            ("192.168.0.1", false),
            ("[::]", false),
            ("[::2]", false),
            ("[v1.localhost]", false),
            ("%6cocalhost", false),
        ] {
            let host = UriHost::parse(value.as_bytes()).expect("a host");
            assert_eq!(host.is_loopback(), is_loopback, "{value}");
        }
    }
}
