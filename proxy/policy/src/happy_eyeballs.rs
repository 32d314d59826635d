//! The order in which the addresses of an endpoint are tried (RFC 8305, section 4).
//!
//! Owns the order alone. Never connects, and never knows how long an attempt has to wait for the one before.

use std::net::SocketAddr;

use outrigger_config::cluster::HappyEyeballs;

/// The order of `addresses`, as positions: families take turns, after as many of the first one as are wanted.
pub fn order(addresses: &[SocketAddr], wanted: HappyEyeballs) -> Vec<usize> {
    let first_is_ipv6 = wanted.first_is_ipv6.or_else(|| addresses.first().map(SocketAddr::is_ipv6)).unwrap_or(true);
    let of = |ipv6: bool| addresses.iter().enumerate().filter(move |(_, address)| address.is_ipv6() == ipv6);
    let mut first = of(first_is_ipv6).map(|(position, _)| position);
    let mut other = of(!first_is_ipv6).map(|(position, _)| position);
    let mut order: Vec<usize> = first.by_ref().take(wanted.first_count as usize).collect();
    loop {
        let pair = [other.next(), first.next()];
        if pair == [None, None] {
            return order;
        }
        order.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(families: &str, wanted: HappyEyeballs) -> String {
        let address = |family: char| match family {
            '4' => "10.0.0.1:1".parse().unwrap(),
            _ => "[::1]:1".parse().unwrap(),
        };
        let addresses: Vec<SocketAddr> = families.chars().map(address).collect();
        let order = order(&addresses, wanted);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..addresses.len()).collect::<Vec<_>>(), "each once");
        order.iter().map(|position| families.as_bytes()[*position] as char).collect()
    }

    #[test]
    fn families_take_turns() {
        let default = HappyEyeballs::default();
        assert_eq!(ordered("444666", default), "464646");
        assert_eq!(ordered("666644", default), "646466");
        assert_eq!(ordered("44", default), "44");
        assert_eq!(ordered("", default), "");
        assert_eq!(ordered("446", HappyEyeballs { first_is_ipv6: Some(true), first_count: 1 }), "644");
        assert_eq!(ordered("444466", HappyEyeballs { first_is_ipv6: Some(false), first_count: 2 }), "446464");
        assert_eq!(ordered("44", HappyEyeballs { first_is_ipv6: Some(true), first_count: 3 }), "44");
    }
}
