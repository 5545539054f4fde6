//! Tokens, valid and invalid.

use super::now_s;
use data_encoding::BASE64URL_NOPAD;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::{Sha256, Sha384, Sha512};

/// The secret of every server that a test starts.
pub const SECRET: &str = "the secret of the black-box tests, over 32 bytes";
/// A secret that no server uses.
pub const OTHER_SECRET: &str = "somebody else's secret, which is over 32 bytes";

/// Returns a token that is valid for an hour.
pub fn valid() -> String {
    with_claims(&json!({"sub": "tester", "iat": now_s(), "exp": now_s() + 3600}))
}

/// Returns a token with these claims and a valid signature.
pub fn with_claims(claims: &Value) -> String {
    signed(&json!({"alg": "HS256", "typ": "JWT"}), claims, SECRET)
}

/// Returns a token with this header and these claims. The signature is the HMAC that the header's
/// `alg` names, or HS256 if it names none.
pub fn signed(header: &Value, claims: &Value, secret: &str) -> String {
    let body = unsigned(header, claims);
    let signature = match header["alg"].as_str() {
        Some("HS384") => hmac::<Hmac<Sha384>>(&body, secret),
        Some("HS512") => hmac::<Hmac<Sha512>>(&body, secret),
        _ => hmac::<Hmac<Sha256>>(&body, secret),
    };
    format!("{body}.{}", base64url(&signature))
}

/// Returns the claims of a token. Fails the test unless the token is signed with HS256 and
/// `secret`.
pub fn claims(token: &str, secret: &str) -> Value {
    let (body, signature) = token.rsplit_once('.').expect("a token has three parts");
    assert_eq!(signature, base64url(&hmac::<Hmac<Sha256>>(body, secret)));
    let (_, claims) = body.split_once('.').expect("a token has three parts");
    let json = BASE64URL_NOPAD.decode(claims.as_bytes());
    serde_json::from_slice(&json.expect("base64url")).expect("JSON")
}

fn hmac<M: Mac + KeyInit>(message: &str, secret: &str) -> Vec<u8> {
    let hmac =
        <M as KeyInit>::new_from_slice(secret.as_bytes()).expect("a key of any length is valid");
    let hmac = hmac.chain_update(message.as_bytes());
    hmac.finalize().into_bytes().to_vec()
}

/// Returns the first two parts of a token, without the signature.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    format!(
        "{}.{}",
        base64url(header.to_string().as_bytes()),
        base64url(claims.to_string().as_bytes())
    )
}

/// Encodes in base64 with the URL alphabet, without padding (RFC 7515 section 2).
pub fn base64url(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}
