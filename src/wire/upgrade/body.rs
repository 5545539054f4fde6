//! Detection of a request body from the request head (P6, RFC 9112 section 6.3).

use super::answer::Answer;
use super::head::Head;

/// Returns whether a body follows the head.
///
/// A head that leaves the end of its body ambiguous is an error, because a server and a proxy that
/// interpret it differently would disagree about where the next request begins ("request
/// smuggling", section 11.2).
pub(super) fn has_body(head: &Head<'_>) -> Result<bool, Answer> {
    let length = content_length(head)?;
    let mut codings = elements(head, "transfer-encoding").filter(|coding| !coding.is_empty());
    if head.values("transfer-encoding").next().is_none() {
        return Ok(length.is_some_and(|length| length > 0));
    }
    let is_chunked = codings
        .next()
        .is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
    if !is_chunked || codings.next().is_some() {
        return Err(Answer::bad_request(
            "Transfer-Encoding must be chunked and nothing else",
        ));
    }
    // Section 6.1: an HTTP/1.0 intermediary would not understand the field.
    if length.is_some() || !head.is_http_1_1 {
        return Err(Answer::bad_request(
            "Transfer-Encoding needs HTTP/1.1, and no Content-Length beside it",
        ));
    }
    Ok(true)
}

/// Returns the length that `Content-Length` announces. Repeated identical lengths count as one
/// (section 6.3, rule 5).
fn content_length(head: &Head<'_>) -> Result<Option<u64>, Answer> {
    let mut length = None;
    for element in elements(head, "content-length") {
        let number = decimal(element)
            .filter(|number| length.is_none_or(|length| length == *number))
            .ok_or_else(|| Answer::bad_request("Content-Length must be one number"))?;
        length = Some(number);
    }
    Ok(length)
}

fn decimal(text: &[u8]) -> Option<u64> {
    let is_digits = text.iter().all(u8::is_ascii_digit);
    // `parse` alone would accept a sign.
    let text = is_digits.then(|| str::from_utf8(text).ok()).flatten()?;
    text.parse().ok()
}

/// Returns the elements of a comma-separated list, which may span several fields.
fn elements<'a>(head: &'a Head<'_>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    head.values(name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P6.
    #[test]
    fn bodies() {
        const LENGTH: &str = "Content-Length";
        const CODING: &str = "Transfer-Encoding";
        for (fields, expected) in [
            (&[][..], Some(false)),
            (&[(LENGTH, "0")], Some(false)),
            (&[(LENGTH, "00")], Some(false)),
            (&[(LENGTH, "5")], Some(true)),
            (&[(LENGTH, "18446744073709551615")], Some(true)),
            (&[("content-length", "5"), (LENGTH, "5")], Some(true)),
            (&[(LENGTH, "5, 5")], Some(true)),
            (&[(CODING, "chunked")], Some(true)),
            (&[("transfer-encoding", ", CHUNKED ,")], Some(true)),
            (&[(LENGTH, "")], None),
            (&[(LENGTH, "5,")], None),
            (&[(LENGTH, "-1")], None),
            (&[(LENGTH, "+1")], None),
            (&[(LENGTH, "0x5")], None),
            (&[(LENGTH, "5 5")], None),
            (&[(LENGTH, "5;")], None),
            (&[(LENGTH, "\u{665}")], None),
            (&[(LENGTH, "18446744073709551616")], None),
            (&[(LENGTH, "5, 6")], None),
            (&[(LENGTH, "5"), (LENGTH, "6")], None),
            (&[(LENGTH, "5"), (LENGTH, "")], None),
            (&[(CODING, "")], None),
            (&[(CODING, "gzip")], None),
            (&[(CODING, "identity")], None),
            (&[(CODING, "gzip, chunked")], None),
            (&[(CODING, "chunked, gzip")], None),
            (&[(CODING, "chunked"), (CODING, "chunked")], None),
            (&[(CODING, "chunked;x=y")], None),
            (&[(CODING, "xchunked")], None),
            (&[(CODING, "chunked"), (LENGTH, "5")], None),
            (&[(CODING, "chunked"), (LENGTH, "0")], None),
        ] {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| httparse::Header {
                    name,
                    value: value.as_bytes(),
                })
                .collect();
            for is_http_1_1 in [true, false] {
                let head = Head {
                    method: "GET",
                    target: "/",
                    is_http_1_1,
                    fields: &fields,
                };
                let is_old = !is_http_1_1 && head.values(CODING).next().is_some();
                let expected = expected.filter(|_| !is_old);
                let found = has_body(&head);
                if let Err(answer) = &found {
                    assert_eq!(answer.status(), 400);
                }
                assert_eq!(found.ok(), expected, "{fields:?} {is_http_1_1}");
            }
        }
    }
}
