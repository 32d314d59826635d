//! The certificates of the handshake scenarios: good ones, and one for each thing that can be wrong.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_RSA_SHA256, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// What clients and servers are called.
pub const SERVER: &str = "server.example";
pub const CLIENT_URI: &str = "spiffe://td/client";
/// The serial number of the certificate that is revoked.
const REVOKED: u64 = 4711;

/// Writes everything into a directory: `<name>.crt` and `<name>.key` for each certificate, `<name>.pem` for authorities.
pub fn write(directory: &Path) {
    let root = authority("root", |_| {});
    let other = authority("other", |_| {});
    write_authority(directory, "ca", &root);
    write_authority(directory, "other", &other);
    leaf(directory, "server", &root, &[SERVER, "spiffe://td/server"], |_| {});
    leaf(directory, "client", &root, &["client.example", CLIENT_URI], |_| {});
    leaf(directory, "stranger", &other, &["client.example", CLIENT_URI, SERVER], |_| {});
    leaf(directory, "expired", &root, &[SERVER, CLIENT_URI], |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    leaf(directory, "future", &root, &[SERVER, CLIENT_URI], |params| params.not_before = date_time_ymd(3000, 1, 1));
    leaf(directory, "server-only", &root, &[SERVER, CLIENT_URI], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    leaf(directory, "client-only", &root, &[SERVER, CLIENT_URI], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    leaf(directory, "revoked", &root, &[SERVER, CLIENT_URI], |params| params.serial_number = Some(REVOKED.into()));
    leaf(directory, "other-domain", &root, &["spiffe://other/client"], |_| {});
    leaf(directory, "two-ids", &root, &[CLIENT_URI, "spiffe://td/second"], |_| {});
    leaf(directory, "nameless", &root, &[], |_| {});
    leaf(directory, "user", &root, &[CLIENT_URI], |params| {
        let name = (vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], "client@td".into());
        params.subject_alt_names.push(SanType::OtherName(name));
    });
    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("a key");
    leaf_with(directory, "rsa", &root, &[SERVER, CLIENT_URI], rsa, |_| {});
    let alone = KeyPair::generate().expect("a key");
    let certificate = params(&[SERVER, CLIENT_URI]).self_signed(&alone).expect("a certificate");
    write_pair(directory, "self-signed", &certificate.pem(), &alone);

    let middle = below(&root, "middle", |_| {});
    write_authority(directory, "middle", &middle);
    leaf(directory, "below", &middle, &[SERVER, CLIENT_URI], |_| {});
    let narrow = below(&root, "narrow", |params| {
        let permitted = vec![GeneralSubtree::DnsName("in.example".to_owned())];
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: Vec::new() });
    });
    write_authority(directory, "narrow", &narrow);
    leaf(directory, "outside", &narrow, &["out.other"], |_| {});

    for (name, year) in [("crl", 3000), ("old-crl", 2002)] {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2001, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: REVOKED.into(),
                revocation_time: date_time_ymd(2001, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&root).expect("a list").pem().expect("PEM");
        std::fs::write(directory.join(format!("{name}.pem")), list).expect("a file");
    }
}

fn authority(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Issuer {
    let params = authority_params(name, change);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn below(issuer: &Issuer, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Issuer {
    let params = authority_params(name, change);
    CertifiedIssuer::signed_by(params, KeyPair::generate().expect("a key"), issuer).expect("an authority")
}

fn authority_params(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    change(&mut params);
    params
}

fn write_authority(directory: &Path, name: &str, issuer: &Issuer) {
    std::fs::write(directory.join(format!("{name}.pem")), issuer.pem()).expect("a file");
    write_pair(directory, name, &issuer.pem(), issuer.key());
}

fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.contains("://") {
            true => SanType::URI((*name).try_into().expect("a URI")),
            false => SanType::DnsName((*name).try_into().expect("a name")),
        })
        .collect();
    params.distinguished_name.push(DnType::CommonName, "leaf");
    params
}

fn leaf(directory: &Path, name: &str, issuer: &Issuer, names: &[&str], change: impl FnOnce(&mut CertificateParams)) {
    leaf_with(directory, name, issuer, names, KeyPair::generate().expect("a key"), change);
}

fn leaf_with(
    directory: &Path,
    name: &str,
    issuer: &Issuer,
    names: &[&str],
    key: KeyPair,
    change: impl FnOnce(&mut CertificateParams),
) {
    let mut params = params(names);
    change(&mut params);
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    write_pair(directory, name, &certificate.pem(), &key);
}

fn write_pair(directory: &Path, name: &str, certificate: &str, key: &KeyPair) {
    std::fs::write(directory.join(format!("{name}.crt")), certificate).expect("a file");
    std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).expect("a file");
}
