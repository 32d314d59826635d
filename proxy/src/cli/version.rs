//! Who we are, and who we say we are.
//!
//! Owns the version line that launchers parse. Never decides what depends on a version.

use std::fmt;
use std::str::FromStr;

/// Overrides the emulated version, for launchers that choose the arguments of `--version` themselves.
pub const EMULATED_VERSION_VARIABLE: &str = "OUTRIGGER_EMULATED_VERSION";

/// Our own version.
pub const BUILD_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What does TLS.
pub const TLS_LIBRARY: &str = "AWS-LC";

/// The commit that this was built from: 40 hexadecimal digits, all zero unless the build sets `OUTRIGGER_REVISION`.
pub const REVISION: &str = match option_env!("OUTRIGGER_REVISION") {
    Some(revision) if is_commit(revision.as_bytes()) => revision,
    _ => "0000000000000000000000000000000000000000",
};

const fn is_commit(text: &[u8]) -> bool {
    let mut index = 0;
    while index < text.len() {
        if !matches!(text[index], b'0'..=b'9' | b'a'..=b'f') {
            return false;
        }
        index += 1;
    }
    index == 40
}

/// The Envoy release whose place we take. Control planes and launchers refuse what they take for an old Envoy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EmulatedVersion {
    /// 1, so far.
    pub major: u32,
    /// One every quarter.
    pub minor: u32,
    /// Fixes.
    pub patch: u32,
}

impl Default for EmulatedVersion {
    fn default() -> Self {
        Self { major: 1, minor: 40, patch: 0 }
    }
}

impl FromStr for EmulatedVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('.').map(|part| {
            // Rust's numbers may begin with a sign.
            part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten()
        });
        match [parts.next(), parts.next(), parts.next(), parts.next()] {
            [Some(Some(major)), Some(Some(minor)), Some(Some(patch)), None] => Ok(Self { major, minor, patch }),
            _ => Err(format!("emulated version {text:?} is not of the form 1.40.0")),
        }
    }
}

impl fmt::Display for EmulatedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl EmulatedVersion {
    /// As `server_info` and the version line show it. Kuma counts the parts between slashes: there must be five.
    pub fn long(self) -> String {
        format!("{REVISION}/{self}/Clean/RELEASE/{TLS_LIBRARY}")
    }
}

/// What `--version` prints. Consul takes the first `1.2.3` in it as the version of Envoy, so ours is not in it.
pub fn version_line(emulated: EmulatedVersion) -> String {
    format!("\noutrigger  version: {}\n\n", emulated.long())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `consul connect envoy` looks for `(\d+\.\d+\.\d+)`.
    fn as_consul(output: &str) -> Option<String> {
        (0..output.len()).find_map(|start| {
            let rest = &output[start..];
            let end = rest.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(rest.len());
            let parts: Vec<&str> = rest[..end].split('.').collect();
            let digits = |part: &&str| !part.is_empty();
            (parts.len() >= 3 && parts[..3].iter().all(digits)).then(|| parts[..3].join("."))
        })
    }

    /// As Kuma reads the output: the text behind `version:` on the first line that has it.
    fn as_kuma(output: &str) -> Option<Vec<String>> {
        let line = output.lines().find(|line| line.contains("version:"))?;
        let build = line.split_once("version:")?.1.trim();
        Some(build.split('/').map(str::to_owned).collect())
    }

    #[test]
    fn launchers_understand_the_version_line() {
        for version in ["1.40.0", "1.34.7"] {
            let line = version_line(version.parse().unwrap());
            assert_eq!(as_consul(&line).as_deref(), Some(version));
            let parts = as_kuma(&line).unwrap();
            assert_eq!(parts[1..], [version, "Clean", "RELEASE", "AWS-LC"]);
            assert_eq!(parts[0].len(), 40);
        }
        assert_eq!(
            version_line(EmulatedVersion::default()).trim(),
            format!("outrigger  version: {REVISION}/1.40.0/Clean/RELEASE/AWS-LC")
        );
    }

    #[test]
    fn versions_have_three_numbers() {
        assert_eq!("1.2.3".parse(), Ok(EmulatedVersion { major: 1, minor: 2, patch: 3 }));
        for wrong in ["", "1.2", "1.2.3.4", "1.2.x", "v1.2.3", "1.+2.3", "1..3", "1.2.99999999999"] {
            assert!(wrong.parse::<EmulatedVersion>().is_err(), "{wrong}");
        }
    }
}
