//! The home page and the list of endpoints.
//!
//! Owns their layout. Both are made from the table of endpoints; the page needs nothing but itself.

use std::fmt::Write;

use super::endpoints::{ENDPOINTS, Endpoint, Parameter, ParameterKind};

const STYLE: &str = "body{font-family:sans-serif;margin:1.5em}table{border-collapse:collapse}\
    td{padding:.3em .8em;vertical-align:top}tr:nth-child(odd){background:#f3f3f3}\
    button{font:inherit;color:#069;background:none;border:0;padding:0;text-decoration:underline;cursor:pointer}\
    label{display:block;padding:.1em 0}small{color:#666}";

/// All endpoints, one a line, their parameters below.
pub(super) fn help() -> String {
    let mut out = "admin commands are:\n".to_owned();
    for Endpoint { path, help, changes, parameters, .. } in ENDPOINTS {
        let post = if *changes { " (POST)" } else { "" };
        let _ = writeln!(out, "  {path}{post}: {help}");
        for Parameter { name, help, kind } in *parameters {
            let _ = write!(out, "      {name}: {help}");
            if let ParameterKind::Choice(of) = kind {
                let _ = write!(out, "; One of ({})", of.join(", "));
            }
            out.push('\n');
        }
    }
    out
}

/// The home page: a form for each endpoint.
pub(super) fn page() -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang='en'>\n<head><meta charset='utf-8'><title>outrigger admin</title>\n\
         <style>{STYLE}</style></head>\n<body>\n<h1>outrigger</h1>\n<table>\n"
    );
    for Endpoint { path, help, changes, parameters, .. } in ENDPOINTS.iter().filter(|endpoint| endpoint.path != "/") {
        let method = if *changes { "post" } else { "get" };
        // Relative, so that the page also works behind a proxy that serves it under a prefix.
        let target = path.trim_start_matches('/');
        let _ = write!(
            out,
            "<tr><td><form id='{target}' action='{target}' method='{method}'><button>{target}</button></form></td>\
             <td>{}",
            escaped(help)
        );
        for parameter in *parameters {
            out.push_str(&input(target, parameter));
        }
        out.push_str("</td></tr>\n");
    }
    out.push_str("</table>\n</body>\n</html>\n");
    out
}

fn input(form: &str, Parameter { name, help, kind }: &Parameter) -> String {
    let help = escaped(help);
    let field = match kind {
        ParameterKind::Flag => format!("<input type='checkbox' name='{name}' form='{form}'>"),
        ParameterKind::Text => format!("<input type='text' name='{name}' form='{form}'>"),
        ParameterKind::Choice(of) => {
            let options: String = of.iter().map(|value| format!("<option>{value}</option>")).collect();
            format!("<select name='{name}' form='{form}'>{options}</select>")
        }
    };
    format!("<label>{field} {name} <small>{help}</small></label>")
}

/// Text as HTML shows it.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_listed_and_the_page_needs_no_other_file() {
        let (help, page) = (help(), page());
        for Endpoint { path, changes, .. } in ENDPOINTS {
            assert!(help.contains(&format!("  {path}{}: ", if *changes { " (POST)" } else { "" })), "{path}");
            assert!(*path == "/" || page.contains(&format!("<button>{}</button>", &path[1..])), "{path}");
        }
        assert!(ENDPOINTS.is_sorted_by_key(|endpoint| endpoint.path));
        assert!(!page.contains("src=") && !page.contains("href="));
        assert_eq!(escaped("<a & b>"), "&lt;a &amp; b&gt;");
    }
}
