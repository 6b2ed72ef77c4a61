//! What a TLS failure with the cloud means, in words of a node's operator, and what to do about it.

use rustls::{AlertDescription as Alert, CertificateError as Fault, Error};

use crate::credentials::unix_now_s;

/// One line. Errors that are not TLS's are told as they are.
pub fn explain(error: &std::io::Error) -> String {
    tls_error(error).and_then(text).unwrap_or_else(|| error.to_string())
}

/// The two ends do not accept each other's certificates, so that another pair of certificate and CAs may do better.
pub fn is_rejection(error: &std::io::Error) -> bool {
    match tls_error(error) {
        Some(Error::AlertReceived(alert)) => is_about_certificate(*alert),
        Some(Error::InvalidCertificate(fault)) => is_unknown_issuer(fault),
        _ => false,
    }
}

pub fn is_tls(error: &std::io::Error) -> bool {
    tls_error(error).is_some()
}

fn tls_error(error: &std::io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn text(error: &Error) -> Option<String> {
    let clock = pki::format_utc(unix_now_s());
    Some(match error {
        Error::InvalidCertificate(Fault::Expired | Fault::ExpiredContext { .. }) => format!(
            "the cloud's certificate has expired by this node's clock, which says {clock}; if that is wrong set the clock, \
             else restart cloudcore, which makes a new one"
        ),
        Error::InvalidCertificate(Fault::NotValidYet | Fault::NotValidYetContext { .. }) => format!(
            "the cloud's certificate is not valid yet: this node's clock says {clock}; set the clock, or wait for the time server"
        ),
        Error::InvalidCertificate(Fault::NotValidForName | Fault::NotValidForNameContext { .. }) => {
            "the cloud's certificate is not for the address that this node dials; start cloudcore with --advertise-address \
             (modules.cloudHub.advertiseAddress) for it, or dial an address that it has"
                .into()
        }
        Error::InvalidCertificate(fault) if is_unknown_issuer(fault) => {
            "the cloud's certificate is not of the CA that this node trusts; if the address is right and that cloud was made \
             anew, or changed its CA while this node was away, run `edgecore join --adopt` with a new token"
                .into()
        }
        Error::InvalidCertificate(fault) => {
            format!("the cloud's certificate cannot be used ({fault:?}); look at what modules.cloudHub of the cloud has")
        }
        Error::AlertReceived(Alert::CertificateExpired) => format!(
            "the cloud says that this node's certificate has expired or is not valid yet (the clock here says {clock}); an \
             expired one is renewed at the join port while the cloud's grace lasts, afterwards run `edgecore join --adopt` \
             with a new token"
        ),
        Error::AlertReceived(alert) if is_about_certificate(*alert) => format!(
            "the cloud does not accept this node's certificate ({alert:?}); if the cloud was made anew or changed its CA while \
             this node was away, run `edgecore join --adopt` with a new token (`cloudcore token`)"
        ),
        _ => return None,
    })
}

fn is_unknown_issuer(fault: &Fault) -> bool {
    matches!(fault, Fault::UnknownIssuer | Fault::BadSignature)
}

fn is_about_certificate(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::CertificateRequired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_names_its_remedy() {
        let told = |error: Error| explain(&std::io::Error::new(std::io::ErrorKind::InvalidData, error));
        for (error, wanted) in [
            (Error::InvalidCertificate(Fault::Expired), "restart cloudcore"),
            (Error::InvalidCertificate(Fault::NotValidYet), "set the clock"),
            (Error::InvalidCertificate(Fault::NotValidForName), "--advertise-address"),
            (Error::InvalidCertificate(Fault::UnknownIssuer), "edgecore join --adopt"),
            (Error::InvalidCertificate(Fault::InvalidPurpose), "modules.cloudHub"),
            (Error::AlertReceived(Alert::CertificateExpired), "renewed at the join port"),
            (Error::AlertReceived(Alert::UnknownCA), "cloudcore token"),
        ] {
            let line = told(error);
            assert!(line.contains(wanted) && !line.contains('\n'), "{wanted}: {line}");
        }
        assert_eq!(explain(&std::io::Error::other("plain")), "plain");
        let refused = |error| is_rejection(&std::io::Error::other(error));
        assert!(refused(Error::AlertReceived(Alert::UnknownCA)));
        assert!(!refused(Error::AlertReceived(Alert::HandshakeFailure)));
        assert!(!refused(Error::InvalidCertificate(Fault::NotValidYet)), "another certificate sets no clock");
    }

    /// What a client of the CA says of a server with this certificate, after a handshake in memory.
    fn handshake(ca: &pki::Ca, certificate: Vec<u8>, key: &pki::Key) -> String {
        let server = pki::tls::server_config(&certificate, key, pki::tls::ClientAuth::None).unwrap();
        let client = pki::tls::client_config(ca.cert_der(), None).unwrap();
        let mut server = rustls::ServerConnection::new(std::sync::Arc::new(server)).unwrap();
        let name = "192.0.2.1".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(std::sync::Arc::new(client), name).unwrap();
        for _ in 0..10 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            if let Err(error) = client.process_new_packets() {
                return explain(&std::io::Error::new(std::io::ErrorKind::InvalidData, error));
            }
        }
        "accepted".into()
    }

    #[test]
    fn bad_certificates_of_a_cloud_are_told_apart() {
        let now = unix_now_s();
        let (ca, other) =
            (pki::Ca::create("KubeEdge", now).unwrap(), pki::Ca::create("KubeEdge", now).unwrap());
        let (key, subject) = (pki::Key::generate().unwrap(), pki::Identity::new("KubeEdge", &["KubeEdge"]));
        let spki = key.public_der();
        let good = pki::NewCert {
            serial: &[9],
            subject: &subject,
            spki_der: &spki,
            validity: pki::Validity::days(now, 9),
            is_ca: false,
            server: true,
            client: false,
            ips: &["192.0.2.1".parse().unwrap()],
            dns_names: &[],
        };
        let day = 86_400;
        let past = pki::Validity { not_before: now - 2 * day, not_after: now - day };
        let future = pki::Validity { not_before: now + day, not_after: now + 2 * day };
        for (ca_of_it, certificate, wanted) in [
            (&ca, good, "accepted"),
            (&ca, pki::NewCert { validity: past, ..good }, "has expired by this node's clock"),
            (&ca, pki::NewCert { validity: future, ..good }, "set the clock, or wait for the time server"),
            (&ca, pki::NewCert { ips: &["192.0.2.2".parse().unwrap()], ..good }, "--advertise-address"),
            (&other, good, "not of the CA that this node trusts"),
            (&ca, pki::NewCert { server: false, client: true, ..good }, "cannot be used"),
        ] {
            let told = handshake(&ca, ca_of_it.issue(&certificate).unwrap(), &key);
            assert!(told.contains(wanted), "{wanted}: {told}");
        }
    }
}
