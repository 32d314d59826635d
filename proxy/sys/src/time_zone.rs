//! The time zone of this machine.
//!
//! Owns the question to the C library, which knows the tables. Never formats.

/// Seconds east of Greenwich at a moment given in seconds since 1970; 0 if the C library cannot tell.
pub fn offset_seconds(since_epoch: u64) -> i32 {
    let Ok(seconds) = libc::time_t::try_from(since_epoch) else { return 0 };
    let mut broken_down = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call, which keeps neither; the C library reads the zone with a lock of its own.
    let filled = unsafe { libc::localtime_r(&raw const seconds, broken_down.as_mut_ptr()) };
    if filled.is_null() {
        return 0;
    }
    // SAFETY: all zeroes are a valid `tm`, and the call above filled it in.
    let broken_down = unsafe { broken_down.assume_init() };
    i32::try_from(broken_down.tm_gmtoff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_zone_is_more_than_a_day_away() {
        for moment in [0, 1_795_225_435, u64::MAX] {
            assert!(offset_seconds(moment).abs() <= 86_400);
        }
    }
}
