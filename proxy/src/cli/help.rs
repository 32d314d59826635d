//! The text of `--help`.
//!
//! Owns its layout; the words are in the table of flags.

use super::flags::{FLAGS, Flag, Standing};

/// Columns that help texts are broken to.
const WIDTH: usize = 100;
const INDENT: &str = "        ";

pub(super) fn help() -> String {
    let mut text = "outrigger: a service-mesh sidecar proxy configured by xDS\n\nUsage: outrigger [flags]\n\n\
        A value may follow its flag as the next argument, after `=`, or after a blank in the same argument.\n"
        .to_owned();
    for (title, own) in [("Envoy's flags", false), ("Flags of outrigger", true)] {
        text.push_str(&format!("\n{title}:\n"));
        for flag in FLAGS.iter().filter(|flag| (flag.standing == Standing::Own) == own) {
            text.push_str(&entry(flag));
        }
    }
    text
}

fn entry(flag: &Flag) -> String {
    let short = match flag.short {
        Some('-') => "--, ".to_owned(),
        Some(letter) => format!("-{letter}, "),
        None => String::new(),
    };
    let value = flag.placeholder().map(|name| format!(" <{name}>")).unwrap_or_default();
    let reason = match flag.standing {
        Standing::WithoutEffect(reason) => format!(" {reason}."),
        Standing::Envoys | Standing::Accepted | Standing::Own => String::new(),
    };
    let mut text = format!("  {short}--{}{value}\n", flag.name);
    let mut line = INDENT.to_owned();
    for word in format!("{}{reason}", flag.help).split_whitespace() {
        if line.len() + word.len() > WIDTH {
            text.push_str(line.trim_end());
            text.push('\n');
            line = INDENT.to_owned();
        }
        line.push_str(word);
        line.push(' ');
    }
    text.push_str(line.trim_end());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_has_every_flag_and_fits_a_terminal() {
        let text = help();
        for flag in FLAGS {
            assert!(text.contains(&format!("--{}", flag.name)), "{}", flag.name);
        }
        assert!(text.contains("  -c, --config-path <path>\n"));
        assert!(text.lines().all(|line| line.len() <= 120 && line == line.trim_end()));
    }
}
