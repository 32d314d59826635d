//! Why a token is refused.
//!
//! Owns texts and codes, which clients, logs and metadata show; both are Envoy's.

macro_rules! failures {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        /// Why a token is refused.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[allow(missing_docs)]
        pub enum JwtFailure { $($name = $code,)* }

        impl JwtFailure {
            /// What the client is told.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

failures! {
    Missing = 1, "Jwt is missing";
    NotYetValid = 2, "Jwt not yet valid";
    Expired = 3, "Jwt is expired";
    BadFormat = 4, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
    HeaderBase64 = 5, "Jwt header is an invalid Base64url encoded";
    HeaderJson = 6, "Jwt header is an invalid JSON";
    HeaderAlgorithm = 7, "Jwt header [alg] field is required and must be a string";
    UnknownAlgorithm = 8, "Jwt header [alg] is not supported";
    HeaderKeyId = 9, "Jwt header [kid] field is not a string";
    PayloadBase64 = 10, "Jwt payload is an invalid Base64url encoded";
    PayloadJson = 11, "Jwt payload is an invalid JSON";
    IssuerType = 12, "Jwt payload [iss] field is not a string";
    SubjectType = 13, "Jwt payload [sub] field is not a string";
    IssuedAtType = 14, "Jwt payload [iat] field is not an integer";
    IssuedAtRange = 15, "Jwt payload [iat] field is not a positive 64 bit integer";
    NotBeforeType = 16, "Jwt payload [nbf] field is not an integer";
    NotBeforeRange = 17, "Jwt payload [nbf] field is not a positive 64 bit integer";
    ExpirationType = 18, "Jwt payload [exp] field is not an integer";
    ExpirationRange = 19, "Jwt payload [exp] field is not a positive 64 bit integer";
    TokenIdType = 20, "Jwt payload [jti] field is not a string";
    AudienceType = 21, "Jwt payload [aud] field is not a string or string list";
    SignatureBase64 = 22, "Jwt signature is an invalid Base64url encoded";
    Ed25519Length = 23, "Jwt ED25519 signature is wrong length";
    UnknownIssuer = 24, "Jwt issuer is not configured";
    Audience = 25, "Audiences in Jwt are not allowed";
    Verification = 26, "Jwt verification fails";
    NoKeys = 31, "Jwks doesn't have any valid public key";
    NoMatchingKey = 32, "Jwks doesn't have key to match kid or alg from Jwt";
    Fetch = 40, "Jwks remote fetch is failed";
}

impl JwtFailure {
    /// The number in metadata.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// 403 for a token that is for somebody else, 401 for all else.
    pub fn status(self) -> u16 {
        if self == Self::Audience { 403 } else { 401 }
    }
}
