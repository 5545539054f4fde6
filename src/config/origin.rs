//! The origins of `--allow-origin`, in the form that browsers send.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The example origins in error messages.
const EXAMPLE: &str = "such as https://app.example or http://localhost:3000";

/// Parses an origin and returns it as browsers serialize it: in lower case, without the default
/// port of its scheme (RFC 6454 section 6.2, WHATWG HTML "ASCII serialization of an origin").
///
/// A form that no browser sends is an error: it would never match, and the user could not tell why.
pub(super) fn origin(text: &str) -> Result<String, String> {
    if text == "null" {
        return Ok(text.to_owned());
    }
    if text.contains('*') {
        return Err(
            "wildcards are not supported: list each origin, or leave out --allow-origin to allow \
             all"
            .to_owned(),
        );
    }
    let Some((scheme, authority)) = text.split_once("://") else {
        return Err(format!("an origin must begin with a scheme, {EXAMPLE}"));
    };
    let scheme = scheme_of(scheme)?;
    if authority.contains(['/', '?', '#', '\\']) {
        return Err(format!(
            "browsers send an origin without a path or a trailing slash, {EXAMPLE}"
        ));
    }
    if authority.contains('@') {
        return Err("browsers send an origin without a user name or a password".to_owned());
    }
    let (host, port) = split_port(authority);
    let host = host_of(host)?;
    let default_port = match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let port = port.map(port_of).transpose()?;
    Ok(match port.filter(|port| Some(*port) != default_port) {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    })
}

/// Checks a scheme and returns it in lower case. Web pages use `http` or `https`; extensions and
/// apps use others.
fn scheme_of(scheme: &str) -> Result<String, String> {
    let scheme = scheme.to_ascii_lowercase();
    let mut bytes = scheme.bytes();
    let is_scheme = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    match scheme.as_str() {
        "ws" | "wss" => Err(format!(
            "use the origin of the page, which is never {scheme}://: write http{}",
            &scheme[2..]
        )),
        "file" => Err("pages opened from a file have the origin null: write null".to_owned()),
        _ if is_scheme => Ok(scheme),
        _ => Err(format!("an origin must begin with a scheme, {EXAMPLE}")),
    }
}

/// Splits an authority into the host and the port that follows the colon.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    let host_bytes = authority.find(']').map_or(0, |at| at + 1);
    match authority[host_bytes..].find(':') {
        Some(colon) => {
            let (host, port) = authority.split_at(host_bytes + colon);
            (host, Some(&port[1..]))
        }
        None => (authority, None),
    }
}

fn port_of(port: &str) -> Result<u16, String> {
    let number = port
        .parse()
        .ok()
        .filter(|number: &u16| number.to_string() == port);
    number.ok_or_else(|| {
        "the port must be a whole number from 0 to 65535; to use the default port, leave out the \
         colon too"
            .to_owned()
    })
}

fn host_of(host: &str) -> Result<String, String> {
    if host.is_empty() {
        return Err(format!("the host is missing: write an origin {EXAMPLE}"));
    }
    if !host.is_ascii() {
        return Err("browsers send a host in its ASCII form, which begins with xn--".to_owned());
    }
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']').and_then(|text| text.parse().ok());
        let malformed = || "the IPv6 address is malformed: write it as in http://[::1]:3000";
        return Ok(format!("[{}]", plain_v6(address.ok_or_else(malformed)?)));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !host.bytes().all(is_name) {
        return Err(format!("the host is malformed: write an origin {EXAMPLE}"));
    }
    // Browsers parse 127.1 and 0x7f000001 as IPv4 addresses and send them as four numbers (WHATWG
    // URL, "ends in a number").
    let last = host.strip_suffix('.').unwrap_or(host).rsplit('.').next();
    let is_address = last.is_some_and(|label| {
        label.starts_with(|char: char| char.is_ascii_digit()) && is_number(label)
    });
    if is_address && host.parse::<Ipv4Addr>().is_err() {
        return Err("browsers send an IPv4 address as four decimal numbers".to_owned());
    }
    Ok(host.to_ascii_lowercase())
}

fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or(label.strip_prefix("0X"));
    let is_hex = hex.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_hex || label.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns an IPv6 address in its shortest form, without embedded IPv4 notation (WHATWG URL, "IPv6
/// serializer").
fn plain_v6(address: Ipv6Addr) -> String {
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] => format!("::ffff:{high:x}:{low:x}"),
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        for (text, expected) in [
            ("https://app.example", "https://app.example"),
            ("HTTPS://App.Example:8443", "https://app.example:8443"),
            ("https://app.example:443", "https://app.example"),
            ("http://app.example:80", "http://app.example"),
            ("http://app.example:443", "http://app.example:443"),
            ("https://app.example:80", "https://app.example:80"),
            ("http://a:0", "http://a:0"),
            ("http://a_b.example.", "http://a_b.example."),
            (
                "http://xn--bcher-kva.example",
                "http://xn--bcher-kva.example",
            ),
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("http://1.example", "http://1.example"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("http://[0:0::1]:80", "http://[::1]"),
            ("http://[2001:DB8::7]", "http://[2001:db8::7]"),
            ("http://[::ffff:127.0.0.1]", "http://[::ffff:7f00:1]"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("null", "null"),
        ] {
            assert_eq!(origin(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn forms_that_no_browser_sends_are_refused() {
        for (text, reason) in [
            ("", "must begin with a scheme"),
            ("app.example", "must begin with a scheme"),
            ("//app.example", "must begin with a scheme"),
            ("://app.example", "must begin with a scheme"),
            ("1http://app.example", "must begin with a scheme"),
            ("localhost:3000", "must begin with a scheme"),
            ("NULL", "must begin with a scheme"),
            ("*", "wildcards are not supported"),
            ("https://*.app.example", "wildcards are not supported"),
            ("https://app.example/", "without a path"),
            ("https://app.example/a", "without a path"),
            ("https://app.example?", "without a path"),
            ("https://app.example#a", "without a path"),
            ("https://user@app.example", "without a user name"),
            ("wss://app.example", "write https"),
            ("ws://app.example", "write http"),
            ("file:///a", "null"),
            ("https://", "the host is missing"),
            ("https://:443", "the host is missing"),
            ("https://bücher.example", "xn--"),
            ("https://a b", "the host is malformed"),
            ("https://a%20b", "the host is malformed"),
            ("https://a,b", "the host is malformed"),
            ("https://app.example:", "the port"),
            ("https://app.example:0443", "the port"),
            ("https://app.example:+443", "the port"),
            ("https://app.example:65536", "the port"),
            ("https://app.example:https", "the port"),
            ("https://a:1:2", "the port"),
            ("http://127.1", "four decimal numbers"),
            ("http://0x7f000001", "four decimal numbers"),
            ("http://127.0.0.01", "four decimal numbers"),
            ("http://1.2.3.4.5", "four decimal numbers"),
            ("http://[::1", "IPv6"),
            ("http://[]", "IPv6"),
            ("http://[::1]a", "IPv6"),
            ("http://[fe80::1%25eth0]", "IPv6"),
        ] {
            let error = origin(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains('\n'), "expected one line: {error}");
        }
    }
}
