//! OCSP responses that are to be stapled. The first byte is the serial number of the certificate.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::tls::staple_holds_until;

fuzz_target!(|data: &[u8]| {
    let Some((serial, response)) = data.split_first() else { return };
    let read = staple_holds_until(response, &[*serial]);
    assert_eq!(staple_holds_until(response, &[0, *serial]), read, "leading zeros mean nothing");
    if read.is_ok() {
        assert!(staple_holds_until(response, &[serial.wrapping_add(1)]).is_err(), "it is for one certificate");
    }
});
