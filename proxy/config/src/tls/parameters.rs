//! Reader of TLS parameters (`TlsParameters`): versions, cipher suites and groups.
//!
//! Owns which of them exist here, and which are known but left out. Never builds a cryptographic provider.

use outrigger_api::pb::envoy::extensions::transport_sockets::tls::v3 as tls;

use super::{CURVES, SIGNATURE_ALGORITHMS, TlsVersions};
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// Checked TLS parameters.
pub(super) struct Parameters {
    pub versions: TlsVersions,
    pub cipher_suites: Vec<&'static str>,
    pub curves: Vec<&'static str>,
    pub signature_algorithms: Vec<&'static str>,
    pub fips_202205: bool,
    pub left_out: Vec<String>,
}

/// Reads what may be negotiated.
pub(super) fn read(at: &FieldPath<'_>, wire: tls::TlsParameters) -> Parsed<Parameters> {
    decide!(wire, at, tls::TlsParameters as "envoy.extensions.transport_sockets.tls.v3.TlsParameters" {
        implemented: tls_minimum_protocol_version, tls_maximum_protocol_version, cipher_suites, ecdh_curves,
            signature_algorithms, compliance_policies;
        no_effect: ;
        unsupported: ;
    });
    let versions = versions(at, tls_minimum_protocol_version, tls_maximum_protocol_version)?;
    let mut left_out = Vec::new();
    let mut read = Parameters {
        versions,
        cipher_suites: ciphers(&at.field("cipher_suites"), &cipher_suites, versions, &mut left_out)?,
        curves: curves(&at.field("ecdh_curves"), &ecdh_curves, &mut left_out)?,
        signature_algorithms: signatures(&at.field("signature_algorithms"), &signature_algorithms, &mut left_out)?,
        fips_202205: false,
        left_out,
    };
    let list = at.field("compliance_policies");
    if compliance_policies.len() > 1 {
        return Err(list.reject(format!("{} policies, expected up to one", compliance_policies.len())));
    }
    if let Some(policy) = compliance_policies.first() {
        let at = list.item(0);
        use tls::tls_parameters::CompliancePolicy as Policy;
        match Policy::try_from(*policy) {
            Ok(Policy::Fips202205) => read.keep_to_fips(&at)?,
            Ok(other @ (Policy::Cnsa2202603 | Policy::Cnsa1202603)) => {
                return Err(at.reject(format!("{} is not supported, expected FIPS_202205", other.as_str_name())));
            }
            Err(_) => return Err(wire::unknown_enum(&at, *policy)),
        }
    }
    Ok(read)
}

impl Parameters {
    /// What the other lists ask for beyond the policy is left out of them, and what they do not name is the policy's.
    fn keep_to_fips(&mut self, at: &FieldPath<'_>) -> Parsed<()> {
        fn keep(list: &mut Vec<&'static str>, allowed: &[&'static str], left_out: &mut Vec<String>) -> bool {
            if list.is_empty() {
                list.extend(allowed);
                return true;
            }
            left_out.extend(list.iter().filter(|name| !allowed.contains(name)).map(|name| (*name).to_owned()));
            list.retain(|name| allowed.contains(name));
            !list.is_empty()
        }
        let suites = SUITES.map(|(iana, _)| iana);
        let suites: Vec<_> = suites.into_iter().filter(|iana| iana.contains("_GCM_")).collect();
        let left_out = &mut self.left_out;
        let complete = keep(&mut self.cipher_suites, &suites, left_out)
            & keep(&mut self.curves, &FIPS_CURVES, left_out)
            & keep(&mut self.signature_algorithms, &FIPS_SIGNATURES, left_out);
        if !complete {
            return Err(at.reject("FIPS_202205 allows none of the cipher_suites, ecdh_curves or signature_algorithms"));
        }
        self.fips_202205 = true;
        Ok(())
    }
}

fn versions(at: &FieldPath<'_>, minimum: i32, maximum: i32) -> Parsed<TlsVersions> {
    use tls::tls_parameters::TlsProtocol;
    let read = |field: &'static str, value: i32| {
        TlsProtocol::try_from(value).map_err(|_| wire::unknown_enum(&at.field(field), value))
    };
    let minimum = read("tls_minimum_protocol_version", minimum)?;
    let maximum = read("tls_maximum_protocol_version", maximum)?;
    // A minimum below TLS 1.2 only allows what a peer does not need: TLS 1.2 is as old as we speak.
    let tls12_allowed = minimum != TlsProtocol::TlSv13;
    match maximum {
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => Err(at
            .field("tls_maximum_protocol_version")
            .reject(format!("{} is not supported, expected TLSv1_2 or TLSv1_3", maximum.as_str_name()))),
        TlsProtocol::TlSv12 if !tls12_allowed => {
            Err(at.field("tls_maximum_protocol_version").reject("TLSv1_2 is below the minimum TLSv1_3"))
        }
        TlsProtocol::TlSv12 => Ok(TlsVersions { tls12: true, tls13: false }),
        TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => Ok(TlsVersions { tls12: tls12_allowed, tls13: true }),
    }
}

/// Suites by OpenSSL or IANA name, where `[A|B]` says that A and B are equally good.
fn ciphers(
    at: &FieldPath<'_>,
    names: &[String],
    versions: TlsVersions,
    left_out: &mut Vec<String>,
) -> Parsed<Vec<&'static str>> {
    let mut suites = Vec::new();
    for (index, item) in names.iter().enumerate() {
        let group = item.strip_prefix('[').and_then(|item| item.strip_suffix(']'));
        // A whole list may stand in one element, separated as OpenSSL does it.
        for name in group.unwrap_or(item).split(if group.is_some() { '|' } else { ':' }) {
            if let Some((iana, _)) = SUITES.iter().find(|(iana, openssl)| *iana == name || *openssl == name) {
                if !suites.contains(iana) {
                    suites.push(iana);
                }
            } else if ABSENT_SUITES.contains(&name) {
                left_out.push(name.to_owned());
            } else {
                return Err(at.item(index).reject(format!("{name:?} is not a known cipher suite")));
            }
        }
    }
    // The list is about TLS 1.2 alone; an empty one would mean the defaults.
    if suites.is_empty() && !names.is_empty() && versions.tls12 {
        return Err(at.reject(format!(
            "{names:?} has no suite for TLS 1.2 that is supported, expected some of {:?}",
            SUITES.map(|(_, openssl)| openssl)
        )));
    }
    Ok(suites)
}

fn curves(at: &FieldPath<'_>, names: &[String], left_out: &mut Vec<String>) -> Parsed<Vec<&'static str>> {
    let mut curves = Vec::new();
    for (index, item) in names.iter().enumerate() {
        for name in item.split(':') {
            let canonical = CURVE_ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
            if let Some(curve) = CURVES.iter().find(|curve| **curve == canonical) {
                if !curves.contains(curve) {
                    curves.push(*curve);
                }
            } else if ABSENT_CURVES.contains(&name) {
                left_out.push(name.to_owned());
            } else {
                return Err(at.item(index).reject(format!("{name:?} is not a known curve")));
            }
        }
    }
    if curves.is_empty() && !names.is_empty() {
        return Err(at.reject(format!("{names:?} has no supported curve, expected some of {CURVES:?}")));
    }
    Ok(curves)
}

fn signatures(at: &FieldPath<'_>, names: &[String], left_out: &mut Vec<String>) -> Parsed<Vec<&'static str>> {
    let mut algorithms = Vec::new();
    for (index, name) in names.iter().enumerate() {
        if let Some(known) = SIGNATURE_ALGORITHMS.iter().find(|known| *known == name) {
            if !algorithms.contains(known) {
                algorithms.push(*known);
            }
        } else if ABSENT_SIGNATURES.contains(&name.as_str()) {
            left_out.push(name.clone());
        } else {
            return Err(at.item(index).reject(format!("{name:?} is not a known signature algorithm")));
        }
    }
    if algorithms.is_empty() && !names.is_empty() {
        return Err(at.reject(format!(
            "{names:?} has no supported signature algorithm, expected some of {SIGNATURE_ALGORITHMS:?}"
        )));
    }
    Ok(algorithms)
}

/// SHA-1, which nobody should trust.
const ABSENT_SIGNATURES: [&str; 2] = ["rsa_pkcs1_sha1", "ecdsa_sha1"];

/// The policy's groups and signature algorithms (NIST SP 800-52 revision 2, as BoringSSL reads it).
const FIPS_CURVES: [&str; 2] = ["P-256", "P-384"];
const FIPS_SIGNATURES: [&str; 8] = [
    "rsa_pkcs1_sha256",
    "rsa_pkcs1_sha384",
    "rsa_pkcs1_sha512",
    "ecdsa_secp256r1_sha256",
    "ecdsa_secp384r1_sha384",
    "rsa_pss_rsae_sha256",
    "rsa_pss_rsae_sha384",
    "rsa_pss_rsae_sha512",
];

/// Names by IANA and by OpenSSL.
const SUITES: [(&str, &str); 6] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
];

/// Suites that configurations name and that do not exist here, or that (TLS 1.3) are always on.
const ABSENT_SUITES: [&str; 29] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES128-SHA",
    "AES128-SHA256",
    "AES256-GCM-SHA384",
    "AES256-SHA",
    "AES256-SHA256",
    "DES-CBC3-SHA",
    "ECDHE-PSK-AES128-CBC-SHA",
    "ECDHE-PSK-AES256-CBC-SHA",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "PSK-AES128-CBC-SHA",
    "PSK-AES256-CBC-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
];

const CURVE_ALIASES: [(&str, &str); 3] = [("prime256v1", "P-256"), ("secp384r1", "P-384"), ("x25519", "X25519")];
const ABSENT_CURVES: [&str; 6] = ["P-224", "secp224r1", "P-521", "secp521r1", "X25519Kyber768Draft00", "MLKEM1024"];

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut tls::TlsParameters);

    const ROOT: FieldPath<'static> = FieldPath::Resource { kind: "cluster", name: "billing" };

    fn with(change: impl FnOnce(&mut tls::TlsParameters)) -> Result<Parameters, String> {
        let mut wire = tls::TlsParameters::default();
        change(&mut wire);
        read(&ROOT.field("tls_params"), wire).map_err(|error| error.to_string())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn versions_run_from_tls12_to_tls13() {
        let cases = [
            (0, 0, true, true),
            (1, 0, true, true),
            (2, 3, true, false),
            (3, 4, true, true),
            (4, 0, false, true),
            (4, 4, false, true),
        ];
        for (minimum, maximum, tls12, tls13) in cases {
            let read = with(|wire| {
                wire.tls_minimum_protocol_version = minimum;
                wire.tls_maximum_protocol_version = maximum;
            });
            assert_eq!(read.unwrap().versions, TlsVersions { tls12, tls13 }, "{minimum} {maximum}");
        }
    }

    #[test]
    fn suites_that_do_not_exist_here_are_left_out() {
        let read = with(|wire| {
            wire.cipher_suites = names(&[
                "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
                "AES128-SHA",
                "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
                "ECDHE-RSA-AES256-GCM-SHA384",
            ]);
            wire.ecdh_curves = names(&["P-521", "prime256v1", "X25519"]);
        })
        .unwrap();
        assert_eq!(
            read.cipher_suites,
            [
                "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
                "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
                "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"
            ]
        );
        assert_eq!(read.curves, ["P-256", "X25519"]);
        assert_eq!(read.left_out, ["AES128-SHA", "P-521"]);
    }

    #[test]
    fn a_compliance_policy_has_the_last_word() {
        let read = with(|wire| wire.compliance_policies = vec![0]).unwrap();
        assert!(read.fips_202205 && read.cipher_suites.len() == 4);
        assert_eq!(read.curves, ["P-256", "P-384"]);
        let read = with(|wire| {
            wire.compliance_policies = vec![0];
            wire.cipher_suites = names(&["ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-GCM-SHA256"]);
            wire.ecdh_curves = names(&["X25519", "P-384"]);
            wire.signature_algorithms = names(&["ed25519", "ecdsa_secp384r1_sha384", "ecdsa_sha1"]);
        })
        .unwrap();
        assert_eq!(read.cipher_suites, ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]);
        assert_eq!((read.curves, read.signature_algorithms), (vec!["P-384"], vec!["ecdsa_secp384r1_sha384"]));
        assert_eq!(read.left_out, ["ecdsa_sha1", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "X25519", "ed25519"]);
    }

    #[test]
    fn parameters_that_are_refused() {
        let cases: [(Change, &str); 10] = [
            (
                |wire| wire.tls_maximum_protocol_version = 2,
                ".tls_maximum_protocol_version: TLSv1_1 is not supported, expected TLSv1_2 or TLSv1_3",
            ),
            (
                |wire| {
                    wire.tls_minimum_protocol_version = 4;
                    wire.tls_maximum_protocol_version = 3;
                },
                ".tls_maximum_protocol_version: TLSv1_2 is below the minimum TLSv1_3",
            ),
            (|wire| wire.tls_minimum_protocol_version = 7, ".tls_minimum_protocol_version: 7 is not a known value"),
            (|wire| wire.cipher_suites = names(&["FOO"]), ".cipher_suites[0]: \"FOO\" is not a known cipher suite"),
            (|wire| wire.ecdh_curves = names(&["FOO"]), ".ecdh_curves[0]: \"FOO\" is not a known curve"),
            (
                |wire| wire.ecdh_curves = names(&["P-521"]),
                ".ecdh_curves: [\"P-521\"] has no supported curve, \
                 expected some of [\"X25519MLKEM768\", \"X25519\", \"P-256\", \"P-384\"]",
            ),
            (|wire| wire.compliance_policies = vec![9], ".compliance_policies[0]: 9 is not a known value"),
            (|wire| wire.compliance_policies = vec![0, 0], ".compliance_policies: 2 policies, expected up to one"),
            (
                |wire| {
                    wire.compliance_policies = vec![0];
                    wire.ecdh_curves = names(&["X25519"]);
                },
                ".compliance_policies[0]: \
                 FIPS_202205 allows none of the cipher_suites, ecdh_curves or signature_algorithms",
            ),
            (
                |wire| wire.signature_algorithms = names(&["rsa"]),
                ".signature_algorithms[0]: \"rsa\" is not a known signature algorithm",
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(with(change).err().unwrap(), format!("cluster \"billing\": tls_params{expected}"));
        }
        let error = with(|wire| wire.cipher_suites = names(&["AES128-SHA"])).err().unwrap();
        assert!(error.contains("has no suite for TLS 1.2 that is supported"), "{error}");
        // Nothing is lost where TLS 1.2 is off.
        with(|wire| {
            wire.cipher_suites = names(&["AES128-SHA"]);
            wire.tls_minimum_protocol_version = 4;
        })
        .unwrap();
    }
}
