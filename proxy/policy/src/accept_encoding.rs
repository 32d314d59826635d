//! Which encoding a response gets (RFC 9110 section 12.5.3), when several compressors stand in a chain.
//!
//! Owns the choice by `accept-encoding`. Never looks at a response, and never compresses one.

/// An encoding that a response may get.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offer {
    /// As it stands in headers.
    pub coding: &'static str,
    /// Wins over others that the client accepts as gladly.
    pub choose_first: bool,
}

/// What is chosen, and why.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// The client names this one.
    Named(&'static str),
    /// The client takes any, so this one.
    Any(&'static str),
    /// The client would rather have none.
    Identity,
    /// The client accepts none of those that there are, or says nothing that makes sense.
    NotValid,
}

impl Choice {
    /// The encoding, if there is one.
    pub fn coding(self) -> Option<&'static str> {
        match self {
            Self::Named(coding) | Self::Any(coding) => Some(coding),
            Self::Identity | Self::NotValid => None,
        }
    }
}

/// Chooses one of `offers`, which stand in the order of the chain. Names are compared as they stand, as in Envoy.
pub fn choose(accept_encoding: &str, offers: &[Offer]) -> Choice {
    let wanted: Vec<(&str, f32)> = accept_encoding.split(',').filter_map(wish).collect();
    let refused = |coding: &str| wanted.iter().any(|(name, weight)| *name == coding && *weight == 0.0);
    let offers: Vec<&Offer> = offers.iter().filter(|offer| !refused(offer.coding)).collect();
    let Some(first) = offers.first() else { return Choice::NotValid };
    let mut choice = (Choice::NotValid, 0.0);
    for (name, weight) in wanted {
        let offer = offers.iter().find(|offer| offer.coding == name);
        let better =
            weight > choice.1 || weight == choice.1 && weight > 0.0 && offer.is_some_and(|offer| offer.choose_first);
        if !better {
            continue;
        }
        choice = match (offer, name) {
            (Some(offer), _) => (Choice::Named(offer.coding), weight),
            (None, "identity") => (Choice::Identity, weight),
            (None, "*") => (Choice::Any(first.coding), weight),
            (None, _) => choice,
        };
    }
    choice.0
}

/// One element of the list with its weight; `None` if it has none that makes sense.
fn wish(element: &str) -> Option<(&str, f32)> {
    let (name, parameters) = element.split_once(';').unwrap_or((element, ""));
    let name = name.trim();
    if name.is_empty() {
        return None;
    }
    let weight = match parameters.split_once('=') {
        Some((q, value)) if q.trim().eq_ignore_ascii_case("q") => {
            value.trim().parse().ok().filter(|weight: &f32| !weight.is_nan())?
        }
        _ => 1.0,
    };
    Some((name, weight))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn offer(coding: &'static str) -> Offer {
        Offer { coding, choose_first: false }
    }

    const THREE: [Offer; 3] = [offer("gzip"), offer("br"), offer("zstd")];

    #[test]
    fn the_highest_weight_wins_and_then_the_first() {
        for (accept, expected) in [
            ("gzip, br, zstd", Choice::Named("gzip")),
            ("br, gzip", Choice::Named("br")),
            ("gzip;q=0.1, br;q=0.2", Choice::Named("br")),
            ("gzip ; Q = 0.5 , br;q=0.4", Choice::Named("gzip")),
            ("*", Choice::Any("gzip")),
            ("gzip;q=0,*", Choice::Any("br")),
            ("identity, gzip", Choice::Identity),
            ("identity;q=0.5, gzip", Choice::Named("gzip")),
            ("deflate", Choice::NotValid),
            ("GZIP", Choice::NotValid),
            ("gzip;q=x", Choice::NotValid),
            ("gzip;q=0, br;q=0, zstd;q=0", Choice::NotValid),
            ("", Choice::NotValid),
        ] {
            assert_eq!(choose(accept, &THREE), expected, "{accept}");
        }
        assert_eq!(choose("gzip", &[]), Choice::NotValid);
    }

    #[test]
    fn a_preferred_offer_wins_among_equals() {
        let offers =
            [offer("gzip"), Offer { choose_first: true, ..offer("br") }, Offer { choose_first: true, ..offer("zstd") }];
        for (accept, expected) in
            [("gzip, br, zstd", "zstd"), ("zstd, br, gzip", "br"), ("br, gzip", "br"), ("gzip;q=0.3, br;q=0.2", "gzip")]
        {
            assert_eq!(choose(accept, &offers), Choice::Named(expected), "{accept}");
        }
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_offered(accept in "[a-z*;=.0-9, q]{0,40}") {
            if let Some(coding) = choose(&accept, &THREE).coding() {
                prop_assert!(THREE.iter().any(|offer| offer.coding == coding));
            }
        }
    }
}
