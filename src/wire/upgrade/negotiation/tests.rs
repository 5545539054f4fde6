//! The offer of a client (P100 to P107): tables, and a naive model of the token rule.

use proptest::prelude::*;

use super::*;

/// Calls `test` with a head that has these fields and nothing else.
fn with_fields<T>(fields: &[(&str, &[u8])], test: impl FnOnce(&Head<'_>) -> T) -> T {
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| httparse::Header { name, value })
        .collect();
    test(&Head {
        method: "GET",
        target: "/",
        is_http_1_1: true,
        fields: &fields,
    })
}

/// P100, P101.
#[test]
fn the_client_prefers_the_first_known_name() {
    use ProtocolVersion::{V1, V2};
    for (offers, expected) in [
        (&[][..], None),
        (&[""], None),
        (&["etherply.v2"], Some(V2)),
        (&["etherply.v1"], Some(V1)),
        (&["etherply.v2, etherply.v1"], Some(V2)),
        (&["etherply.v1,etherply.v2"], Some(V1)),
        (&["etherply.v1", "etherply.v2"], Some(V1)),
        (&["bearer.a.b.c", "\t etherply.v2 ,,"], Some(V2)),
        (&["etherply.v3, etherply.v2"], Some(V2)),
        (&["etherply.v3"], None),
        (&["chat, superchat"], None),
        (&["bearer.a.b.c"], None),
        (&["bearer.etherply.v2"], None),
        (&["Etherply.v2"], None),
        (&["etherply.v2x"], None),
        (&["etherply.v2;q=1"], None),
        (&["\"etherply.v2\""], None),
        (&["etherply.v2 etherply.v1"], None),
        (&["\u{e9}, etherply.v2"], Some(V2)),
    ] {
        let fields: Vec<_> = offers
            .iter()
            .map(|offer| ("sec-WebSocket-Protocol", offer.as_bytes()))
            .collect();
        assert_eq!(
            with_fields(&fields, offered_version),
            expected,
            "{offers:?}"
        );
    }
}

/// P103.
#[test]
fn two_tokens_must_not_differ() {
    const OFFER: &str = "Sec-WebSocket-Protocol";
    const AUTHORIZATION: &str = "Authorization";
    for (query, fields, expected) in [
        ("", &[][..], Ok(None)),
        ("token=a", &[], Ok(Some("a"))),
        ("token=", &[(AUTHORIZATION, "Bearer b")], Ok(Some("b"))),
        ("", &[(OFFER, "etherply.v2, bearer.c")], Ok(Some("c"))),
        (
            "",
            &[(OFFER, "bearer.c"), (OFFER, "etherply.v2")],
            Ok(Some("c")),
        ),
        ("", &[(OFFER, "bearer.")], Ok(None)),
        ("", &[(OFFER, "Bearer.c")], Ok(None)),
        ("", &[(OFFER, "bearer c")], Ok(None)),
        ("", &[(OFFER, "bearer.c d")], Ok(Some("c d"))),
        (
            "token=a",
            &[(AUTHORIZATION, "Bearer a"), (OFFER, "bearer.a")],
            Ok(Some("a")),
        ),
        ("token=a", &[(AUTHORIZATION, "Basic b")], Ok(Some("a"))),
        ("token=a", &[(AUTHORIZATION, "Bearer b")], Err(400)),
        ("token=a", &[(OFFER, "bearer.b")], Err(400)),
        (
            "",
            &[(AUTHORIZATION, "Bearer a"), (OFFER, "bearer.b")],
            Err(400),
        ),
        ("", &[(OFFER, "bearer.a, bearer.b")], Err(400)),
        ("token=a&token=b", &[], Err(400)),
        ("token=a&token=&token=a", &[], Ok(Some("a"))),
    ] {
        let bytes: Vec<_> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect();
        let outcome = with_fields(&bytes, |head| only_token(head, query));
        let outcome = outcome.map_err(|answer| answer.status());
        let expected = expected.map(|token| token.map(str::to_owned));
        assert_eq!(outcome, expected, "{query} {fields:?}");
    }
}

/// P104, P105, P106, P107.
#[test]
fn parameters() {
    let none = Parameters::default();
    let resumed = |since: u64, id: u64| Parameters {
        resume: Some(ResumePoint {
            since: Seq::new(since),
            generation: Generation::new(id),
        }),
        ..none
    };
    let presence = Parameters {
        has_presence: true,
        ..none
    };
    let replaces = |connection: u64| Parameters {
        replaces: Some(connection),
        ..none
    };
    for (query, expected) in [
        ("", Some(none)),
        ("token=a&x=1&Since=5", Some(none)),
        ("since=5&generation=00000000000000ff", Some(resumed(5, 255))),
        (
            "generation=00000000000000ff&x&since=0",
            Some(resumed(0, 255)),
        ),
        (
            "since=18446744073709551615&generation=ffffffffffffffff",
            Some(resumed(u64::MAX, u64::MAX)),
        ),
        ("since=5", None),
        ("generation=00000000000000ff", None),
        ("since=&generation=00000000000000ff", None),
        ("since=-1&generation=00000000000000ff", None),
        ("since=%2B1&generation=00000000000000ff", None),
        ("since=1.0&generation=00000000000000ff", None),
        (
            "since=18446744073709551616&generation=00000000000000ff",
            None,
        ),
        ("since=5&generation=ff", None),
        ("since=5&generation=00000000000000FF", None),
        ("since=5&generation=", None),
        ("since=5&since=5&generation=00000000000000ff", None),
        (
            "since=5&generation=00000000000000ff&generation=00000000000000ff",
            None,
        ),
        ("presence=1", Some(presence)),
        ("presence=0", None),
        ("presence=", None),
        ("presence", None),
        ("presence=true", None),
        ("presence=1&presence=1", None),
        ("replaces=7", Some(replaces(7))),
        ("replaces=", None),
        ("replaces=x", None),
        ("replaces=7&replaces=8", None),
    ] {
        let outcome = Parameters::parse(query);
        let status = outcome.as_ref().err().map(Answer::status);
        assert_eq!(status, expected.is_none().then_some(400), "{query}");
        assert_eq!(outcome.ok(), expected, "{query}");
    }
}

proptest! {
    /// P103.
    #[test]
    fn a_token_is_accepted_if_all_copies_agree(
        in_query in "[ab]{0,1}",
        in_header in "[ab]{0,1}",
        in_offer in "[ab]{0,1}",
    ) {
        let given: Vec<_> = [&in_query, &in_header, &in_offer]
            .into_iter()
            .filter(|token| !token.is_empty())
            .collect();
        let expected = match &given[..] {
            [first, others @ ..] if others.iter().all(|other| other == first) => {
                Ok(Some(String::clone(first)))
            }
            [] => Ok(None),
            _ => Err(400),
        };
        let header = format!("Bearer {in_header}");
        let offer = format!("etherply.v1, bearer.{in_offer}");
        let fields = [
            ("authorization", header.as_bytes()),
            ("sec-websocket-protocol", offer.as_bytes()),
        ];
        let outcome = with_fields(&fields, |head| only_token(head, &format!("token={in_query}")));
        prop_assert_eq!(outcome.map_err(|answer| answer.status()), expected);
    }
}
