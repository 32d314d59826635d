use super::*;

/// RFC 7517 appendix A.1: an EC and an RSA key.
const PUBLISHED: &str = r#"{"keys":[
    {"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
     "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","use":"enc","kid":"1"},
    {"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
     "e":"AQAB","alg":"RS256","kid":"2011-04-29"}]}"#;

fn error(text: &str) -> &'static str {
    Jwks::parse(text.as_bytes()).unwrap_err().0
}

fn key_error(key: &str) -> &'static str {
    error(&format!(r#"{{"keys":[{key}]}}"#))
}

#[test]
fn published_keys_are_read() {
    let keys = Jwks::parse(PUBLISHED.as_bytes()).unwrap().keys;
    assert_eq!(keys.len(), 2);
    assert!(matches!(keys[0].material, KeyMaterial::EllipticCurve { curve: Curve::P256, .. }));
    assert_eq!((&*keys[1].key_id, &*keys[1].algorithm), ("2011-04-29", "RS256"));
    let KeyMaterial::Rsa(key) = &keys[1].material else { panic!("an RSA key") };
    assert!(key.for_algorithm(Algorithm::Rs256).is_some() && key.for_algorithm(Algorithm::Ps256).is_none());
}

#[test]
fn keys_that_cannot_be_used_are_left_out() {
    let mixed = r#"{"keys":[1,{"kty":"none"},{"kty":"oct","k":"AAAA"}]}"#;
    assert_eq!(Jwks::parse(mixed.as_bytes()).unwrap().keys.len(), 1);
}

#[test]
fn what_is_no_set_says_why() {
    assert_eq!(error("x"), "Jwks is an invalid JSON");
    assert_eq!(error("[]"), "Jwks is an invalid JSON");
    assert_eq!(error(r#"{"keys":[],"keys":[]}"#), "Jwks is an invalid JSON");
    assert_eq!(error("{}"), "Jwks does not have [keys] field");
    assert_eq!(error(r#"{"keys":1}"#), "[keys] in Jwks is not an array");
    assert_eq!(error(r#"{"keys":[]}"#), "Jwks doesn't have any valid public key");
    assert_eq!(error(&" ".repeat(MAX_BYTES + 1)), "Jwks is too large");
}

#[test]
fn what_is_no_key_says_why() {
    for (key, expected) in [
        (r#"{}"#, "[kty] is missing in [keys]"),
        (r#"{"kty":1}"#, "[kty] is bad in [keys]"),
        (r#"{"kty":"x"}"#, "[kty] is not supported in [keys]"),
        (r#"{"kty":"RSA","alg":"ES256"}"#, "[alg] is not started with [RS] or [PS] for an RSA key"),
        (r#"{"kty":"RSA"}"#, "[n] field is missing for a RSA key"),
        (r#"{"kty":"RSA","n":1}"#, "[n] field is not string for a RSA key"),
        (r#"{"kty":"RSA","n":"AQAB"}"#, "[e] field is missing for a RSA key"),
        (r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#, "Jwks RSA [n] or [e] field is missing or has a parse error"),
        (r#"{"kty":"RSA","n":"AQAB","e":"BQ"}"#, "Jwks RSA [n] or [e] field is missing or has a parse error"),
        (r#"{"kty":"EC","alg":"RS256"}"#, "[alg] is not started with [ES] for an EC key"),
        (r#"{"kty":"EC","crv":1}"#, "[crv] field is not string for an EC key"),
        (
            r#"{"kty":"EC","crv":"P-256","alg":"ES384"}"#,
            "[crv] field specified is not compatible with [alg] for an EC key",
        ),
        (r#"{"kty":"EC","crv":"P-1"}"#, "[crv] or [alg] field is not supported for an EC key"),
        (r#"{"kty":"EC"}"#, "[x] field is missing for an EC key"),
        (r#"{"kty":"EC","x":"AA","y":"!"}"#, "Jwks EC [x] or [y] field is an invalid Base64."),
        (r#"{"kty":"EC","x":"AQ","y":"AQ"}"#, "Jwks EC [x] and [y] fields have a parse error."),
        (r#"{"kty":"oct","alg":"RS256"}"#, "[alg] does not start with [HS] for an HMAC key"),
        (r#"{"kty":"oct","k":""}"#, "Jwks Oct key is an invalid Base64"),
        (r#"{"kty":"OKP","alg":"ES256"}"#, "[alg] is not [EdDSA] for an OKP key"),
        (r#"{"kty":"OKP","crv":"X25519"}"#, "[crv] field is not supported for an OKP key"),
        (r#"{"kty":"OKP","crv":"Ed25519","x":"AA"}"#, "Jwks OKP [x] field is wrong length."),
    ] {
        assert_eq!(key_error(key), expected, "{key}");
    }
}

#[test]
fn certificates_of_rsa_keys_are_read() {
    let set = |pem: &str| serde_json::json!({ "id": pem }).to_string();
    let keys = Jwks::parse(set(RSA_CERTIFICATE).as_bytes()).unwrap().keys;
    assert_eq!((&*keys[0].key_id, &*keys[0].algorithm), ("id", ""));
    assert!(matches!(&keys[0].material, KeyMaterial::Rsa(key) if key.for_algorithm(Algorithm::Ps512).is_some()));
    assert_eq!(error(&set(EC_CERTIFICATE)), "X509 parse pubkey internal fails: get pubkey");
    let torn = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(error(&set(torn)), "X509 parse pubkey fails");
}

/// Made with openssl for this test.
const RSA_CERTIFICATE: &str = concat!(
    "-----BEGIN CERTIFICATE-----\n",
    "MIIC+zCCAeOgAwIBAgIUMd9jAYj99UXiPkyU5XJCtnfTqoUwDQYJKoZIhvcNAQEL\n",
    "BQAwDDEKMAgGA1UEAwwBYTAgFw0yNjExMzAwMzIwMjJaGA8yMTI2MTEwNjAzMjAy\n",
    "MlowDDEKMAgGA1UEAwwBYTCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEB\n",
    "ANtecdj7nDJt+cIT4jR2JIcveEI3WJvz2VmWa3q3jHojjeh1L4XVjBswKcJAzD0E\n",
    "wcwFvMbevcQseRRruIUoo2rC/egmACPX2STH48+WL6/lBwI/BsKmRF4ptJcP13bK\n",
    "Zrg/OJ4amnP17l8S0QlvFzAvthHYBvqxCdASe1wVsUcE2WbAsxaYn1rKv5jJSfCR\n",
    "rJRtpQx+TohrD97H48sPvr3jM9MSOXN8aC4GTf6gWcBpfqIMyEGltNhkCUVL3PFd\n",
    "GDUCbNM6MdjWYzoHrvjHXzLPVyaNcugdaljM7CA88uNZSC+3YryAHCQUZBFn27O6\n",
    "w2+g1EIdXn+rjZnksywbNKUCAwEAAaNTMFEwHQYDVR0OBBYEFAYAkf5jAvcAjPEC\n",
    "2vcmKnNmq5ksMB8GA1UdIwQYMBaAFAYAkf5jAvcAjPEC2vcmKnNmq5ksMA8GA1Ud\n",
    "EwEB/wQFMAMBAf8wDQYJKoZIhvcNAQELBQADggEBAD6SRl4uL5T6BRsTOMSUL58J\n",
    "LZhSA2al2tVdztKrBy4omvpN4Li3dCyYhbbe7EUDxGN7silKEIfNsm13aZI63YC5\n",
    "5lAsZOj3Po2iTj+v58pi5ZpvNNQQSngpanyzp/HkEmLz48HoiypF/ueNj7FKhRVY\n",
    "GPlrsFq149WLiYbVjVGdBr3MVcR/YoH2a+06qdjg+932klSNlU13toUFUQRDJnsS\n",
    "YvlLFGaX6OgZcuJRt0MozANBL1/zy+PZjQPTv4ZeNtjnJYaSEcD+v+jpKI/ndlcP\n",
    "RazotpikCMFUvjgszNeTrjMKJwSiVxTBGPEowPEZVu83Limp457HipVyV4yS7yY=\n",
    "-----END CERTIFICATE-----\n",
);
/// The same with a key that is not RSA.
const EC_CERTIFICATE: &str = concat!(
    "-----BEGIN CERTIFICATE-----\n",
    "MIIBbzCCARWgAwIBAgIUER5IH7kvU2BeS/l8juNLdSu7CV8wCgYIKoZIzj0EAwIw\n",
    "DDEKMAgGA1UEAwwBYTAgFw0yNjExMzAwMzIwMjJaGA8yMTI2MTEwNjAzMjAyMlow\n",
    "DDEKMAgGA1UEAwwBYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABDUBe9JS7Hzc\n",
    "4PqS0PqleA5Ik4Jk3EiAG1IY0pTWG27QI265HnVwLK5DHgSTb0LcOk/dGBXRkdVK\n",
    "uddDZz/nKQ6jUzBRMB0GA1UdDgQWBBRUL4yrUncuOCsXquKN1Bca1XEIWzAfBgNV\n",
    "HSMEGDAWgBRUL4yrUncuOCsXquKN1Bca1XEIWzAPBgNVHRMBAf8EBTADAQH/MAoG\n",
    "CCqGSM49BAMCA0gAMEUCIQDTR+OuFmwWDO+BexWt/KfOXJdYxW5GCWednKq8SUa+\n",
    "aQIgW5Sc6ywt4FeQa3Hipak8gIazQPiRXCyf4v1aXQ9DJoU=\n",
    "-----END CERTIFICATE-----\n",
);

#[test]
fn secrets_are_not_shown() {
    let keys = Jwks::parse(br#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#).unwrap();
    assert_eq!(format!("{keys:?}"), r#"Jwks { keys: [Jwk { key_id: "", algorithm: "", material: oct }] }"#);
}

#[test]
fn objects_are_read_in_one_way_only() {
    assert!(strict_object(br#"{"a":{"b":[1,{"c":null}]}}"#).is_some());
    for bad in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"a":2}]}"#, r#"{} x"#, r#"{"a":1,}"#, "{'a':1}", "1"] {
        assert_eq!(strict_object(bad.as_bytes()), None, "{bad}");
    }
    let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
    assert!(strict_object(nested(MAX_DEPTH - 1).as_bytes()).is_some());
    assert!(strict_object(nested(MAX_DEPTH).as_bytes()).is_none());
}

proptest::proptest! {
    #[test]
    fn nothing_breaks_the_reader(text in "\\{\"keys\":\\[\\{\"kty\":\"(RSA|EC|oct|OKP)\",\"(n|x|k|crv)\":\"[A-Za-z0-9_-]{0,40}\",\"(e|y)\":\"[A-Za-z0-9_-]{0,8}\"\\}\\]\\}") {
        let _ = Jwks::parse(text.as_bytes());
    }
}
