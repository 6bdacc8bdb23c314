//! What is wrong with the host of a rule, and what to write instead.
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{HostNameError, HostPattern, HostPatternError, PathPrefix, shown};

/// What is wrong with `host`, which no [`HostPattern`] can be read from, and what to write instead.
pub(super) fn wrong_host(host: &str, error: HostPatternError) -> String {
    let instead = match error {
        HostPatternError::Star if matches!(host, "*" | "**") => {
            "; no rule means every host; list the names".to_owned()
        }
        HostPatternError::TrailingDot => {
            format!("; write `{}`", shown(host.strip_suffix('.').unwrap_or(host)))
        }
        HostPatternError::Star | HostPatternError::Character(_) => Written::read(host).instead(),
        HostPatternError::Name(HostNameError::Address) => CIDR.to_owned(),
        HostPatternError::Name(_) => String::new(),
    };
    format!("`{}` has {error}{instead}", shown(host))
}

const CIDR: &str = "; for addresses write cidr";

/// A host as people write it who copy it from somewhere: `https://pypi.org:443/simple`.
struct Written<'a> {
    scheme: Option<&'a str>,
    /// Name and port, or an address.
    authority: &'a str,
    /// With its slash; empty where there is none. Without the query.
    path: &'a str,
}

impl<'a> Written<'a> {
    fn read(text: &'a str) -> Self {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
            _ => (None, text),
        };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let end = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
        // A network has a slash, too.
        if rest.parse::<IpNet>().is_ok() {
            return Self { scheme, authority: rest, path: "" };
        }
        Self { scheme, authority, path }
    }

    fn instead(&self) -> String {
        if self.is_address() {
            return CIDR.to_owned();
        }
        let (name, port) = match self.authority.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (self.authority, None),
        };
        let is_name = name.parse::<HostPattern>().is_ok();
        let mut text = match (self.scheme, port) {
            (Some(scheme), port) => {
                let usual = match scheme {
                    "https" => Some("443"),
                    "http" => Some("80"),
                    _ => None,
                };
                format!("; leave {scheme}:// out and write {}", ports(port.or(usual)))
            }
            (None, Some(port)) if is_name => {
                format!("; write host: {} and {}", shown(name), ports(Some(port)))
            }
            (None, None) if is_name && !self.path.is_empty() => String::new(),
            _ => {
                return "; write the exact name (api.example), *.example for one label before it, or **.example for any number of labels"
                    .to_owned();
            }
        };
        if !self.path.is_empty() {
            text.push_str("; leave the path out");
            // The path of a request by TLS is nothing that the gateway sees.
            let plain = self.scheme.is_none_or(|scheme| scheme == "http") && self.path != "/";
            if plain && PathPrefix::parse(self.path).is_some() {
                let path = shown(self.path);
                text.push_str(&format!("; for plain HTTP alone write http: {{pathPrefixes: [{path}]}}"));
            }
        }
        text
    }

    fn is_address(&self) -> bool {
        let text = self.authority;
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        bare.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() || text.parse::<IpNet>().is_ok()
    }
}

fn is_scheme(text: &str) -> bool {
    (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Where to write `port`, as far as it is one.
fn ports(port: Option<&str>) -> String {
    match port.and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0) {
        Some(port) => format!("ports: [{port}]"),
        None => "its port into ports".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(host: &str) -> String {
        wrong_host(host, host.parse::<HostPattern>().unwrap_err())
    }

    #[test]
    fn what_was_meant_is_said() {
        for (host, said) in [
            ("10.0.0.1", "label that is no number; for addresses write cidr"),
            ("10.0.0.0/8", "has the character '/'; for addresses write cidr"),
            ("https://10.0.0.1:8443/a", "has the character ':'; for addresses write cidr"),
            ("10.0.0.1:443", "has the character ':'; for addresses write cidr"),
            ("2001:db8::7", "; for addresses write cidr"),
            ("2001:db8::/32", "; for addresses write cidr"),
            ("[::1]", "; for addresses write cidr"),
            ("[::1]:443", "; for addresses write cidr"),
            ("pypi.org:443", "has the character ':'; write host: pypi.org and ports: [443]"),
            ("*.pypi.org:8443", "; write host: *.pypi.org and ports: [8443]"),
            ("pypi.org:https", "; write host: pypi.org and its port into ports"),
            ("pypi.org:0", "; write host: pypi.org and its port into ports"),
            (
                "pypi.org/simple?a=b",
                "has the character '/'; leave the path out; for plain HTTP alone write http: {pathPrefixes: [/simple]}",
            ),
            ("pypi.org/", "has the character '/'; leave the path out"),
            ("pypi.org/a//b", "has the character '/'; leave the path out"),
            ("pypi.org:443/a", "; write host: pypi.org and ports: [443]; leave the path out; for plain HTTP"),
            ("https://pypi.org", "; leave https:// out and write ports: [443]"),
            ("https://pypi.org:8443/a", "; leave https:// out and write ports: [8443]; leave the path out"),
            (
                "http://*.example/a",
                "and write ports: [80]; leave the path out; for plain HTTP alone write http:",
            ),
            ("ssh://git.example", "; leave ssh:// out and write its port into ports"),
        ] {
            let told = told(host);
            assert!(told.contains(said) && told.starts_with(&format!("`{host}` has ")), "{told}");
        }
        for host in ["pypi.org/", "pypi.org/a//b", "https://pypi.org:8443/a"] {
            assert!(told(host).ends_with("; leave the path out"), "{}", told(host));
        }
    }

    #[test]
    fn what_is_nothing_of_that_is_told_the_forms() {
        for host in ["user@api.example", "a b", "a*.example", "a,b", "a\nb/c", ":443", "/a", "a b:443"] {
            assert!(told(host).contains("; write the exact name (api.example), *.example"), "{}", told(host));
        }
    }

    #[test]
    fn text_of_others_is_cut_and_escaped() {
        for host in [format!("{}:443/{0}", "a.".repeat(100) + "b"), format!("a/\u{1b}{}", "x".repeat(9999))] {
            let told = told(&host);
            assert!(told.len() < 400 && !told.chars().any(char::is_control), "{told}");
        }
    }
}
