//! When what a context is made of expires, for stats (`ssl.certificate.<name>.expiration_unix_time_seconds`).
//!
//! Owns what certificates are called there. Never looks at a clock.

use std::sync::Arc;

/// The secrets that a context takes its certificates from; `None` for what stands in the configuration itself.
#[derive(Clone, Debug, Default)]
pub struct SecretNames {
    /// Of our certificates, in order.
    pub certificates: Vec<Option<Arc<str>>>,
    /// Of the trusted ones.
    pub authorities: Option<Arc<str>>,
}

/// When the parts of a context expire, in Unix seconds.
#[derive(Debug, Default)]
pub struct Expirations {
    pub(super) names: SecretNames,
    /// Of our certificates, in order.
    pub(super) certificates: Vec<u64>,
    /// Of the trusted certificate that expires first.
    pub(super) authorities: Option<u64>,
    /// Of the OCSP response that expires first; 0 for one that does not say.
    pub(super) staple: Option<u64>,
}

impl Expirations {
    /// Names as stats have them. Of several with the same name, the last one counts.
    pub fn certificates(&self) -> impl Iterator<Item = (&str, u64)> {
        let own = self.certificates.iter().enumerate().map(|(place, time)| {
            let name = self.names.certificates.get(place).and_then(Option::as_deref);
            (name.unwrap_or(UNNAMED), *time)
        });
        let name = self.names.authorities.as_deref().unwrap_or(UNNAMED_AUTHORITIES);
        own.chain(self.authorities.map(|time| (name, time)))
    }

    /// Of the OCSP response that expires first.
    pub fn staple(&self) -> Option<u64> {
        self.staple
    }
}

/// What Envoy calls all certificates without a name.
const UNNAMED: &str = "unnamed_cert_e3b0c442";
const UNNAMED_AUTHORITIES: &str = "unnamed_ca_cert_e3b0c442";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_called_like_their_secrets() {
        let names = SecretNames { certificates: vec![Some("own".into()), None], authorities: None };
        let times = Expirations { names, certificates: vec![3, 5], authorities: Some(4), staple: None };
        let shown: Vec<_> = times.certificates().collect();
        assert_eq!(shown, [("own", 3), ("unnamed_cert_e3b0c442", 5), ("unnamed_ca_cert_e3b0c442", 4)]);
        let names = SecretNames { authorities: Some("roots".into()), ..SecretNames::default() };
        let times = Expirations { names, authorities: Some(4), ..Expirations::default() };
        assert_eq!(times.certificates().collect::<Vec<_>>(), [("roots", 4)]);
    }
}
