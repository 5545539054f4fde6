//! The certificates that a client of `wss://` trusts.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::load::endpoint::Tls;

/// Prepares TLS to the server `name`, with the certificates in the PEM file `ca` as the only trust
/// anchors, or else those of the system.
pub fn trusting(name: &str, ca: Option<&Path>) -> Result<Tls, String> {
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| format!("{name:?} is not a name that a certificate can be for"))?;
    let roots = match ca {
        Some(file) => roots_in(file)?,
        None => roots_of_system()?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Tls {
        config: Arc::new(config),
        name,
    })
}

fn roots_in(file: &Path) -> Result<RootCertStore, String> {
    let name = file.display();
    let unreadable = |error| format!("--ca {name}: {error}");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
        let added = roots.add(certificate.map_err(unreadable)?);
        added.map_err(|error| format!("--ca {name}: {error}"))?;
    }
    if roots.is_empty() {
        return Err(format!("--ca {name}: it holds no certificate in PEM"));
    }
    Ok(roots)
}

fn roots_of_system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    // Some of the certificates that systems ship cannot be used by this library; only the others
    // count.
    let (added, _) =
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return Err(
            "this system has no CA certificates (package ca-certificates): name a file with --ca"
                .to_owned(),
        );
    }
    Ok(roots)
}
