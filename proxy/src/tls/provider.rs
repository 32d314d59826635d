//! Versions, cipher suites and key exchange groups.
//!
//! Owns the names that configurations and logs use for them, and the order of preference. Never sees certificates.

use std::sync::Arc;

use outrigger_config::tls::{CommonTls, TlsVersions};
use rustls::NamedGroup;
use rustls::crypto::aws_lc_rs::{cipher_suite as suites, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ProtocolVersion, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion};

use super::error::TlsError;
use super::intern::{Interned, sha256_parts};
use super::origin::Noting;

/// What is used of TLS, in order of preference. Equal choices share one provider.
pub(super) fn provider(common: &CommonTls) -> Result<Arc<CryptoProvider>, TlsError> {
    static PROVIDERS: Interned<CryptoProvider> = Interned::new();
    let fips = if common.fips_202205 { "fips" } else { "" };
    let names = common.cipher_suites.iter().chain([&"curves"]).chain(&common.curves).chain([&"policy", &fips]);
    let names = names.map(|name| name.as_bytes());
    PROVIDERS.get_or_try(sha256_parts(names), || {
        let mut cipher_suites = tls13_suites();
        if common.fips_202205 {
            cipher_suites.retain(|suite| suite.suite() != CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        }
        cipher_suites.extend(tls12_suites(&common.cipher_suites)?);
        Ok(CryptoProvider { cipher_suites, kx_groups: groups(&common.curves)?, ..default_provider() })
    })
}

/// What may be signed and verified in handshakes, in order of preference; `None` leaves it to the provider.
pub(super) fn signature_schemes(common: &CommonTls) -> Result<Option<Arc<[SignatureScheme]>>, TlsError> {
    if common.signature_algorithms.is_empty() {
        return Ok(None);
    }
    let scheme = |name: &&str| {
        let found = SIGNATURE_SCHEMES.iter().find(|(known, _)| known == name);
        let unknown = || TlsError::Unsupported { what: "signature algorithm", name: (*name).to_owned() };
        found.map(|(_, scheme)| *scheme).ok_or_else(unknown)
    };
    common.signature_algorithms.iter().map(scheme).collect::<Result<_, _>>().map(Some)
}

const SIGNATURE_SCHEMES: [(&str, SignatureScheme); 10] = [
    ("ecdsa_secp256r1_sha256", SignatureScheme::ECDSA_NISTP256_SHA256),
    ("ecdsa_secp384r1_sha384", SignatureScheme::ECDSA_NISTP384_SHA384),
    ("ecdsa_secp521r1_sha512", SignatureScheme::ECDSA_NISTP521_SHA512),
    ("ed25519", SignatureScheme::ED25519),
    ("rsa_pss_rsae_sha256", SignatureScheme::RSA_PSS_SHA256),
    ("rsa_pss_rsae_sha384", SignatureScheme::RSA_PSS_SHA384),
    ("rsa_pss_rsae_sha512", SignatureScheme::RSA_PSS_SHA512),
    ("rsa_pkcs1_sha256", SignatureScheme::RSA_PKCS1_SHA256),
    ("rsa_pkcs1_sha384", SignatureScheme::RSA_PKCS1_SHA384),
    ("rsa_pkcs1_sha512", SignatureScheme::RSA_PKCS1_SHA512),
];

/// The versions that both the configuration and the suites allow.
pub(super) fn versions(
    wanted: TlsVersions,
    provider: &CryptoProvider,
) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
    let has_tls12_suite = provider.cipher_suites.iter().any(|suite| suite.tls13().is_none());
    match (wanted.tls12, wanted.tls13) {
        (true, true) if has_tls12_suite => Ok(vec![&TLS13, &TLS12]),
        (_, true) => Ok(vec![&TLS13]),
        (true, false) if has_tls12_suite => Ok(vec![&TLS12]),
        (true, false) => Err(TlsError::Versions { reason: "none of the cipher suites for TLS 1.2 is supported" }),
        (false, false) => Err(TlsError::Versions { reason: "TLS 1.2 and TLS 1.3 are both switched off" }),
    }
}

/// As Envoy prints it.
pub(super) fn version_name(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    }
}

/// OpenSSL's name of a group.
pub(super) fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        _ => "",
    }
}

/// OpenSSL's name of a signature algorithm.
pub(super) fn scheme_name(scheme: SignatureScheme) -> &'static str {
    SIGNATURE_SCHEMES.iter().find(|(_, known)| *known == scheme).map_or("", |(name, _)| name)
}

/// OpenSSL's name.
pub(super) fn suite_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => TLS12_SUITES.iter().find(|known| known.suite.suite() == other).map_or("", |known| known.openssl),
    }
}

/// Cipher lists have no say in TLS 1.3: as in BoringSSL, all its suites are on, ordered by what the machine does fast.
fn tls13_suites() -> Vec<SupportedCipherSuite> {
    let mut list = vec![
        suites::TLS13_AES_128_GCM_SHA256,
        suites::TLS13_AES_256_GCM_SHA384,
        suites::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    if !aes_in_hardware() {
        list.rotate_right(1);
    }
    list
}

fn tls12_suites(names: &[&str]) -> Result<Vec<SupportedCipherSuite>, TlsError> {
    if names.is_empty() {
        return Ok(TLS12_SUITES.iter().map(|known| known.suite).collect());
    }
    names
        .iter()
        .map(|name| match TLS12_SUITES.iter().find(|known| known.iana == *name) {
            Some(known) => Ok(known.suite),
            None => Err(TlsError::Unsupported { what: "cipher suite", name: (*name).to_owned() }),
        })
        .collect()
}

fn groups(names: &[&str]) -> Result<Vec<&'static dyn SupportedKxGroup>, TlsError> {
    if names.is_empty() {
        return Ok(vec![&X25519, &SECP256R1, &SECP384R1]);
    }
    names
        .iter()
        .map(|name| -> Result<&'static dyn SupportedKxGroup, TlsError> {
            match *name {
                "X25519" => Ok(&X25519),
                "P-256" => Ok(&SECP256R1),
                "P-384" => Ok(&SECP384R1),
                "X25519MLKEM768" => Ok(&X25519MLKEM768),
                other => Err(TlsError::Unsupported { what: "curve", name: other.to_owned() }),
            }
        })
        .collect()
}

static X25519: Noting = Noting(kx_group::X25519);
static SECP256R1: Noting = Noting(kx_group::SECP256R1);
static SECP384R1: Noting = Noting(kx_group::SECP384R1);
static X25519MLKEM768: Noting = Noting(kx_group::X25519MLKEM768);

fn aes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = true;
    has
}

/// A TLS 1.2 suite under both of its names.
struct NamedSuite {
    openssl: &'static str,
    iana: &'static str,
    suite: SupportedCipherSuite,
}

/// By preference: AES-128 first (its strength is enough and it costs least), ECDSA before RSA.
static TLS12_SUITES: [NamedSuite; 6] = [
    NamedSuite {
        openssl: "ECDHE-ECDSA-AES128-GCM-SHA256",
        iana: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        suite: suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    },
    NamedSuite {
        openssl: "ECDHE-RSA-AES128-GCM-SHA256",
        iana: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        suite: suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    },
    NamedSuite {
        openssl: "ECDHE-ECDSA-AES256-GCM-SHA384",
        iana: "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        suite: suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    },
    NamedSuite {
        openssl: "ECDHE-RSA-AES256-GCM-SHA384",
        iana: "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        suite: suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    },
    NamedSuite {
        openssl: "ECDHE-ECDSA-CHACHA20-POLY1305",
        iana: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        suite: suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    },
    NamedSuite {
        openssl: "ECDHE-RSA-CHACHA20-POLY1305",
        iana: "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        suite: suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_config::tls::CURVES;

    #[test]
    fn a_list_gives_the_order() {
        let wanted = ["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"];
        let listed: Vec<_> = tls12_suites(&wanted).unwrap().iter().map(|suite| suite_name(suite.suite())).collect();
        assert_eq!(listed, ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"]);
        assert!(tls12_suites(&["AES128-SHA"]).is_err());
    }

    #[test]
    fn all_curves_of_the_model_exist() {
        assert_eq!(groups(&CURVES).unwrap().len(), CURVES.len());
        assert_eq!(groups(&["P-521"]).unwrap_err().to_string(), "curve \"P-521\" is not supported");
    }

    #[test]
    fn versions_follow_what_is_allowed() {
        let provider = default_provider();
        let only13 = TlsVersions { tls12: false, tls13: true };
        assert_eq!(versions(only13, &provider).unwrap(), [&TLS13]);
        assert!(versions(TlsVersions { tls12: false, tls13: false }, &provider).is_err());
        let none12 = CryptoProvider { cipher_suites: tls13_suites(), ..provider };
        assert_eq!(versions(TlsVersions { tls12: true, tls13: true }, &none12).unwrap(), [&TLS13]);
        assert!(versions(TlsVersions { tls12: true, tls13: false }, &none12).is_err());
    }

    #[test]
    fn names_for_logs() {
        assert_eq!(suite_name(CipherSuite::TLS13_AES_128_GCM_SHA256), "TLS_AES_128_GCM_SHA256");
        assert_eq!(version_name(Some(ProtocolVersion::TLSv1_2)), "TLSv1.2");
    }
}
