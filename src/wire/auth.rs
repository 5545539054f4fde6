//! Tokens: JWT (RFC 7519) signed with HS256.
//!
//! jsonwebtoken checks the signature. Its claim validation is not used, because it reads the clock,
//! whereas this module takes the time as an argument. [`Verifier::verify`] is safe because of its
//! order: it checks the structure of the token, then that `alg` is HS256, then the signature, and
//! only then the claims.
//!
//! Rules P20 to P25 of the [protocol](crate::wire) define what a client sees.
//!
//! Invariant: no token and no secret ever appears in an error, a `Debug` output or a panic.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::limits::{SECOND_US, SECRET_BYTES_ADVISED, TOKEN_LEEWAY_S};

mod hs256;

/// A secret that signs tokens.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Creates a secret. Returns `None` if `bytes` is empty, because anyone could sign with an
    /// empty secret.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        if bytes.is_empty() {
            None
        } else {
            Some(Self(bytes.into()))
        }
    }

    /// Returns the bytes of the secret. They must not be printed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns whether the secret is shorter than RFC 7518 section 3.2 requires for HS256. Given
    /// one token, an attacker may be able to guess such a secret offline.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.0.len() < SECRET_BYTES_ADVISED
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([redacted])")
    }
}

/// The permission that a valid token grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The time at which a connection opened with the token must be closed: `exp` plus the leeway,
    /// in Unix microseconds. `None` if the token has no `exp`.
    pub expires_at_us: Option<u64>,
}

impl Grant {
    /// Returns the token's `exp`, in Unix seconds.
    #[must_use]
    pub fn expires_s(&self) -> Option<u64> {
        let expires_at_us = self.expires_at_us?;
        Some((expires_at_us / SECOND_US).saturating_sub(TOKEN_LEEWAY_S))
    }
}

/// The reason why a token is refused. The error's text is the message of the 401 answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthError {
    /// There is no token, or it is empty.
    #[error("a token is required")]
    Missing,
    /// The token is not three base64url parts, a part is not a JSON object, or a time is not a
    /// number.
    #[error("the token is malformed")]
    Malformed,
    /// `alg` is not HS256.
    #[error("the token must be signed with HS256")]
    Algorithm,
    /// The header has a `crit` field, which names extensions that the receiver must understand.
    /// None are supported here (RFC 7515 section 4.1.11).
    #[error("the token needs an unknown extension")]
    Critical,
    /// The token was signed with another secret, or modified after it was signed.
    #[error("the token's signature is invalid")]
    Signature,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is in the future.
    #[error("the token is not yet valid")]
    NotYetValid,
}

/// A verifier that checks tokens against the current secret and, during a rotation, the previous
/// one.
#[derive(Clone)]
pub struct Verifier {
    keys: Vec<DecodingKey>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier([redacted])")
    }
}

impl Verifier {
    /// Creates a verifier that accepts tokens signed with either secret.
    #[must_use]
    pub fn new(secret: &Secret, previous: Option<&Secret>) -> Self {
        hs256::install();
        let secrets = [Some(secret), previous].into_iter().flatten();
        let keys = secrets.map(verifying_key);
        Self {
            keys: keys.collect(),
        }
    }

    /// Returns a verifier that also accepts tokens signed with this secret.
    #[must_use]
    pub fn accepting(mut self, secret: &Secret) -> Self {
        self.keys.push(verifying_key(secret));
        self
    }

    /// Returns the permission that `token` grants at `now_unix_us`, or the reason why it is
    /// refused.
    pub fn verify(&self, token: Option<&str>, now_unix_us: u64) -> Result<Grant, AuthError> {
        let token = token
            .filter(|token| !token.is_empty())
            .ok_or(AuthError::Missing)?;
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(AuthError::Malformed);
        };
        let message = &token[..header.len() + ".".len() + claims.len()];
        check_header(&decode_object(header)?)?;
        self.check_signature(message, signature)?;
        check_times(&decode_object(claims)?, now_unix_us)
    }

    fn check_signature(&self, message: &str, signature: &str) -> Result<(), AuthError> {
        for key in &self.keys {
            match crypto::verify(signature, message.as_bytes(), key, Algorithm::HS256) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Base64(_)) => {
                    return Err(AuthError::Malformed);
                }
                Err(_) => return Err(AuthError::Signature),
            }
        }
        Err(AuthError::Signature)
    }
}

fn verifying_key(secret: &Secret) -> DecodingKey {
    DecodingKey::from_secret(secret.bytes()).expect("secrets are never empty")
}

fn check_header(header: &Map<String, Value>) -> Result<(), AuthError> {
    if header.get("alg").and_then(Value::as_str) != Some("HS256") {
        return Err(AuthError::Algorithm);
    }
    if header.contains_key("crit") {
        return Err(AuthError::Critical);
    }
    Ok(())
}

/// Checks `exp` and `nbf`: a token is valid from `nbf`, inclusive, until `exp`, exclusive (RFC 7519
/// sections 4.1.4 and 4.1.5).
fn check_times(claims: &Map<String, Value>, now_unix_us: u64) -> Result<Grant, AuthError> {
    let leeway_us = TOKEN_LEEWAY_S * SECOND_US;
    let expires_at_us = match numeric_date(claims, "exp")? {
        Some(NumericDate::BeforeEpoch) => return Err(AuthError::Expired),
        Some(NumericDate::At(exp_us)) => Some(exp_us.saturating_add(leeway_us)),
        None => None,
    };
    let not_before_us = match numeric_date(claims, "nbf")? {
        Some(NumericDate::At(nbf_us)) => nbf_us.saturating_sub(leeway_us),
        Some(NumericDate::BeforeEpoch) | None => 0,
    };
    if expires_at_us.is_some_and(|expires_at_us| now_unix_us >= expires_at_us) {
        return Err(AuthError::Expired);
    }
    if now_unix_us < not_before_us {
        return Err(AuthError::NotYetValid);
    }
    Ok(Grant { expires_at_us })
}

/// A time claim. `At` contains Unix microseconds.
enum NumericDate {
    BeforeEpoch,
    At(u64),
}

/// Reads a time claim: seconds, with or without a fraction (RFC 7519 section 2). A time beyond the
/// range of the clock becomes the clock's maximum.
fn numeric_date(claims: &Map<String, Value>, name: &str) -> Result<Option<NumericDate>, AuthError> {
    let number = match claims.get(name) {
        None => return Ok(None),
        Some(Value::Number(number)) => number,
        Some(_) => return Err(AuthError::Malformed),
    };
    if let Some(seconds) = number.as_u64() {
        return Ok(Some(NumericDate::At(seconds.saturating_mul(SECOND_US))));
    }
    let seconds = number
        .as_f64()
        .filter(|seconds| seconds.is_finite())
        .ok_or(AuthError::Malformed)?;
    if seconds < 0.0 {
        return Ok(Some(NumericDate::BeforeEpoch));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "not negative, and the cast saturates"
    )]
    let at_us = (seconds * SECOND_US as f64) as u64;
    Ok(Some(NumericDate::At(at_us)))
}

/// Decodes one base64url part of a token.
///
/// The result is a map rather than a struct, because serde would also deserialize a struct from a
/// JSON array.
fn decode_object(part: &str) -> Result<Map<String, Value>, AuthError> {
    let json = BASE64URL_NOPAD
        .decode(part.as_bytes())
        .map_err(|_| AuthError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| AuthError::Malformed)
}

/// Returns the `sub` claim of a verified token, for use in the log.
#[must_use]
pub fn subject(token: &str) -> Option<Box<str>> {
    let claims = decode_object(token.split('.').nth(1)?).ok()?;
    claims.get("sub")?.as_str().map(Box::from)
}

#[derive(Serialize)]
struct MintedClaims<'a> {
    sub: &'a str,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

/// Signs a token for `subject`. Without `ttl_s`, it stays valid until the secret is replaced.
///
/// # Panics
///
/// Never: HMAC accepts a key of any length, and the claims are plain JSON.
#[must_use]
pub fn mint(secret: &Secret, subject: &str, issued_at_s: u64, ttl_s: Option<u64>) -> String {
    let claims = MintedClaims {
        sub: subject,
        iat: issued_at_s,
        exp: ttl_s.map(|ttl_s| issued_at_s.saturating_add(ttl_s)),
    };
    hs256::install();
    let key = EncodingKey::from_secret(secret.bytes()).expect("secrets are never empty");
    jsonwebtoken::encode(&jsonwebtoken::Header::new(Algorithm::HS256), &claims, &key)
        .expect("HMAC accepts a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW_S: u64 = 1_700_000_000;
    const NOW_US: u64 = NOW_S * SECOND_US;
    const FOREVER: Result<Grant, AuthError> = Ok(Grant {
        expires_at_us: None,
    });

    fn secret(text: &str) -> Secret {
        Secret::new(text.into()).unwrap()
    }

    fn encode_part(json: &str) -> String {
        BASE64URL_NOPAD.encode(json.as_bytes())
    }

    fn sign(signing: &str, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", encode_part(header), encode_part(claims));
        hs256::install();
        let key = EncodingKey::from_secret(signing.as_bytes()).unwrap();
        let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{message}.{signature}")
    }

    fn check(token: Option<&str>, now_us: u64, expected: Result<Grant, AuthError>) {
        let verifier = Verifier::new(&secret("current"), Some(&secret("previous")));
        assert_eq!(
            verifier.verify(token, now_us),
            expected,
            "{token:?} at {now_us}"
        );
    }

    const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    /// P22.
    #[test]
    fn headers() {
        let ok = FOREVER;
        for (header, expected) in [
            (HS256, ok),
            (r#"{"alg":"HS256"}"#, ok),
            (r#"{"typ":"other","alg":"HS256","kid":5,"x":{"y":[]}}"#, ok),
            (r#"{"alg":"none"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"None"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"hs256"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"HS384"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"HS512"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"RS256"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"ES256"}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":"HS256 "}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":["HS256"]}"#, Err(AuthError::Algorithm)),
            (r#"{"alg":null}"#, Err(AuthError::Algorithm)),
            (r"{}", Err(AuthError::Algorithm)),
            (
                r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
                Err(AuthError::Critical),
            ),
            (r#"["HS256"]"#, Err(AuthError::Malformed)),
            (r#""HS256""#, Err(AuthError::Malformed)),
            ("", Err(AuthError::Malformed)),
            (r#"{"alg":"HS256""#, Err(AuthError::Malformed)),
        ] {
            check(Some(&sign("current", header, "{}")), NOW_US, expected);
        }
    }

    #[test]
    fn the_algorithm_is_refused_before_the_signature() {
        for alg in ["none", "HS384", "RS256"] {
            let part = encode_part(&format!(r#"{{"alg":"{alg}"}}"#));
            for signature in ["", "AAAA", "***"] {
                check(
                    Some(&format!("{part}.e30.{signature}")),
                    NOW_US,
                    Err(AuthError::Algorithm),
                );
            }
        }
    }

    /// P20.
    #[test]
    fn shapes() {
        let good = sign("current", HS256, "{}");
        let (message, signature) = good.rsplit_once('.').unwrap();
        check(None, NOW_US, Err(AuthError::Missing));
        check(Some(""), NOW_US, Err(AuthError::Missing));
        for (token, expected) in [
            (good.clone(), FOREVER),
            ("x".into(), Err(AuthError::Malformed)),
            (".".into(), Err(AuthError::Malformed)),
            ("..".into(), Err(AuthError::Malformed)),
            ("...".into(), Err(AuthError::Malformed)),
            (message.into(), Err(AuthError::Malformed)),
            (format!("{good}."), Err(AuthError::Malformed)),
            (format!(".{good}"), Err(AuthError::Malformed)),
            (format!("{good}="), Err(AuthError::Malformed)),
            (format!(" {good}"), Err(AuthError::Malformed)),
            (format!("{good}\u{e9}"), Err(AuthError::Malformed)),
            (format!("{message}."), Err(AuthError::Signature)),
            (format!("{message}.AAAA"), Err(AuthError::Signature)),
            (
                format!("{}.{signature}", message.replace(".e30", ".e30x")),
                Err(AuthError::Signature),
            ),
            (
                format!("{}.{signature}", message.replace(".e30", ".eyJhIjoxfQ")),
                Err(AuthError::Signature),
            ),
        ] {
            check(Some(&token), NOW_US, expected);
        }
    }

    /// P24.
    #[test]
    fn secrets() {
        for (signing, expected) in [
            ("current", FOREVER),
            ("previous", FOREVER),
            ("other", Err(AuthError::Signature)),
            ("curren", Err(AuthError::Signature)),
        ] {
            check(Some(&sign(signing, HS256, "{}")), NOW_US, expected);
        }
        let alone = Verifier::new(&secret("current"), None);
        assert_eq!(
            alone.verify(Some(&sign("previous", HS256, "{}")), NOW_US),
            Err(AuthError::Signature)
        );
    }

    /// P23.
    #[test]
    fn expiry_and_leeway() {
        let until = |exp_s: u64| {
            Ok(Grant {
                expires_at_us: Some((exp_s + TOKEN_LEEWAY_S) * SECOND_US),
            })
        };
        let last = Ok(Grant {
            expires_at_us: Some(u64::MAX),
        });
        for (claims, now_us, expected) in [
            (r#"{"sub":{"odd":1},"aud":"x","iss":7}"#, NOW_US, FOREVER),
            (r#"{"exp":0.0}"#, 0, until(0)),
            (r#"{"exp":-0.1}"#, 0, Err(AuthError::Expired)),
            (r#"{"exp":1700000000}"#, NOW_US - 1, until(NOW_S)),
            (
                r#"{"exp":1700000000}"#,
                NOW_US + 30 * SECOND_US - 1,
                until(NOW_S),
            ),
            (
                r#"{"exp":1700000000}"#,
                NOW_US + 30 * SECOND_US,
                Err(AuthError::Expired),
            ),
            (
                r#"{"exp":1700000000.0}"#,
                NOW_US + 30 * SECOND_US - 1,
                until(NOW_S),
            ),
            (
                r#"{"exp":1.7e9}"#,
                NOW_US + 30 * SECOND_US,
                Err(AuthError::Expired),
            ),
            (
                r#"{"exp":1700000000.5}"#,
                NOW_US,
                Ok(Grant {
                    expires_at_us: Some(NOW_US + 30_500_000),
                }),
            ),
            (r#"{"exp":0}"#, 30 * SECOND_US, Err(AuthError::Expired)),
            (r#"{"exp":-1}"#, 0, Err(AuthError::Expired)),
            (r#"{"exp":-0.5}"#, 0, Err(AuthError::Expired)),
            (r#"{"exp":18446744073709551615}"#, NOW_US, last),
            (r#"{"exp":99999999999999999999999}"#, NOW_US, last),
            (r#"{"exp":1e300}"#, NOW_US, last),
            (r#"{"exp":1e400}"#, NOW_US, Err(AuthError::Malformed)),
            (r#"{"exp":"1700000000"}"#, NOW_US, Err(AuthError::Malformed)),
            (r#"{"exp":null}"#, NOW_US, Err(AuthError::Malformed)),
            (r#"{"exp":true}"#, NOW_US, Err(AuthError::Malformed)),
            (r#"{"exp":[1]}"#, NOW_US, Err(AuthError::Malformed)),
        ] {
            check(Some(&sign("current", HS256, claims)), now_us, expected);
        }
    }

    /// P23.
    #[test]
    fn not_before_and_claims_that_are_not_an_object() {
        for (claims, now_us, expected) in [
            (r#"{"nbf":1700000000}"#, NOW_US, FOREVER),
            (r#"{"nbf":1700000030}"#, NOW_US, FOREVER),
            (
                r#"{"nbf":1700000030}"#,
                NOW_US - 1,
                Err(AuthError::NotYetValid),
            ),
            (
                r#"{"nbf":1700000030.5}"#,
                NOW_US,
                Err(AuthError::NotYetValid),
            ),
            (r#"{"nbf":-1}"#, 0, FOREVER),
            (r#"{"nbf":1e300}"#, NOW_US, Err(AuthError::NotYetValid)),
            (r#"{"nbf":"0"}"#, NOW_US, Err(AuthError::Malformed)),
            (r#"{"exp":1,"nbf":{}}"#, NOW_US, Err(AuthError::Malformed)),
            ("[]", NOW_US, Err(AuthError::Malformed)),
            ("[1700000000]", NOW_US, Err(AuthError::Malformed)),
            ("null", NOW_US, Err(AuthError::Malformed)),
            ("1", NOW_US, Err(AuthError::Malformed)),
            ("", NOW_US, Err(AuthError::Malformed)),
            ("{} {}", NOW_US, Err(AuthError::Malformed)),
        ] {
            check(Some(&sign("current", HS256, claims)), now_us, expected);
        }
    }

    #[test]
    fn minted_tokens_verify() {
        let current = secret("current");
        check(Some(&mint(&current, "ann", NOW_S, None)), NOW_US, FOREVER);
        let hour = mint(&current, "ann", NOW_S, Some(3600));
        check(
            Some(&hour),
            NOW_US,
            Ok(Grant {
                expires_at_us: Some((NOW_S + 3630) * SECOND_US),
            }),
        );
        check(
            Some(&hour),
            (NOW_S + 3630) * SECOND_US,
            Err(AuthError::Expired),
        );
        check(
            Some(&mint(&current, "ann", NOW_S, Some(u64::MAX))),
            NOW_US,
            Ok(Grant {
                expires_at_us: Some(u64::MAX),
            }),
        );
    }

    #[test]
    fn nothing_secret_is_printed() {
        let hidden = secret("hidden-hidden-hidden");
        for shown in [
            format!("{hidden:?}"),
            format!("{:?}", Verifier::new(&hidden, Some(&hidden))),
        ] {
            assert!(
                !shown.contains("hidden") && !shown.contains("104, 105"),
                "{shown}"
            );
            assert!(shown.contains("[redacted]"), "{shown}");
        }
        assert!(Secret::new(Vec::new()).is_none());
        assert!(Secret::new(vec![1; 31]).unwrap().is_short());
        assert!(!Secret::new(vec![1; 32]).unwrap().is_short());
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_refused_without_a_panic(token in "\\PC{0,80}|[A-Za-z0-9_.-]{0,80}") {
            let verifier = Verifier::new(&secret("current"), None);
            prop_assert!(verifier.verify(Some(&token), NOW_US).is_err());
        }

        #[test]
        fn a_token_with_one_changed_character_is_refused(
            at in any::<prop::sample::Index>(),
            put in "[A-Za-z0-9_.-]",
        ) {
            let token = mint(&secret("current"), "ann", NOW_S, None);
            let at = at.index(token.len());
            let mut changed = token.clone();
            changed.replace_range(at..=at, &put);
            let verifier = Verifier::new(&secret("current"), None);
            prop_assert_eq!(verifier.verify(Some(&changed), NOW_US).is_ok(), changed == token);
        }
    }
}
