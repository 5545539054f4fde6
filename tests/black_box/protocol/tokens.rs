//! The protocol's tokens: which are accepted, which are refused with 401, and how their times are
//! interpreted.

use crate::support::client::Client;
use crate::support::now_s;
use crate::support::raw::Raw;
use crate::support::server::{Server, Setup};
use crate::support::token::{self, OTHER_SECRET, SECRET, base64url, signed, unsigned, with_claims};
use serde_json::{Value, json};

async fn status_of(server: &Server, token: &str) -> u16 {
    server
        .handshake(&format!("/v1/sync/room?token={token}"))
        .await
        .status
}

/// Sends a handshake with this query and these header lines, expects the protocol's 401, and
/// returns the error message.
async fn refused(server: &Server, query: &str, headers: &str) -> String {
    let mut socket = Raw::connect(server.addr()).await;
    let answer = socket
        .handshake(&format!("/v1/sync/room{query}"), headers)
        .await;
    assert_eq!(answer.status, 401, "for {query} {headers}: {answer:?}");
    socket.expect_end().await;
    let body = answer.json();
    assert_eq!(body["error"], "Unauthorized", "{body}");
    let message = body["message"].as_str().expect("the 401 has a message");
    assert!(!message.is_empty(), "the 401 has a reason");
    message.to_string()
}

async fn check_refused(server: &Server, reason: &str, token: &str) {
    let message = refused(server, &format!("?token={token}"), "").await;
    assert!(
        !message.contains(token) || token.is_empty(),
        "{reason}: the message repeats the token"
    );
}

// ---- refused ----

/// P20.
#[tokio::test]
async fn a_missing_or_malformed_token_is_refused_with_401() {
    let server = Server::start().await;
    refused(&server, "", "").await;
    refused(&server, "?userId=ann", "").await;
    refused(&server, "?Token=x", "").await;
    let valid = token::valid();
    let [header, claims, signature] = valid.split('.').collect::<Vec<_>>()[..] else {
        panic!("a token has three parts")
    };
    let malformed = [
        ("empty", String::new()),
        ("one part", "abc".into()),
        ("two parts", format!("{header}.{claims}")),
        ("four parts", format!("{valid}.{signature}")),
        ("dots only", "..".into()),
        ("not base64", format!("{header}.!!!.{signature}")),
        (
            "not JSON",
            format!("{}.{claims}.{signature}", base64url(b"not json")),
        ),
        (
            "a header that is not an object",
            format!("{}.{claims}.{signature}", base64url(b"[]")),
        ),
    ];
    for (reason, token) in malformed {
        check_refused(&server, reason, &token).await;
    }
}

/// P20.
#[tokio::test]
async fn a_wrong_signature_is_refused_with_401() {
    let server = Server::start().await;
    let valid = token::valid();
    let (body, signature) = valid.rsplit_once('.').expect("a token has dots");
    let header = json!({"alg": "HS256"});
    let claims = json!({"sub": "tester"});
    check_refused(&server, "no signature", &format!("{body}.")).await;
    check_refused(
        &server,
        "a shortened signature",
        &format!("{body}.{}", &signature[..signature.len() - 4]),
    )
    .await;
    check_refused(
        &server,
        "the signature of other claims",
        &format!("{}.{signature}", unsigned(&header, &claims)),
    )
    .await;
    check_refused(
        &server,
        "signed with another secret",
        &signed(&header, &claims, OTHER_SECRET),
    )
    .await;
    check_refused(
        &server,
        "signed with an empty secret",
        &signed(&header, &claims, ""),
    )
    .await;
}

/// P22.
#[tokio::test]
async fn every_other_algorithm_including_none_is_refused_with_401() {
    let server = Server::start().await;
    let claims = json!({"sub": "tester"});
    for algorithm in [
        "none", "None", "NONE", "nOnE", "HS384", "HS512", "RS256", "ES256", "PS256", "EdDSA",
        "hs256", "", "HS257",
    ] {
        let header = json!({"alg": algorithm, "typ": "JWT"});
        check_refused(&server, algorithm, &signed(&header, &claims, SECRET)).await;
        check_refused(
            &server,
            algorithm,
            &format!("{}.", unsigned(&header, &claims)),
        )
        .await;
    }
    for header in [
        json!({}),
        json!({"typ": "JWT"}),
        json!({"alg": null}),
        json!({"alg": ["HS256"]}),
    ] {
        check_refused(
            &server,
            "a header without an algorithm",
            &signed(&header, &claims, SECRET),
        )
        .await;
    }
}

/// P23.
#[tokio::test]
async fn an_expired_token_is_refused_with_401() {
    let server = Server::start().await;
    for age_s in [35, 3600] {
        check_refused(
            &server,
            "expired",
            &with_claims(&json!({"sub": "tester", "exp": now_s() - age_s})),
        )
        .await;
    }
    check_refused(
        &server,
        "expired long ago",
        &with_claims(&json!({"exp": 0})),
    )
    .await;
}

/// P23.
#[tokio::test]
async fn a_token_not_yet_valid_is_refused_with_401() {
    let server = Server::start().await;
    for ahead_s in [60, 3600] {
        check_refused(
            &server,
            "not yet valid",
            &with_claims(&json!({"sub": "tester", "nbf": now_s() + ahead_s})),
        )
        .await;
    }
}

/// P20.
#[tokio::test]
async fn an_exp_or_nbf_that_is_not_a_number_is_refused_with_401() {
    let server = Server::start().await;
    for bad in [json!("tomorrow"), json!(true), json!([1])] {
        check_refused(&server, "a bad exp", &with_claims(&json!({"exp": bad}))).await;
        check_refused(&server, "a bad nbf", &with_claims(&json!({"nbf": bad}))).await;
    }
}

/// P2, P20.
#[tokio::test]
async fn the_401_message_never_reveals_which_workspaces_exist() {
    let server = Server::start().await;
    let mut writer = Client::connect(&server, "seen").await;
    let mut witness = Client::connect(&server, "seen").await;
    let op = writer.write("k", json!(1)).await;
    witness.expect_op(&op).await;
    let mut bodies = Vec::new();
    for workspace in ["seen", "never-seen"] {
        let answer = server
            .handshake(&format!("/v1/sync/{workspace}?token=bad"))
            .await;
        assert_eq!(answer.status, 401);
        assert!(!answer.body.contains("seen"), "{answer:?}");
        bodies.push(answer.body);
    }
    assert_eq!(bodies[0], bodies[1]);
}

// ---- accepted ----

/// P23.
#[tokio::test]
async fn a_token_signed_with_the_secret_is_valid_whatever_else_it_claims() {
    let server = Server::start().await;
    let claims = [
        json!({}),
        json!({"sub": "tester"}),
        json!({"sub": "tester", "aud": "somebody", "iss": "somewhere", "jti": "1", "iat": now_s()}),
        json!({"aud": ["one", "two"], "role": "viewer", "nested": {"a": [1, 2]}}),
        json!({"iat": now_s() + 3600}),
        json!({"exp": now_s() + 3600, "nbf": now_s() - 3600}),
    ];
    for claims in claims {
        assert_eq!(
            status_of(&server, &with_claims(&claims)).await,
            101,
            "claims {claims}"
        );
    }
}

/// P22.
#[tokio::test]
async fn a_token_header_needs_only_the_algorithm() {
    let server = Server::start().await;
    for header in [
        json!({"alg": "HS256"}),
        json!({"alg": "HS256", "typ": "JWT", "kid": "7"}),
        json!({"typ": "at+jwt", "alg": "HS256"}),
    ] {
        let token = signed(&header, &json!({"sub": "tester"}), SECRET);
        assert_eq!(status_of(&server, &token).await, 101, "header {header}");
    }
}

/// P23.
#[tokio::test]
async fn exp_and_nbf_have_a_leeway_of_30_seconds() {
    let server = Server::start().await;
    let cases: [(&str, Value, u16); 4] = [
        ("expired 20 s ago", json!({"exp": now_s() - 20}), 101),
        ("expired 35 s ago", json!({"exp": now_s() - 35}), 401),
        ("valid in 25 s", json!({"nbf": now_s() + 25}), 101),
        ("valid in 60 s", json!({"nbf": now_s() + 60}), 401),
    ];
    for (case, claims, status) in cases {
        assert_eq!(
            status_of(&server, &with_claims(&claims)).await,
            status,
            "{case}"
        );
    }
}

/// P21.
#[tokio::test]
async fn the_token_may_be_in_the_authorization_header() {
    let server = Server::start().await;
    let path = "/v1/sync/room";
    for header in [
        format!("Authorization: Bearer {}\r\n", token::valid()),
        format!("authorization: bearer {}\r\n", token::valid()),
    ] {
        let answer = Raw::connect(server.addr())
            .await
            .handshake(path, &header)
            .await;
        assert_eq!(answer.status, 101, "for {header}");
    }
    let forged = signed(&json!({"alg": "HS256"}), &json!({}), OTHER_SECRET);
    refused(&server, "", &format!("Authorization: Bearer {forged}\r\n")).await;
    refused(&server, "", "Authorization: Bearer\r\n").await;
    refused(
        &server,
        "",
        &format!("Authorization: Basic {}\r\n", token::valid()),
    )
    .await;
}

/// P24.
#[tokio::test]
async fn a_second_secret_is_accepted_to_allow_rotation() {
    let server = Setup::new()
        .env("ETHERPLY_JWT_SECRET_PREVIOUS", OTHER_SECRET)
        .start()
        .await;
    let header = json!({"alg": "HS256"});
    let claims = json!({"sub": "tester"});
    assert_eq!(
        status_of(&server, &signed(&header, &claims, SECRET)).await,
        101
    );
    assert_eq!(
        status_of(&server, &signed(&header, &claims, OTHER_SECRET)).await,
        101
    );
    assert_eq!(
        status_of(
            &server,
            &signed(&header, &claims, "a third secret, which nobody configured")
        )
        .await,
        401
    );
    let expired = signed(&header, &json!({"exp": now_s() - 60}), OTHER_SECRET);
    assert_eq!(
        status_of(&server, &expired).await,
        401,
        "the second secret bypasses exp"
    );
    let none = format!("{}.", unsigned(&json!({"alg": "none"}), &claims));
    assert_eq!(status_of(&server, &none).await, 401);
}

// ---- expiry ----

/// P25.
#[tokio::test]
async fn a_live_connection_is_closed_4001_when_its_token_expires() {
    let server = Server::start().await;
    let brief = with_claims(&json!({"sub": "tester", "exp": now_s() - 27}));
    let mut client = Client::connect_path(&server, &format!("/v1/sync/room?token={brief}")).await;
    let mut other = Client::connect(&server, "room").await;
    let op = client.write("k", json!("said while valid")).await;
    other.expect_op(&op).await;
    assert_eq!(client.expect_close(4001).await, "token expired");
    other.expect_no_answer().await;
}
