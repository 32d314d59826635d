//! The algorithms that tokens may be signed with (RFC 7518 section 3.1, RFC 8037).
//!
//! Owns their names and what kind of key each needs. There is no `none` among them.

/// How a token is signed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[allow(missing_docs)]
pub enum Algorithm {
    Es256,
    Es384,
    Es512,
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    EdDsa,
}

/// What kind of key an algorithm needs: a key of another kind never verifies it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// RSASSA-PKCS1-v1_5 and RSASSA-PSS.
    Rsa,
    /// ECDSA.
    EllipticCurve,
    /// HMAC.
    Symmetric,
    /// Ed25519.
    EdwardsCurve,
}

impl Algorithm {
    /// All there are.
    pub const ALL: [Self; 13] = [
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Hs256,
        Self::Hs384,
        Self::Hs512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::EdDsa,
    ];

    /// The algorithm with this name; names are case-sensitive.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// As `alg` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The kind of key it needs.
    pub fn family(self) -> Family {
        match self {
            Self::Es256 | Self::Es384 | Self::Es512 => Family::EllipticCurve,
            Self::Hs256 | Self::Hs384 | Self::Hs512 => Family::Symmetric,
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => Family::Rsa,
            Self::EdDsa => Family::EdwardsCurve,
        }
    }
}
