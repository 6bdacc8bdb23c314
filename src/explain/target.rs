//! What is asked about.
use std::{fmt, net::IpAddr};

use crate::policy::{HostName, HostNameError, HostPattern, shown};

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where to.
    pub endpoint: Endpoint,
    /// Its port, 1 to 65535.
    pub port: u16,
    /// What would be said.
    pub said: Said,
}

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A host by its name.
    Host(HostName),
    /// A machine by its address.
    Address(IpAddr),
    /// Neither, and why.
    Invalid(String, HostNameError),
}

/// What would be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Nothing yet: whether a connection may be opened.
    Nothing,
    /// A TLS hello.
    Tls {
        /// Whether its server name is encrypted.
        ech: bool,
    },
    /// A request of plain HTTP.
    Http {
        /// Its method.
        method: String,
        /// Its path and query.
        path: String,
    },
    /// Something else over TCP.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Target {
    /// Reads a target as the option `--to` has it.
    ///
    /// # Errors
    /// What cannot be read, for a person. A host that is no host name can be: nothing reaches it.
    pub fn parse(text: &str, method: &str, ech: bool) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!(
                "{what} in `{}`; write a target such as https://host, http://host/path, tcp://host:22 or host:443",
                shown(text)
            )
        };
        let (scheme, rest) = text.split_once("://").map_or((None, text), |(s, r)| (Some(s), r));
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let path = path.split_once('#').map_or(path, |(path, _)| path);
        let (said, default) = match scheme.map(str::to_ascii_lowercase).as_deref() {
            Some("https") => (Said::Tls { ech }, Some(443)),
            Some("http") => {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                (Said::Http { method: method.to_owned(), path }, Some(80))
            }
            Some("tcp") if path.is_empty() => (Said::Tcp, None),
            Some("udp") if path.is_empty() => (Said::Udp, None),
            None if path.is_empty() => (Said::Nothing, None),
            Some("tcp" | "udp") | None => return Err(wrong("a path without https:// or http://")),
            Some(_) => return Err(wrong("an unknown scheme")),
        };
        let (host, port) =
            split_port(authority).ok_or_else(|| wrong("an address of IPv6 that is not between [ and ]"))?;
        if let Ok(HostPattern::OneLabel(base) | HostPattern::AnyDepth(base)) = host.parse() {
            return Err(format!("`{}` is many names; ask for one name, such as a.{base}", shown(host)));
        }
        // A host alone is most likely the one of a URL.
        let (said, default) = match (&said, port) {
            (Said::Nothing, None) if !host.is_empty() => (Said::Tls { ech }, Some(443)),
            _ => (said, default),
        };
        let port = match (port, default) {
            (Some(port), _) => port.parse().ok().filter(|port| *port > 0),
            (None, default) => default,
        };
        let port = port.ok_or_else(|| wrong("no port from 1 to 65535"))?;
        Ok(Self { endpoint: Endpoint::parse(host), port, said })
    }
}

/// Host and port of an authority; an address of IPv6 stands in brackets.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((address, Some(port))),
            None => rest.is_empty().then_some((address, None)),
        };
    }
    let (host, port) = authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p)));
    port.is_none_or(|port| !port.contains(':')).then_some((host, port))
}

impl Endpoint {
    fn parse(text: &str) -> Self {
        match (text.parse::<IpAddr>(), HostName::parse(text)) {
            (Ok(address), _) => Self::Address(address),
            (_, Ok(name)) => Self::Host(name),
            (_, Err(error)) => Self::Invalid(text.to_owned(), error),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Host(name) => write!(f, "{name}:{}", self.port)?,
            Endpoint::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port)?,
            Endpoint::Address(address) => write!(f, "{address}:{}", self.port)?,
            Endpoint::Invalid(text, _) => write!(f, "{}:{}", shown(text), self.port)?,
        }
        match &self.said {
            Said::Nothing => Ok(()),
            Said::Tls { ech: false } => f.write_str(" by TLS"),
            Said::Tls { ech: true } => f.write_str(" by TLS with an encrypted server name"),
            Said::Http { method, path } => write!(f, " by HTTP, {} {}", shown(method), shown(path)),
            Said::Tcp => f.write_str(" by another protocol over TCP"),
            Said::Udp => f.write_str(" by UDP"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        Target::parse(text, "GET", false).map_or_else(|error| error, |target| target.to_string())
    }

    #[test]
    fn targets_are_read() {
        for (text, read) in [
            ("https://api.example", "api.example:443 by TLS"),
            ("https://API.Example.:8443/a?b#c", "api.example:8443 by TLS"),
            ("HTTPS://a", "a:443 by TLS"),
            ("http://api.example", "api.example:80 by HTTP, GET /"),
            ("http://api.example:81/a/b?c=d#e", "api.example:81 by HTTP, GET /a/b?c=d"),
            ("http://api.example?c", "api.example:80 by HTTP, GET /?c"),
            ("tcp://api.example:22", "api.example:22 by another protocol over TCP"),
            ("udp://198.51.100.7:53", "198.51.100.7:53 by UDP"),
            ("api.example:443", "api.example:443"),
            ("198.51.100.7:443", "198.51.100.7:443"),
            ("[2001:db8::7]:443", "[2001:db8::7]:443"),
            ("https://[2001:db8::7]", "[2001:db8::7]:443 by TLS"),
            ("https://user@api.example", "user@api.example:443 by TLS"),
            ("127.1:80", "127.1:80"),
            ("pypi.org", "pypi.org:443 by TLS"),
            ("[2001:db8::7]", "[2001:db8::7]:443 by TLS"),
        ] {
            assert_eq!(parsed(text), read, "{text}");
        }
        let hidden = Target::parse("https://a", "GET", true).unwrap();
        assert_eq!(hidden.to_string(), "a:443 by TLS with an encrypted server name");
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for (text, said) in [
            ("", "no port"),
            ("api.example:", "no port"),
            ("api.example:0", "no port"),
            ("api.example:65536", "no port"),
            ("https://api.example:x", "no port"),
            ("tcp://api.example", "no port"),
            (
                "*.pythonhosted.org:443",
                "`*.pythonhosted.org` is many names; ask for one name, such as a.pythonhosted.org",
            ),
            ("https://**.example", "such as a.example"),
            ("tcp://api.example:22/a", "a path without"),
            ("api.example:443/a", "a path without"),
            ("ftp://api.example:21", "unknown scheme"),
            ("[::1", "not between [ and ]"),
            ("[::1]443", "not between [ and ]"),
            ("::1:443", "not between [ and ]"),
            ("https://::1", "not between [ and ]"),
        ] {
            assert!(parsed(text).contains(said), "{text}: {}", parsed(text));
        }
    }

    #[test]
    fn what_is_no_host_is_told_apart() {
        for text in ["user@a:1", "127.1:1", "0x7f000001:1", "bücher.example:1", "a..b:1", ":1"] {
            let target = Target::parse(text, "GET", false).unwrap();
            assert!(matches!(target.endpoint, Endpoint::Invalid(..)), "{text} {target:?}");
        }
    }
}
