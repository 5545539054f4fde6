//! The self-check itself, with and without TLS.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::tls;

/// Makes a certificate for 127.0.0.1 and its key, both in `folder`.
fn make_certificate(folder: &Path) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args([
            "-days",
            "2",
            "-subj",
            "/CN=bench",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "certificate.pem"])
        .output()
        .expect("openssl is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "openssl made no certificate: {stderr}"
    );
}

static SERVER: OnceLock<Arc<ServerConfig>> = OnceLock::new();

fn encrypted(stream: TcpStream) -> io::Result<Box<dyn Duplex>> {
    let config = Arc::clone(SERVER.get().expect("the test set the variable"));
    let session = ServerConnection::new(config).map_err(io::Error::other)?;
    Ok(Box::new(StreamOwned::new(session, stream)))
}

#[test]
fn every_planted_fault_is_detected() {
    run().unwrap();
}

#[test]
fn every_planted_fault_is_detected_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    make_certificate(folder.path());
    let certificate = folder.path().join("certificate.pem");
    let chain = vec![CertificateDer::from_pem_file(&certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.path().join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    assert!(SERVER.set(Arc::new(config)).is_ok());
    run_over(&Transport {
        wrap: encrypted,
        tls: Some(tls::trusting("127.0.0.1", Some(&certificate)).unwrap()),
    })
    .unwrap();

    // The same server, but the client does not trust its certificate.
    let other = tempfile::tempdir().unwrap();
    make_certificate(other.path());
    let certificate = other.path().join("certificate.pem");
    let outcome = try_fault(
        Fault::None,
        ClientProtocol::V1,
        &Transport {
            wrap: encrypted,
            tls: Some(tls::trusting("127.0.0.1", Some(&certificate)).unwrap()),
        },
    );
    let failure = outcome.unwrap().unwrap_err().to_string();
    assert!(failure.contains("invalid peer certificate"), "{failure}");
}
