//! What gRPC statuses are in HTTP.
//!
//! Owns the mapping from gRPC to HTTP. Never reads a header.

/// The HTTP status for a gRPC status. Source: `google/rpc/code.proto`, as Envoy maps it.
pub fn http_status(grpc_status: u64) -> u16 {
    match grpc_status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_one_in_http() {
        let statuses: Vec<u16> = (0..18).map(http_status).collect();
        assert_eq!(
            statuses,
            [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401, 500]
        );
    }
}
