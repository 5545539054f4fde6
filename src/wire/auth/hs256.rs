//! HS256 for jsonwebtoken: HMAC with SHA-256 (RFC 7518 section 3.2).
//!
//! The providers that ship with jsonwebtoken include RSA and elliptic curves. This server signs and
//! accepts only HS256, so this module implements no other algorithm.

use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey};
use sha2::Sha256;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| Ok(Box::new(Hs256::of_encoding(*algorithm, key)?)),
    verifier_factory: |algorithm, key| Ok(Box::new(Hs256::of_decoding(*algorithm, key)?)),
    key_utils: KeyUtils::new_unimplemented(),
};

/// Installs HS256 as the provider of jsonwebtoken, which allows one per process.
///
/// Calls after the first have no effect.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

/// An HMAC instance that is initialized with the key and has not yet been fed a message.
struct Hs256(Hmac<Sha256>);

impl Hs256 {
    fn of_encoding(algorithm: Algorithm, key: &EncodingKey) -> Result<Self, Error> {
        Self::new(algorithm, key.family(), key.as_bytes())
    }

    fn of_decoding(algorithm: Algorithm, key: &DecodingKey) -> Result<Self, Error> {
        Self::new(algorithm, key.family(), key.try_get_as_bytes()?)
    }

    fn new(algorithm: Algorithm, family: AlgorithmFamily, key: &[u8]) -> Result<Self, Error> {
        if algorithm != Algorithm::HS256 {
            return Err(ErrorKind::InvalidAlgorithm.into());
        }
        if family != AlgorithmFamily::Hmac {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        let hmac = Hmac::new_from_slice(key).map_err(|_| ErrorKind::InvalidKeyFormat)?;
        Ok(Self(hmac))
    }

    fn read(&self, message: &[u8]) -> Hmac<Sha256> {
        self.0.clone().chain_update(message)
    }
}

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(self.read(message).finalize().into_bytes().to_vec())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        // The comparison runs in constant time, regardless of where the first difference is.
        let outcome = self.read(message).verify_slice(signature);
        outcome.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;
    use jsonwebtoken::crypto;

    use super::*;

    /// The key from RFC 7515 appendix A.1.
    const KEY: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwj\
                       AzZr1Z9CAow";
    const MESSAGE: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
                           eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGx\
                           lLmNvbS9pc19yb290Ijp0cnVlfQ";
    const SIGNATURE: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

    #[test]
    fn the_rfc_example() {
        install();
        install();
        let key = BASE64URL_NOPAD.decode(KEY.as_bytes()).unwrap();
        let signing = EncodingKey::from_secret(&key).unwrap();
        let signature = crypto::sign(MESSAGE.as_bytes(), &signing, Algorithm::HS256).unwrap();
        assert_eq!(signature, SIGNATURE);
        let verifying = DecodingKey::from_secret(&key).unwrap();
        let verify = |signature: &str, message: &str| {
            crypto::verify(signature, message.as_bytes(), &verifying, Algorithm::HS256).unwrap()
        };
        assert!(verify(SIGNATURE, MESSAGE));
        assert!(!verify(SIGNATURE, "another message"));
        for wrong in ["", &SIGNATURE[..40], &format!("{SIGNATURE}AAAA")] {
            assert!(!verify(wrong, MESSAGE), "{wrong}");
        }
    }

    #[test]
    fn no_other_algorithm_is_implemented() {
        install();
        let key = EncodingKey::from_secret(b"secret").unwrap();
        for algorithm in [Algorithm::HS384, Algorithm::HS512, Algorithm::RS256] {
            let error = crypto::sign(b"message", &key, algorithm).unwrap_err();
            assert_eq!(error.kind(), &ErrorKind::InvalidAlgorithm, "{algorithm:?}");
        }
    }
}
