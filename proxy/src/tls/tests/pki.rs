//! Certificates and contexts for tests.

use std::io::Write as _;
use std::sync::Arc;

use outrigger_config::matching::StringMatcher;
use outrigger_config::tls::{
    CommonTls, DownstreamTls, OcspPolicy, SanKind, SanMatcher, TlsCertificate, TlsVersions, UpstreamTls, Validation,
    ValidationSource,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::stream::TlsInfo;
use crate::tls::{ClientTls, HandshakeError, ServerTls};

/// An authority.
pub(super) struct Authority {
    pub(super) pem: String,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    pub(super) fn new(name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// An authority below this one.
    pub(super) fn intermediate(&self, name: &str) -> Self {
        let (params, key) = (Self::params(name), KeyPair::generate().unwrap());
        Self { pem: params.signed_by(&key, &self.issuer).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    pub(super) fn validation(&self) -> Validation {
        Validation { trusted_ca_pem: self.pem.clone().into_bytes(), ..Validation::default() }
    }

    pub(super) fn leaf(&self, names: &[&str]) -> Leaf {
        self.leaf_with(names, |_| {})
    }

    pub(super) fn leaf_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        self.leaf_with_key(names, KeyPair::generate().unwrap(), change)
    }

    pub(super) fn leaf_with_key(
        &self,
        names: &[&str],
        key: KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Leaf {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names
            .iter()
            .map(|name| match (name.contains("://"), name.parse()) {
                (true, _) => SanType::URI((*name).try_into().unwrap()),
                (_, Ok(ip)) => SanType::IpAddress(ip),
                _ => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { pem: certificate.pem(), der: certificate.der().to_vec(), key_pem: key.serialize_pem() }
    }
}

/// A certificate with its key.
#[derive(Clone)]
pub(super) struct Leaf {
    pub(super) pem: String,
    pub(super) der: Vec<u8>,
    pub(super) key_pem: String,
}

impl Leaf {
    pub(super) fn below(mut self, intermediate: &Authority) -> Self {
        self.pem.push_str(&intermediate.pem);
        self
    }

    pub(super) fn secret(&self) -> Arc<TlsCertificate> {
        Arc::new(certificate(&self.pem, &self.key_pem))
    }
}

pub(super) fn certificate(chain: &str, key: &str) -> TlsCertificate {
    TlsCertificate {
        chain_pem: chain.as_bytes().to_vec(),
        key_pem: key.as_bytes().to_vec(),
        files: Vec::new(),
        ocsp_staple: None,
    }
}

pub(super) fn exact(kind: SanKind, value: &str) -> SanMatcher {
    SanMatcher {
        kind: Some(kind),
        oid: None,
        matcher: StringMatcher::Exact { value: value.to_owned(), ignore_case: false },
    }
}

pub(super) fn common() -> CommonTls {
    CommonTls {
        versions: TlsVersions { tls12: true, tls13: true },
        cipher_suites: Vec::new(),
        curves: Vec::new(),
        signature_algorithms: Vec::new(),
        fips_202205: false,
        left_out: Vec::new(),
        alpn: Vec::new(),
        certificates: Vec::new(),
        validation: ValidationSource::None,
        key_log: None,
    }
}

pub(super) fn alpn(values: &[&str]) -> CommonTls {
    CommonTls { alpn: values.iter().map(|value| (*value).to_owned()).collect(), ..common() }
}

pub(super) fn only(tls12: bool, tls13: bool) -> CommonTls {
    CommonTls { versions: TlsVersions { tls12, tls13 }, ..common() }
}

pub(super) fn downstream(common: CommonTls) -> DownstreamTls {
    DownstreamTls {
        common,
        require_client_certificate: false,
        require_sni: false,
        disable_stateless_resumption: false,
        disable_stateful_resumption: false,
        prefer_client_ciphers: false,
        ticket_keys: None,
        session_timeout: None,
        ocsp_policy: OcspPolicy::Lenient,
    }
}

pub(super) fn upstream(common: CommonTls) -> UpstreamTls {
    UpstreamTls {
        common,
        sni: "api.example.com".to_owned(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
        max_session_keys: 1,
    }
}

/// A plain server for `leaf`.
pub(super) fn server(leaf: &Leaf, validation: Option<&Validation>) -> ServerTls {
    ServerTls::build(&downstream(common()), &[leaf.secret()], validation).unwrap()
}

/// A server that turns away clients without a certificate.
pub(super) fn strict_server(leaf: &Leaf, validation: Option<&Validation>) -> ServerTls {
    let config = DownstreamTls { require_client_certificate: true, ..downstream(common()) };
    ServerTls::build(&config, &[leaf.secret()], validation).unwrap()
}

/// A plain client.
pub(super) fn client(leaf: Option<&Leaf>, validation: Option<&Validation>) -> ClientTls {
    let secrets: Vec<_> = leaf.iter().map(|leaf| leaf.secret()).collect();
    ClientTls::build(&upstream(common()), &secrets, validation).unwrap()
}

/// What one side saw.
pub(super) type Seen = Result<TlsInfo, HandshakeError>;

/// One connection: both handshakes, then a byte each way where both succeeded.
pub(super) async fn connect(server: &ServerTls, client: &ClientTls) -> (Seen, Seen) {
    connect_as(server, client, None, None).await
}

pub(super) async fn connect_as(
    server: &ServerTls,
    client: &ClientTls,
    server_name: Option<&str>,
    alpn: Option<&[Vec<u8>]>,
) -> (Seen, Seen) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let serve = async {
        let (mut stream, info) = server.accept(far).await?;
        if let Ok(byte) = stream.read_u8().await {
            stream.write_u8(byte + 1).await.unwrap();
        }
        Ok(info)
    };
    let ask = async {
        let (mut stream, info) = client.connect(near, server_name, alpn).await?;
        stream.write_u8(1).await.map_err(HandshakeError::from)?;
        // In TLS 1.3 a server's refusal arrives only now.
        assert_eq!(stream.read_u8().await.map_err(HandshakeError::from)?, 2);
        Ok(info)
    };
    tokio::join!(serve, ask)
}

/// Writes a file for a program that wants one.
pub(super) fn file(dir: &tempfile::TempDir, name: &str, content: &str) -> std::path::PathBuf {
    let path = dir.path().join(name);
    std::fs::File::create(&path).unwrap().write_all(content.as_bytes()).unwrap();
    path
}
