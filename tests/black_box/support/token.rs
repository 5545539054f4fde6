//! Tokens, valid and invalid.

use super::now_s;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

/// The secret of every server that a test starts.
pub const SECRET: &str = "the secret of the black-box tests, over 32 bytes";
/// A secret that no server has.
pub const OTHER_SECRET: &str = "a secret of somebody else, which is over 32 bytes";

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
    let algorithm = match header["alg"].as_str() {
        Some("HS384") => Algorithm::HS384,
        Some("HS512") => Algorithm::HS512,
        _ => Algorithm::HS256,
    };
    let body = unsigned(header, claims);
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature =
        jsonwebtoken::crypto::sign(body.as_bytes(), &key, algorithm).expect("HMAC takes any input");
    format!("{body}.{signature}")
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
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0u32, |group, byte| (group << 8) | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            let index = (group >> (18 - 6 * place)) & 0x3F;
            text.push(char::from(ALPHABET[index as usize]));
        }
    }
    text
}
