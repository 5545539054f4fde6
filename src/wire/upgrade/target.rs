//! The request target (RFC 9112 section 3.2): splitting and decoding its path and query.

use percent_encoding::percent_decode_str;

use super::host::UriHost;
use crate::limits::{USER_ID_BYTES_MAX, WORKSPACE_ID_BYTES_MAX};

/// A request target, split but not decoded yet, since an encoded slash is not a separator.
pub(super) struct Target<'a> {
    /// The path, which starts with a slash.
    pub path: &'a str,
    /// The text after the first question mark; empty if there is none.
    pub query: &'a str,
    /// The host, if the target has the absolute form.
    pub host: Option<UriHost<'a>>,
}

impl<'a> Target<'a> {
    /// Splits a target in origin form or in absolute form, which a server must accept too (section
    /// 3.2.2). Returns `None` for any other form.
    pub fn split(target: &'a str) -> Option<Self> {
        // Clients never send a fragment, so a `#` is a character of the id that should have been
        // encoded.
        if target.contains('#') {
            return None;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path.starts_with('/') {
            return Some(Self {
                path,
                query,
                host: None,
            });
        }
        let (scheme, authority_and_path) = path.split_once("://")?;
        if !["http", "https", "ws", "wss"]
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known))
        {
            return None;
        }
        let slash = authority_and_path.find('/');
        let (authority, path) = slash.map_or((authority_and_path, "/"), |at| {
            authority_and_path.split_at(at)
        });
        // RFC 9110 section 4.2.1: such a target must have a host.
        let host = UriHost::parse(authority.as_bytes()).filter(|host| !host.is_empty())?;
        Some(Self {
            path,
            query,
            host: Some(host),
        })
    }
}

/// Decodes the path segment that contains the workspace id (P8). The error says what is wrong with
/// it.
pub(super) fn workspace_id(segment: &str) -> Result<String, &'static str> {
    if !has_whole_escapes(segment) {
        return Err("the workspace id has a malformed percent escape");
    }
    let id = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| "the workspace id must be UTF-8")?;
    if id.is_empty() || id.len() > WORKSPACE_ID_BYTES_MAX {
        return Err("the workspace id must be 1 to 256 bytes");
    }
    if id.contains(char::is_control) {
        return Err("the workspace id must not have control characters");
    }
    Ok(id.into_owned())
}

/// Returns the first `token` parameter that is not empty (P11, P21).
///
/// Queries are form-encoded, as in browsers (WHATWG URL section 5.1), so `+` is a space, unlike in
/// a path. A token that cannot be decoded is not an error here, because it must be answered with
/// 401, not 400.
pub(super) fn query_token(query: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, value)| name == "token" && !value.is_empty())
        .map(|(_, value)| value.into_owned())
}

/// Returns the first `userId` parameter.
///
/// A value that is empty, too long, not UTF-8, or contains control characters is ignored (P83); it
/// is no reason to refuse the client.
pub(super) fn query_user(query: &str) -> Option<String> {
    let (_, user) = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "userId")?;
    let is_good = !user.is_empty()
        && user.len() <= USER_ID_BYTES_MAX
        // Bytes that cannot be decoded appear as U+FFFD.
        && !user.contains(|char: char| char.is_control() || char == char::REPLACEMENT_CHARACTER);
    is_good.then(|| user.into_owned())
}

fn has_whole_escapes(segment: &str) -> bool {
    segment
        .split('%')
        .skip(1)
        .all(|after| match after.as_bytes() {
            [high, low, ..] => high.is_ascii_hexdigit() && low.is_ascii_hexdigit(),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for (target, expected) in [
            ("/a", Some(("/a", ""))),
            ("/a?", Some(("/a", ""))),
            ("/a?b?c=/d", Some(("/a", "b?c=/d"))),
            ("//a/b", Some(("//a/b", ""))),
            ("http://host/a?b", Some(("/a", "b"))),
            ("WS://host:1/a/b", Some(("/a/b", ""))),
            ("http://host", Some(("/", ""))),
            ("http://host?a=/b", Some(("/", "a=/b"))),
            ("http://[::1]:80/a", Some(("/a", ""))),
            ("http:///a", None),
            ("http://:80/a", None),
            ("http://user@host/a", None),
            ("http://host:port/a", None),
            ("ftp://host/a", None),
            ("host:443", None),
            ("*", None),
            ("a/b", None),
            ("/a#b", None),
            ("", None),
        ] {
            let split = Target::split(target).map(|target| (target.path, target.query));
            assert_eq!(split, expected, "{target}");
        }
    }

    /// P8.
    #[test]
    fn workspace_ids() {
        let longest = "x".repeat(256);
        for (segment, expected) in [
            ("workspace-123", Some("workspace-123")),
            ("a%2Fb", Some("a/b")),
            ("a%2fb", Some("a/b")),
            ("%25", Some("%")),
            ("%2525", Some("%25")),
            ("a+b", Some("a+b")),
            ("%20", Some(" ")),
            ("%E2%82%AC", Some("€")),
            ("€", Some("€")),
            ("..", Some("..")),
            (&longest, Some(&longest)),
            (&"x".repeat(257), None),
            (&"%E2%82%AC".repeat(86), None),
            ("", None),
            ("%", None),
            ("%2", None),
            ("%zz", None),
            ("%+1", None),
            ("a%2%30", None),
            ("%€", None),
            ("%00", None),
            ("%1F", None),
            ("%7F", None),
            ("%C2%80", None),
            ("%C2%9F", None),
            ("%FF", None),
            ("%ED%A0%80", None),
            ("%C0%AF", None),
        ] {
            assert_eq!(workspace_id(segment).ok().as_deref(), expected, "{segment}");
        }
    }

    /// P11, P83.
    #[test]
    fn query_users() {
        let longest = format!("userId={}", "x".repeat(256));
        let too_long = format!("{longest}x");
        for (query, expected) in [
            ("", None),
            ("userId", None),
            ("userId=", None),
            ("userId=ann", Some("ann")),
            ("token=a&userId=%C3%84nn%20%3Cb%3E", Some("Änn <b>")),
            ("userId=a+b", Some("a b")),
            ("userId=a%2Bb", Some("a+b")),
            ("userId=a%26b%3D", Some("a&b=")),
            ("userId=a=b", Some("a=b")),
            ("user%49d=a", Some("a")),
            ("userId=%zz%", Some("%zz%")),
            ("userId=a&userId=b", Some("a")),
            ("userId=&userId=b", None),
            ("userid=a", None),
            ("userId=%FF", None),
            ("userId=%0A", None),
            (&longest, Some(&longest["userId=".len()..])),
            (&too_long, None),
        ] {
            assert_eq!(query_user(query).as_deref(), expected, "{query}");
        }
    }

    /// P11, P21.
    #[test]
    fn query_tokens() {
        for (query, expected) in [
            ("", None),
            ("token", None),
            ("token=", None),
            ("token=a.b.c", Some("a.b.c")),
            ("userId=7&token=a&x", Some("a")),
            ("token=a&token=b", Some("a")),
            ("token=&token=b", Some("b")),
            ("xtoken=a&Token=b", None),
            ("token=a%2Eb", Some("a.b")),
            ("token=a=b", Some("a=b")),
            ("token=a+b", Some("a b")),
            ("%74oken=a", Some("a")),
            ("&&token=a&", Some("a")),
            ("+token=a", None),
            ("token=%zz", Some("%zz")),
            ("token=%FF", Some("\u{fffd}")),
        ] {
            assert_eq!(query_token(query).as_deref(), expected, "{query}");
        }
    }
}
